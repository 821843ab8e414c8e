"""What is written down to be told, when a batch ends: each event once to each who wants it."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from api.params import RotateWebhookSecret
from api.services import webhook_endpoints
from models import Batch, WebhookDelivery
from models.database import Database
from models.lifecycle import ALLOWED, FINAL, BatchStatus
from models.project import DEFAULT_CALLER
from models.queries import advance
from tests.factories import (
    input_file,
    make_batch,
    make_file,
    make_project,
    make_webhook_endpoint,
)
from tests.fixtures.runtime import reload, rings, run_to_end, started_batch, wait_until
from worker.runtime import Runtime
from worker.stages.finalize import finalize_batch
from worker.stages.sweep import sweep
from worker.stages.validate import validate_batch

# Sorted: every test process must name its cases alike.
ENDS = [(source, end) for source, ends in ALLOWED.items() for end in sorted(ends & FINAL)]
MOVES = [(source, to) for source, tos in ALLOWED.items() for to in sorted(tos - FINAL)]


async def deliveries(database: Database) -> list[WebhookDelivery]:
    async with database.begin() as session:
        return list(await session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.pk)))


async def move(database: Database, batch: Batch, to: BatchStatus) -> bool:
    async with database.begin() as session:
        return await advance(session, batch.pk, to)


@pytest.mark.parametrize(("source", "end"), ENDS)
async def test_an_end_is_told_once_to_each_who_wants_it(
    database: Database, source: BatchStatus, end: BatchStatus
) -> None:
    event = f"batch.{end}"
    everything = await make_webhook_endpoint(database)
    this_alone = await make_webhook_endpoint(database, event_types=[event])
    others = [f"batch.{other}" for other in FINAL if other != end]
    await make_webhook_endpoint(database, event_types=others)
    elsewhere = await make_project(database)
    await make_webhook_endpoint(database, project_pk=elsewhere.project_pk)
    batch = await make_batch(database, status=source)

    moved = await asyncio.gather(*(move(database, batch, end) for _ in range(5)))

    assert sorted(moved) == [False] * 4 + [True]
    told = await deliveries(database)
    assert [each.endpoint_pk for each in told] == [everything.pk, this_alone.pk]
    assert {(each.event_type, each.batch_id, each.state) for each in told} == {
        (event, batch.id, "pending")
    }
    # One event, two deliveries.
    assert len({each.event_id for each in told}) == 1
    assert len({each.webhook_id for each in told}) == 2
    assert all(each.webhook_id.startswith("wh_") and len(each.webhook_id) == 35 for each in told)
    ended = await reload(database, batch)
    assert {each.created_at for each in told} == {getattr(ended, f"{end}_at")}


@pytest.mark.parametrize(("source", "to"), MOVES)
async def test_nothing_is_told_of_other_moves(
    database: Database, source: BatchStatus, to: BatchStatus
) -> None:
    await make_webhook_endpoint(database)
    assert await move(database, await make_batch(database, status=source), to)
    assert await deliveries(database) == []


async def test_an_end_that_is_undone_is_not_told(database: Database) -> None:
    await make_webhook_endpoint(database)
    batch = await make_batch(database)
    async with database.begin() as session:
        assert await advance(session, batch.pk, BatchStatus.FAILED)
        await session.rollback()
    assert await deliveries(database) == []


async def test_an_endpoint_that_is_deleted_at_the_same_time(database: Database) -> None:
    """The end of the batch waits for the deletion, and is not undone by it."""
    endpoint = await make_webhook_endpoint(database)
    kept = await make_webhook_endpoint(database)
    batch = await make_batch(database)
    async with database.begin() as session:
        await session.delete(await session.merge(endpoint))
        await session.flush()
        ending = asyncio.create_task(move(database, batch, BatchStatus.FAILED))
        await wait_until(lambda: _somebody_waits(database), "a wait for the deletion")
    assert await ending
    assert [each.endpoint_pk for each in await deliveries(database)] == [kept.pk]


async def test_an_endpoint_that_is_changed_at_the_same_time(database: Database) -> None:
    """The change waits for the end of the batch: beside it, Postgres may lose the lock of the key."""
    endpoint = await make_webhook_endpoint(database)
    batch = await make_batch(database)
    async with database.begin() as session:
        assert await advance(session, batch.pk, BatchStatus.FAILED)
        changing = asyncio.create_task(
            webhook_endpoints.rotate_secret(
                database, DEFAULT_CALLER, endpoint_id=endpoint.id, request=RotateWebhookSecret()
            )
        )
        await wait_until(lambda: _somebody_waits(database), "a wait for the end of the batch")
    assert (await changing).id == endpoint.id
    assert [each.endpoint_pk for each in await deliveries(database)] == [endpoint.pk]


async def _somebody_waits(database: Database) -> bool:
    async with database.begin() as session:
        statement = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        connection = await session.connection()
        return bool((await connection.exec_driver_sql(statement)).scalar())


async def test_a_deleted_endpoint_takes_its_deliveries_along(database: Database) -> None:
    endpoint, other = [await make_webhook_endpoint(database) for _ in range(2)]
    await move(database, await make_batch(database), BatchStatus.FAILED)
    await webhook_endpoints.delete_(database, DEFAULT_CALLER, endpoint_id=endpoint.id)
    assert [each.endpoint_pk for each in await deliveries(database)] == [other.pk]


async def events_of(runtime: Runtime, batch: Batch) -> list[str]:
    return [
        each.event_type for each in await deliveries(runtime.database) if each.batch_id == batch.id
    ]


async def test_a_completed_batch(runtime: Runtime, other_runtime: Runtime) -> None:
    await make_webhook_endpoint(runtime.database)
    batch = await started_batch(runtime, input_file(3))
    rings(runtime).clear()
    await asyncio.gather(run_to_end(runtime, batch), run_to_end(other_runtime, batch))
    assert await events_of(runtime, batch) == ["batch.completed"]
    assert (rings(runtime) + rings(other_runtime)).count(("notify", 1)) == 1


async def test_a_failed_batch(runtime: Runtime) -> None:
    await make_webhook_endpoint(runtime.database)
    file = await make_file(runtime.database, b"{}\n")
    batch = await make_batch(runtime.database, input_file_id=file.id)
    await asyncio.gather(*(validate_batch(runtime, batch.pk) for _ in range(3)))
    assert await events_of(runtime, batch) == ["batch.failed"]
    assert rings(runtime) == [("notify", 1)]


async def test_a_batch_without_its_input(runtime: Runtime) -> None:
    await make_webhook_endpoint(runtime.database)
    batch = await make_batch(runtime.database, input_file_id="file-none")
    await validate_batch(runtime, batch.pk)
    assert await events_of(runtime, batch) == ["batch.failed"]


async def test_an_expired_batch(runtime: Runtime, other_runtime: Runtime) -> None:
    await make_webhook_endpoint(runtime.database)
    batch = await started_batch(runtime, input_file(3))
    async with runtime.database.begin() as session:
        await session.execute(update(Batch).values(expires_at=func.now()))
    await sweep(runtime)
    assert await events_of(runtime, batch) == []
    await asyncio.gather(*(finalize_batch(each, batch.pk) for each in (runtime, other_runtime)))
    assert await events_of(runtime, batch) == ["batch.expired"]


@pytest.mark.parametrize("is_started", [True, False])
async def test_a_cancelled_batch(
    runtime: Runtime, other_runtime: Runtime, *, is_started: bool
) -> None:
    await make_webhook_endpoint(runtime.database)
    if is_started:
        batch = await started_batch(runtime, input_file(3))
    else:
        batch = await make_batch(runtime.database)
    assert await move(runtime.database, batch, BatchStatus.CANCELLING)
    assert await events_of(runtime, batch) == []
    await asyncio.gather(*(finalize_batch(each, batch.pk) for each in (runtime, other_runtime)))
    assert await events_of(runtime, batch) == ["batch.cancelled"]


async def test_without_endpoints_nobody_is_rung(runtime: Runtime) -> None:
    batch = await make_batch(runtime.database, input_file_id="file-none")
    await validate_batch(runtime, batch.pk)
    assert rings(runtime) == []


DUE: dict[str, Any] = {}
LATER: dict[str, Any] = {"next_try_at": func.now() + timedelta(seconds=60)}
LEASED: dict[str, Any] = {
    "lease_owner": "somebody",
    "lease_until": func.now() + timedelta(seconds=60),
}
LAPSED: dict[str, Any] = LEASED | {"lease_until": func.now()}
ENDED: dict[str, Any] = {"state": "delivered", "ended_at": func.now()}


@pytest.mark.parametrize(
    ("values", "is_rung"),
    [(DUE, True), (LAPSED, True), (LATER, False), (LEASED, False), (ENDED, False)],
    ids=["due", "lapsed", "later", "leased", "ended"],
)
async def test_the_sweep_rings_for_what_is_due(
    runtime: Runtime, values: dict[str, Any], *, is_rung: bool
) -> None:
    await make_webhook_endpoint(runtime.database)
    await move(runtime.database, await make_batch(runtime.database), BatchStatus.FAILED)
    async with runtime.database.begin() as session:
        await session.execute(update(WebhookDelivery).values({"tries": 1} | values))
    await sweep(runtime)
    assert rings(runtime) == ([("notify", 1)] if is_rung else [])


async def test_what_has_ended_is_forgotten_after_a_week(runtime: Runtime) -> None:
    await make_webhook_endpoint(runtime.database)
    for days in (6.9, 7.1, 100, None):
        batch = await make_batch(runtime.database)
        await move(runtime.database, batch, BatchStatus.FAILED)
        ago = None if days is None else func.now() - timedelta(days=days)
        state = "pending" if days is None else "given_up" if days == 100 else "delivered"
        async with runtime.database.begin() as session:
            await session.execute(
                update(WebhookDelivery)
                .where(WebhookDelivery.batch_id == batch.id)
                .values(state=state, ended_at=ago, created_at=func.now() - timedelta(days=200))
            )
    await sweep(runtime)
    assert [each.state for each in await deliveries(runtime.database)] == ["delivered", "pending"]
