"""Pausing: nothing of a paused batch is begun, nothing of it is lost, and nothing is called twice."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from models import Batch
from models.database import Database
from models.lifecycle import FINAL, BatchStatus, ShardState
from tests.answers import ok, refusal
from tests.factories import input_file, make_batch, make_file, make_key, make_project, make_shard
from tests.fixtures.client import RecordingBell
from tests.fixtures.runtime import (
    Reply,
    ScriptedServer,
    all_lines_of,
    in_flight,
    reload,
    results_of,
    rings,
    run_shards,
    run_to_end,
    shards_of,
    started_batch,
    wait_until,
    waiting,
)
from tests.running import Gate, with_settings
from worker.claim import claim_shard
from worker.runtime import Runtime
from worker.stages.finalize import finalize_batch
from worker.stages.sweep import sweep
from worker.stages.validate import validate_batch

Press = Callable[[str, Batch], Awaitable[dict[str, Any]]]


@pytest.fixture
def press(api_client: httpx.AsyncClient) -> Press:
    """Press `pause`, `resume` or `cancel` of a batch."""

    async def post(verb: str, batch: Batch) -> dict[str, Any]:
        return ok(await api_client.post(f"/v1/batches/{batch.id}/{verb}"))

    return post


async def claims(database: Database) -> bool:
    return await claim_shard(database, owner="me", lease_seconds=15) is not None


async def test_a_paused_batch_keeps_its_status_and_its_shape(
    database: Database, api_client: httpx.AsyncClient, press: Press
) -> None:
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS)
    before = ok(await api_client.get(f"/v1/batches/{batch.id}"))
    assert await press("pause", batch) == before
    assert before["status"] == "in_progress"
    assert await press("resume", batch) == before


async def test_no_shard_of_a_paused_batch_is_claimed(database: Database, press: Press) -> None:
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS, input_file_pk=1)
    await make_shard(database, batch)
    await press("pause", batch)
    assert not await claims(database)
    await press("resume", batch)
    assert await claims(database)


async def test_other_batches_go_on(database: Database, press: Press) -> None:
    paused, other = [
        await make_batch(database, status=BatchStatus.IN_PROGRESS, input_file_pk=1)
        for _ in range(2)
    ]
    for batch in (paused, other):
        await make_shard(database, batch)
    await press("pause", paused)

    shard = await claim_shard(database, owner="me", lease_seconds=15)
    assert shard is not None
    assert shard.batch_pk == other.pk


async def test_nobody_is_rung_for_a_paused_batch(runtime: Runtime, press: Press) -> None:
    batch = await started_batch(runtime, input_file(7))
    await press("pause", batch)
    rings(runtime).clear()
    await sweep(runtime)
    assert rings(runtime) == []
    await press("resume", batch)
    await sweep(runtime)
    assert rings(runtime) == [("run", 2)]


async def test_resuming_rings_for_each_shard(
    database: Database, bell: RecordingBell, press: Press
) -> None:
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS)
    for no in range(3):
        await make_shard(database, batch, no=no)
    await make_shard(database, batch, no=3, state=ShardState.DONE)
    await press("pause", batch)
    assert bell.rings == []
    await press("resume", batch)
    assert bell.rings == [("run", 3)]


async def test_pausing_twice_and_resuming_what_runs(database: Database, press: Press) -> None:
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS)
    await press("resume", batch)
    await press("pause", batch)
    since = (await reload(database, batch)).paused_at
    assert since is not None
    await press("pause", batch)
    assert (await reload(database, batch)).paused_at == since
    await press("resume", batch)
    await press("resume", batch)
    assert (await reload(database, batch)).paused_at is None


@pytest.mark.parametrize("verb", ["pause", "resume"])
@pytest.mark.parametrize("status", sorted({*FINAL, BatchStatus.FINALIZING, BatchStatus.CANCELLING}))
async def test_what_has_ended_or_ends_is_not_paused(
    database: Database, api_client: httpx.AsyncClient, verb: str, status: BatchStatus
) -> None:
    batch = await make_batch(database, status=status)
    answer = await api_client.post(f"/v1/batches/{batch.id}/{verb}")
    refusal(answer, 409, f"Cannot {verb} a batch with status '{status}'.")
    assert answer.headers["x-should-retry"] == "false"


async def test_calls_in_flight_end_and_no_other_begins(
    scripted_runtime: Runtime, scripted: ScriptedServer, press: Press
) -> None:
    gate = Gate(scripted, lets_through=1)
    # Neither stopping nor cancelling would wait for the calls.
    runtime = with_settings(
        scripted_runtime, max_in_flight=2, drain_seconds=0, cancel_grace_seconds=0
    )
    batch = await started_batch(runtime, input_file(12))
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: gate.held == 2 and waiting(runtime) > 0)
    await press("pause", batch)
    # The worker hears of it although it has nothing to record.
    await wait_until(lambda: waiting(runtime) == 0)
    assert not running.done()
    gate.open()
    await asyncio.wait_for(running, timeout=10)
    assert len(scripted.requests) == 3
    assert len(await results_of(runtime.database, batch)) == 3
    assert [shard.state for shard in await shards_of(runtime.database, batch)] == ["queued"] * 3
    assert (await reload(runtime.database, batch)).status == BatchStatus.IN_PROGRESS

    await press("resume", batch)
    batch = await run_to_end(runtime, batch)
    assert (batch.status, batch.completed) == (BatchStatus.COMPLETED, 12)
    assert len(await all_lines_of(runtime.database, batch)) == 12
    # Once each: the pause repeated nothing.
    assert len(scripted.requests) == 12


async def test_a_line_that_waits_for_its_next_try_is_put_back(
    scripted_runtime: Runtime, scripted: ScriptedServer, press: Press
) -> None:
    async def fail(_: object) -> Reply:
        return Reply(500)

    scripted.script = fail
    runtime = with_settings(scripted_runtime, retry_base_seconds=1000, retry_cap_seconds=1000)
    batch = await started_batch(runtime, input_file(3))
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: len(scripted.requests) == 3)
    await press("pause", batch)
    await asyncio.wait_for(running, timeout=10)
    assert await results_of(runtime.database, batch) == {}
    assert in_flight(runtime) == 0


async def test_a_slot_that_a_pause_frees_takes_up_another_batch(
    scripted_runtime: Runtime, scripted: ScriptedServer, press: Press
) -> None:
    gate = Gate(scripted, lets_through=0)
    batch = await started_batch(scripted_runtime, input_file(3), window=timedelta(hours=1))
    running = asyncio.create_task(run_shards(scripted_runtime))
    await wait_until(lambda: gate.held == 3)
    other = await started_batch(scripted_runtime, input_file(2))
    await press("pause", batch)
    gate.open()
    await asyncio.wait_for(running, timeout=10)
    assert (await reload(scripted_runtime.database, other)).status == BatchStatus.FINALIZING


async def test_a_batch_paused_while_it_is_validated_starts_paused(
    runtime: Runtime, database: Database, press: Press
) -> None:
    file = await make_file(database, input_file(2))
    batch = await make_batch(database, input_file_id=file.id)
    await press("pause", batch)
    await validate_batch(runtime, batch.pk)
    assert (await reload(database, batch)).status == BatchStatus.IN_PROGRESS
    assert not await claims(database)
    await press("resume", batch)
    assert await claims(database)


async def test_a_paused_batch_expires(runtime: Runtime, press: Press) -> None:
    batch = await started_batch(runtime, input_file(2))
    await press("pause", batch)
    async with runtime.database.begin() as session:
        past = Batch.created_at - timedelta(seconds=1)
        await session.execute(update(Batch).values(expires_at=past))
    await sweep(runtime)
    await finalize_batch(runtime, batch.pk)
    batch = await reload(runtime.database, batch)
    assert batch.status == BatchStatus.EXPIRED
    assert len(await all_lines_of(runtime.database, batch)) == 2


async def test_a_paused_batch_is_cancelled(runtime: Runtime, press: Press) -> None:
    batch = await started_batch(runtime, input_file(2))
    await press("pause", batch)
    assert (await press("cancel", batch))["status"] == "cancelling"
    await finalize_batch(runtime, batch.pk)
    batch = await reload(runtime.database, batch)
    assert batch.status == BatchStatus.CANCELLED
    assert len(await all_lines_of(runtime.database, batch)) == 2


async def test_pauses_and_claims_at_the_same_time(database: Database, press: Press) -> None:
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS, input_file_pk=1)
    for no in range(20):
        await make_shard(database, batch, no=no)
    taken = 0
    for _ in range(5):
        _, first, second = await asyncio.gather(
            press("pause", batch), claims(database), claims(database)
        )
        taken += first + second
        # Whoever wins, from now on there is nothing to have.
        assert not await claims(database)
        await press("resume", batch)
    running = [shard for shard in await shards_of(database, batch) if shard.state == "running"]
    assert len(running) == taken


@pytest.mark.parametrize("verb", ["pause", "resume"])
async def test_another_projects_batch_is_not_found(
    database: Database, api_client: httpx.AsyncClient, verb: str
) -> None:
    since = None if verb == "pause" else (await make_batch(database)).created_at
    batch = await make_batch(database, paused_at=since)
    key = await make_key(database, await make_project(database))
    answer = await api_client.post(
        f"/v1/batches/{batch.id}/{verb}", headers={"authorization": f"Bearer {key}"}
    )
    refusal(answer, 404, f"No batch found with id '{batch.id}'.")
    assert (await reload(database, batch)).paused_at == since
    never = await api_client.post(f"/v1/batches/batch_never/{verb}")
    refusal(never, 404, "No batch found with id 'batch_never'.")
