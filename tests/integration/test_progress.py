"""The progress of a batch: what it tells is what Postgres knows, and it is cheap to ask."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import event, update
from sqlalchemy.engine import Engine

from models import Batch, Shard
from models.database import Database
from models.lifecycle import BatchStatus, ShardState
from tests.answers import ok, refusal
from tests.factories import input_file, make_batch, make_key, make_project, make_shard
from tests.fixtures.runtime import (
    Reply,
    Request,
    ScriptedServer,
    reload,
    run_shards,
    run_to_end,
    shards_of,
    started_batch,
    wait_until,
)
from tests.running import GOOD, Gate, question, with_settings
from worker.runtime import Runtime

NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


async def ask(client: httpx.AsyncClient, batch: Batch) -> dict[str, Any]:
    return ok(await client.get(f"/v1/batches/{batch.id}/progress"))


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


async def test_before_it_has_begun(api_client: httpx.AsyncClient, database: Database) -> None:
    batch = await make_batch(database, window=timedelta(hours=2))
    told = await ask(api_client, batch)
    assert 7100 < told.pop("seconds_left") < 7200
    assert told == {
        "object": "batch.progress",
        "batch_id": batch.id,
        "status": "validating",
        "paused": False,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "in_flight": 0,
        "retries": 0,
        "usage": NO_TOKENS,
        "lines_per_second": 0.0,
        "expires_at": int(batch.expires_at.timestamp()),
        "forecast_end_at": None,
        "forecast_in_window": None,
    }


async def test_what_a_worker_does_can_be_seen(
    scripted_runtime: Runtime, scripted: ScriptedServer, api_client: httpx.AsyncClient
) -> None:
    gate = Gate(scripted, lets_through=3)
    runtime = with_settings(scripted_runtime, max_in_flight=2)
    batch = await started_batch(runtime, input_file(12))
    running = asyncio.create_task(run_shards(runtime))

    async def is_told() -> bool:
        told = await ask(api_client, batch)
        return bool(told["in_flight"] == 2 and told["request_counts"]["completed"] == 3)

    await wait_until(is_told)
    told = await ask(api_client, batch)
    assert told["status"] == "in_progress"
    assert told["request_counts"] == {"total": 12, "completed": 3, "failed": 0}
    assert told["usage"]["total_tokens"] == 6
    assert (told["usage"]["input_tokens"], told["usage"]["output_tokens"]) == (3, 3)
    assert told["lines_per_second"] > 0
    assert told["forecast_end_at"] >= time.time() - 1
    assert told["forecast_in_window"] is True
    gate.open()
    await asyncio.wait_for(running, timeout=10)
    assert (await ask(api_client, batch))["in_flight"] == 0


async def test_retries_are_counted_and_outlive_the_shards(
    scripted_runtime: Runtime, scripted: ScriptedServer, api_client: httpx.AsyncClient
) -> None:
    failed: set[str] = set()

    async def fail_first(request: Request) -> Reply:
        if question(request) in failed:
            return Reply(body=GOOD)
        failed.add(question(request))
        return Reply(500)

    scripted.script = fail_first
    batch = await started_batch(scripted_runtime, input_file(7))
    await run_shards(scripted_runtime)
    assert sum(shard.retries for shard in await shards_of(scripted_runtime.database, batch)) == 7
    assert (await ask(api_client, batch))["retries"] == 7
    batch = await run_to_end(scripted_runtime, batch)
    assert batch.status == BatchStatus.COMPLETED
    told = await ask(api_client, batch)
    assert told["retries"] == 7
    assert told["usage"] == ok(await api_client.get(f"/v1/batches/{batch.id}"))["usage"]
    assert told["usage"]["total_tokens"] == 14
    assert told["request_counts"] == {"total": 7, "completed": 7, "failed": 0}
    assert (told["seconds_left"], told["lines_per_second"], told["in_flight"]) == (0, 0, 0)
    assert (told["forecast_end_at"], told["forecast_in_window"]) == (None, None)


async def test_the_sums_of_shards_are_those_of_results(
    runtime: Runtime, api_client: httpx.AsyncClient
) -> None:
    batch = await started_batch(runtime, input_file(12))
    await run_shards(runtime)
    before = (await ask(api_client, batch))["usage"]
    batch = await run_to_end(runtime, batch)
    assert before["total_tokens"] > 0
    assert before == (await ask(api_client, batch))["usage"]


async def test_what_a_lost_worker_had_in_flight_is_not_told(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS)
    await make_shard(database, batch, state=ShardState.RUNNING, in_flight=5)
    await make_shard(
        database, batch, no=1, state=ShardState.RUNNING, in_flight=7, lease_until=ago(1)
    )
    assert (await ask(api_client, batch))["in_flight"] == 5


@pytest.mark.parametrize(
    ("lines_per_second", "seconds_ago", "forecast", "in_window"),
    [
        # 90 lines are left, and a window of an hour.
        (10, 0, 9, True),
        # Measured a minute ago, and nothing since.
        (10, 60, 9 * 2.718, True),
        (0.01, 0, 9000, False),
        # An outage of ten minutes.
        (10, 600, None, None),
        (0, 0, None, None),
        # So long ago that Postgres could not tell it from zero.
        (10, 1e6, None, None),
    ],
)
async def test_the_forecast(
    api_client: httpx.AsyncClient,
    database: Database,
    lines_per_second: float,
    seconds_ago: float,
    forecast: float | None,
    in_window: bool | None,
) -> None:
    batch = await make_batch(
        database,
        status=BatchStatus.IN_PROGRESS,
        total=100,
        created_at=ago(3600),
        window=timedelta(hours=2),
    )
    await make_shard(
        database,
        batch,
        line_numbers=list(range(1, 101)),
        succeeded=10,
        lines_per_second=lines_per_second,
        lines_per_second_at=ago(seconds_ago),
    )
    told = await ask(api_client, batch)
    assert told["forecast_in_window"] is in_window
    if forecast is None:
        assert told["forecast_end_at"] is None
    else:
        assert told["forecast_end_at"] - time.time() == pytest.approx(forecast, rel=0.2, abs=5)


async def test_a_paused_batch_has_no_forecast(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS, total=3)
    await make_shard(database, batch, lines_per_second=10, lines_per_second_at=ago(0))
    assert (await ask(api_client, batch))["forecast_in_window"] is True
    await api_client.post(f"/v1/batches/{batch.id}/pause")
    told = await ask(api_client, batch)
    assert (told["paused"], told["status"]) == (True, "in_progress")
    assert (told["forecast_end_at"], told["forecast_in_window"]) == (None, None)
    assert told["seconds_left"] > 0


async def test_a_batch_that_ended_while_paused_is_not_paused(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    batch = await make_batch(database, status=BatchStatus.CANCELLED, paused_at=ago(9))
    assert (await ask(api_client, batch))["paused"] is False


async def test_a_rate_over_several_writes(runtime: Runtime) -> None:
    """Lines that end within a moment count as one sixtieth each, however many writes they took."""
    batch = await started_batch(runtime, input_file(12))
    await run_shards(runtime)
    shards = await shards_of(runtime.database, batch)
    rate = sum(shard.lines_per_second for shard in shards)
    assert rate == pytest.approx(12 / 60, rel=0.3)
    assert all(shard.lines_per_second_at for shard in shards)


async def test_idle_writes_leave_the_rate_alone(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    """A rate that faded with every renewal of the lease would in the end be an error of Postgres'."""
    gate = Gate(scripted, lets_through=0)
    batch = await started_batch(scripted_runtime, input_file(1))
    async with scripted_runtime.database.begin() as session:
        old = {"lines_per_second": 0.25, "lines_per_second_at": ago(1e9)}
        await session.execute(update(Shard).values(old))
    running = asyncio.create_task(run_shards(scripted_runtime))
    await wait_until(lambda: gate.held == 1)

    async def is_renewed() -> bool:
        [shard] = await shards_of(scripted_runtime.database, batch)
        return shard.in_flight == 1

    await wait_until(is_renewed)
    [shard] = await shards_of(scripted_runtime.database, batch)
    assert shard.lines_per_second == 0.25
    gate.open()
    await asyncio.wait_for(running, timeout=10)
    # Of what was thirty years ago nothing is left.
    [shard] = await shards_of(scripted_runtime.database, batch)
    assert shard.lines_per_second == pytest.approx(1 / 60)
    assert (await reload(scripted_runtime.database, batch)).status == BatchStatus.FINALIZING


async def test_one_statement_and_none_over_the_results(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS)
    await ask(api_client, batch)
    seen: list[str] = []

    def note(_1: Any, _2: Any, statement: str, *_3: Any) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        await ask(api_client, batch)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert len(seen) == 1
    assert "results" not in seen[0]


async def test_another_projects_batch_is_not_found(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    batch = await make_batch(database)
    key = await make_key(database, await make_project(database))
    answer = await api_client.get(
        f"/v1/batches/{batch.id}/progress", headers={"authorization": f"Bearer {key}"}
    )
    refusal(answer, 404, f"No batch found with id '{batch.id}'.")
    for never in ("batch_never", "%00", "x" * 300):
        answer = await api_client.get(f"/v1/batches/{never}/progress")
        assert answer.status_code == 404
