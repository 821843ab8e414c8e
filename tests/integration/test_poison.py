"""What kills its worker each time (shards, validations, finalizing): none of it goes on for ever unseen."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError, OperationalError

from models import Batch, Shard
from models.database import Database
from models.lifecycle import BatchStatus, ShardState
from tests.factories import input_file, make_batch, make_file
from tests.fixtures.runtime import (
    Reply,
    Request,
    ScriptedServer,
    Switch,
    in_flight,
    lines_of,
    reload,
    rings,
    run_to_end,
    shards_of,
    started_batch,
    wait_until,
)
from tests.running import GOOD, finished, question, with_settings
from worker.answer import Usage
from worker.claim import ClaimedShard, claim_shard
from worker.lease import NOBODY, claim_batch, close_shard, rest_after_deaths, rest_batch
from worker.recorder import Recorder, Row
from worker.runtime import Runtime
from worker.settings import RunSettings, ValidateSettings
from worker.stages.finalize import finalize_batch
from worker.stages.sweep import sweep
from worker.stages.validate import validate_batch

SETTINGS = RunSettings(lease_seconds=2, record_seconds=0.05, suspect_lapses=3)


async def claimed(database: Database, **values: Any) -> ClaimedShard | None:
    return await claim_shard(database, owner="me", lease_seconds=2, suspect_lapses=3, **values)


async def die(database: Database) -> None:
    """What the death of whoever holds them leaves of all leases, some time later."""
    past = datetime.now(UTC) - timedelta(seconds=1)
    async with database.begin() as session:
        for table in (Shard, Batch):
            await session.execute(
                update(table).where(table.lease_until.is_not(None)).values(lease_until=past)
            )


@pytest.fixture(autouse=True)
async def settled(database: Database) -> None:
    """Lapsed leases count only when the server has been up for as long as a lease lasts."""

    async def is_up() -> bool:
        async with database.begin() as session:
            up = "SELECT pg_postmaster_start_time() < now() - interval '2 s'"
            return bool(await session.scalar(text(up)))

    await wait_until(is_up, "the server's settling")


async def lapses_of(runtime: Runtime, batch: Batch) -> list[int]:
    return [shard.lapses for shard in await shards_of(runtime.database, batch)]


async def set_lapses(runtime: Runtime, lapses: int) -> None:
    async with runtime.database.begin() as session:
        await session.execute(update(Shard).values(lapses=lapses))


async def record(runtime: Runtime, shard: ClaimedShard, line_no: int) -> None:
    recorder = Recorder(
        runtime.database,
        shard,
        settings=SETTINGS,
        on_status=lambda _: None,
        on_lost=lambda: None,
        may_give_up=lambda: False,
    )
    recorder.add(Row(line_no, succeeded=True, line=b"{}\n", usage=Usage()))
    await recorder.close()


async def test_only_leases_that_ran_out_in_vain_are_counted(runtime: Runtime) -> None:
    batch = await started_batch(runtime, input_file(5))
    for lapses in (0, 1, 2):
        shard = await claimed(runtime.database)
        assert shard is not None
        assert await lapses_of(runtime, batch) == [lapses]
        assert not shard.is_suspect
        await die(runtime.database)
    shard = await claimed(runtime.database)
    assert shard is not None
    assert (shard.is_suspect, shard.is_first_line_lost) == (True, False)
    # Given back: that is no death, and no proof of innocence.
    await close_shard(runtime.database, shard)
    shard = await claimed(runtime.database)
    assert shard is not None
    assert await lapses_of(runtime, batch) == [3]
    # A suspect that gets on begins to be tried anew, and stays one.
    await die(runtime.database)
    shard = await claimed(runtime.database)
    assert shard is not None
    assert await lapses_of(runtime, batch) == [4]
    await record(runtime, shard, 1)
    assert await lapses_of(runtime, batch) == [3]


async def test_a_line_that_is_recorded_clears_its_shard(runtime: Runtime) -> None:
    batch = await started_batch(runtime, input_file(5))
    for line_no in (1, 2, 3, 4):
        shard = await claimed(runtime.database)
        assert shard is not None
        await record(runtime, shard, line_no)
        assert await lapses_of(runtime, batch) == [0]
        await die(runtime.database)
    shard = await claimed(runtime.database)
    assert shard is not None
    assert not shard.is_suspect
    assert await lapses_of(runtime, batch) == [1]


async def test_a_process_takes_one_suspect_at_a_time(runtime: Runtime) -> None:
    batch = await started_batch(runtime, input_file(15))
    async with runtime.database.begin() as session:
        await session.execute(update(Shard).where(Shard.no == 0).values(lapses=3))
    # The third death makes it a suspect in the moment of the claim.
    async with runtime.database.begin() as session:
        lapsed = {"state": ShardState.RUNNING, "lease_owner": "dead", "lapses": 2}
        past = datetime.now(UTC) - timedelta(seconds=1)
        await session.execute(update(Shard).where(Shard.no == 1).values(lease_until=past, **lapsed))
    shard = await claimed(runtime.database, without_suspects=True)
    assert shard is not None
    assert (shard.no, shard.is_suspect) == (2, False)
    assert await claimed(runtime.database, without_suspects=True) is None
    suspects = [await claimed(runtime.database), await claimed(runtime.database)]
    assert [(shard.no, shard.is_suspect) for shard in suspects if shard] == [(0, True), (1, True)]
    assert await lapses_of(runtime, batch) == [3, 3, 0]


async def test_a_suspect_s_first_line_is_alone_and_then_come_twice_as_many(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    runtime = with_settings(scripted_runtime, max_in_flight=16)
    runtime.validate_settings = ValidateSettings(shard_lines=9)
    batch = await started_batch(runtime, input_file(9))
    await set_lapses(runtime, 3)
    waves: list[int] = []

    async def script(_: Request) -> Reply:
        waves.append(in_flight(runtime))
        return Reply(body=GOOD)

    scripted.script = script
    results = await finished(runtime, batch)
    assert [line["error"] for line in results.values()] == [None] * 9
    assert waves[0] == 1
    assert max(waves[:3]) <= 2
    assert max(waves[:7]) <= 4


async def test_a_line_that_is_tried_again_stays_alone(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    runtime = with_settings(scripted_runtime, max_in_flight=16)
    batch = await started_batch(runtime, input_file(5))
    await set_lapses(runtime, 3)
    asked: list[str] = []

    async def script(request: Request) -> Reply:
        asked.append(question(request))
        return Reply(status=500) if len(asked) < 3 else Reply(body=GOOD)

    scripted.script = script
    await finished(runtime, batch)
    assert asked[:3] == ["question 1"] * 3
    assert sorted(asked[3:]) == [f"question {number}" for number in (2, 3, 4, 5)]


async def test_the_line_that_killed_them_fails_alone(
    scripted_runtime: Runtime, scripted: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    batch = await started_batch(scripted_runtime, input_file(5))
    await set_lapses(scripted_runtime, 3)
    shard = await claimed(scripted_runtime.database)
    assert shard is not None
    await record(scripted_runtime, shard, 1)
    # Line 2 was alone next, and killed three in a row; the third death shows at the next claim.
    await set_lapses(scripted_runtime, 5)
    await die(scripted_runtime.database)
    with caplog.at_level(logging.WARNING):
        ended = await run_to_end(scripted_runtime, batch)
    assert ended.status == BatchStatus.COMPLETED
    assert (ended.completed, ended.failed, ended.total) == (4, 1, 5)
    assert sorted(map(question, scripted.requests)) == [f"question {n}" for n in (3, 4, 5)]
    [failed] = await lines_of(scripted_runtime.database, ended.error_file_id)
    assert (failed["custom_id"], failed["response"]) == ("request-2", None)
    assert failed["error"]["code"] == "worker_lost"
    assert "line 2 fails" in caplog.text


def break_down(monkeypatch: pytest.MonkeyPatch, step: str, error: Exception) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(step, fail)


async def rest_seconds(runtime: Runtime, batch: Batch) -> float:
    """For how long nobody may take it up."""
    now = await reload(runtime.database, batch)
    assert now.lease_until is not None
    assert now.lease_owner == NOBODY
    return (now.lease_until - datetime.now(UTC)).total_seconds()


async def test_a_validation_that_never_ends_fails_its_batch_after_a_few_tries(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await make_file(runtime.database, input_file(5))
    batch = await make_batch(runtime.database, input_file_id=file.id)
    break_down(monkeypatch, "worker.stages.validate._check", MemoryError())
    for tries in range(1, 6):
        with pytest.raises(MemoryError):
            await validate_batch(runtime, batch.pk)
        assert 2**tries - 1 < await rest_seconds(runtime, batch) <= 2**tries
        # A bell that comes during the pause finds it closed.
        await validate_batch(runtime, batch.pk)
        assert (await reload(runtime.database, batch)).tries == tries
        await die(runtime.database)
    await validate_batch(runtime, batch.pk)
    batch = await reload(runtime.database, batch)
    assert batch.status == BatchStatus.FAILED
    assert batch.errors is not None
    assert [error["code"] for error in batch.errors] == ["internal_error"]
    assert "5 tries" in batch.errors[0]["message"]


async def test_a_process_that_dies_in_validation_counts_like_an_error(runtime: Runtime) -> None:
    file = await make_file(runtime.database, input_file(5))
    batch = await make_batch(runtime.database, input_file_id=file.id)
    for _ in range(5):
        async with runtime.database.begin() as session:
            assert await claim_batch(
                session, batch.pk, BatchStatus.VALIDATING, owner="killed", lease_seconds=2
            )
        await die(runtime.database)
    await validate_batch(runtime, batch.pk)
    assert (await reload(runtime.database, batch)).status == BatchStatus.FAILED


async def test_the_database_s_troubles_fail_no_batch(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await make_file(runtime.database, input_file(5))
    batch = await make_batch(runtime.database, input_file_id=file.id)
    with monkeypatch.context() as patch:
        full = OperationalError("INSERT", {}, psycopg.errors.DiskFull())
        break_down(patch, "worker.stages.validate.start_batch", full)
        for _ in range(7):
            with pytest.raises(OperationalError):
                await validate_batch(runtime, batch.pk)
            # Always as long: what a full disk is written full of again must wait.
            assert 14 < await rest_seconds(runtime, batch) <= 15
            await die(runtime.database)
    await validate_batch(runtime, batch.pk)
    now = await reload(runtime.database, batch)
    assert (now.status, now.tries) == (BatchStatus.IN_PROGRESS, 0)


async def test_a_database_that_is_away_fails_no_batch(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, outage: Switch
) -> None:
    """Neither can the lease be given back then: that waits for its return."""
    file = await make_file(runtime.database, input_file(5))
    batch = await make_batch(runtime.database, input_file_id=file.id)

    is_away = asyncio.Event()

    async def check_in_an_outage(*_: object) -> None:
        await outage()
        is_away.set()
        async with runtime.database.begin() as session:
            await session.execute(text("SELECT 1"))

    with monkeypatch.context() as patch:
        patch.setattr("worker.stages.validate._check", check_in_an_outage)
        for _ in range(7):
            validating = asyncio.create_task(validate_batch(runtime, batch.pk))
            await is_away.wait()
            is_away.clear()
            done, _ = await asyncio.wait({validating}, timeout=0.2)
            assert not done
            await outage()
            with pytest.raises(DBAPIError):
                await validating
            assert (await reload(runtime.database, batch)).tries == 0
            await die(runtime.database)
    await validate_batch(runtime, batch.pk)
    assert (await reload(runtime.database, batch)).status == BatchStatus.IN_PROGRESS


async def test_tries_without_end_have_a_pause_all_the_same(runtime: Runtime) -> None:
    batch = await started_batch(runtime, input_file(5))
    await finished(runtime, batch)
    other = await started_batch(runtime, input_file(5))
    await finished(runtime, other)
    for dead in (batch, other):
        async with runtime.database.begin() as session:
            await session.execute(update(Batch).where(Batch.pk == dead.pk).values(tries=2000))
            assert await claim_batch(
                session, dead.pk, BatchStatus.FINALIZING, owner="me", lease_seconds=2
            )
    await rest_batch(runtime.database, batch.pk, RuntimeError(), owner="me")
    assert 59 < await rest_seconds(runtime, batch) <= 60
    async with runtime.database.begin() as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        await session.execute(update(Batch).where(Batch.pk == other.pk).values(lease_until=past))
    assert await rest_after_deaths(runtime.database) == [(other.id, 2001)]
    assert 59 < await rest_seconds(runtime, other) <= 60


async def test_finalizing_is_tried_for_ever_with_growing_pauses(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    batch = await started_batch(runtime, input_file(5))
    await finished(runtime, batch)
    pauses = []
    with monkeypatch.context() as patch:
        break_down(patch, "worker.stages.finalize._write_and_close", RuntimeError())
        for _ in range(8):
            with pytest.raises(RuntimeError):
                await finalize_batch(runtime, batch.pk)
            pauses.append(round(await rest_seconds(runtime, batch)))
            await die(runtime.database)
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    assert "try 8 to finish it failed" in caplog.text
    await finalize_batch(runtime, batch.pk)
    now = await reload(runtime.database, batch)
    assert (now.status, now.completed, now.tries) == (BatchStatus.COMPLETED, 5, 0)


async def test_a_finisher_s_second_death_is_followed_by_a_pause(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    batch = await started_batch(runtime, input_file(5))
    await finished(runtime, batch)
    for is_rung in (True, False):
        async with runtime.database.begin() as session:
            assert await claim_batch(
                session, batch.pk, BatchStatus.FINALIZING, owner="killed", lease_seconds=2
            )
        await die(runtime.database)
        rings(runtime).clear()
        await sweep(runtime)
        assert (("finalize", batch.pk) in rings(runtime)) == is_rung
    assert 3 < await rest_seconds(runtime, batch) <= 4
    assert "died while finishing it, at try 2" in caplog.text
    await die(runtime.database)
    await sweep(runtime)
    assert rings(runtime) == [("finalize", batch.pk)]
