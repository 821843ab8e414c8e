"""The sweep: whatever was late, lost or forgotten is made right, however often it looks."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from models import Batch, File, FileChunk, Shard
from models.database import Database
from models.errors import Unavailable
from models.file import FileStatus
from models.ids import new_file_id
from models.lifecycle import FINAL, BatchStatus, ShardState
from models.storage import CHUNK_BYTES, open_upload
from tests.factories import input_file, make_batch, make_file, make_shard
from tests.fixtures.runtime import (
    RecordingDoorbell,
    all_lines_of,
    reload,
    rings,
    run_shards,
    shards_of,
    started_batch,
)
from worker.queue import CONTROL_QUEUE, RUN_QUEUE, RUN_WINDOW
from worker.runtime import Runtime
from worker.stages.finalize import finalize_batch
from worker.stages.sweep import sweep
from worker.stages.validate import validate_batch

LIVE: dict[str, Any] = {
    "lease_owner": "somebody",
    "lease_until": datetime.now(UTC) + timedelta(hours=1),
}
LAPSED: dict[str, Any] = {
    "lease_owner": "somebody",
    "lease_until": datetime.now(UTC) - timedelta(seconds=1),
}
PAST = timedelta(seconds=-1)


async def status_of(runtime: Runtime, batch: Batch) -> str:
    return (await reload(runtime.database, batch)).status


async def swept(runtime: Runtime) -> list[tuple[str, int]]:
    """What one sweep rings for."""
    rings(runtime).clear()
    await sweep(runtime)
    return rings(runtime)


async def test_nothing_to_do(runtime: Runtime) -> None:
    assert await swept(runtime) == []
    assert doorbell_of(runtime).has_swept


@pytest.mark.parametrize("status", sorted(FINAL))
async def test_what_has_ended_is_left_alone(runtime: Runtime, status: BatchStatus) -> None:
    batch = await make_batch(runtime.database, status=status, window=PAST)
    assert await swept(runtime) == []
    assert await status_of(runtime, batch) == status


async def test_a_step_that_fails_keeps_no_other_from_its_turn(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def stumble(_: Runtime) -> None:
        message = "a prompt"
        raise LookupError(message)

    waiting = await make_batch(runtime.database)
    monkeypatch.setattr("worker.stages.sweep._expire", stumble)
    assert await swept(runtime) == [("validate", waiting.pk)]
    assert "stumble: LookupError" in caplog.text
    assert "a prompt" not in caplog.text


async def test_a_window_that_has_closed(runtime: Runtime) -> None:
    batch = await make_batch(runtime.database, status=BatchStatus.IN_PROGRESS, window=PAST)
    await make_shard(runtime.database, batch)
    assert await swept(runtime) == [("finalize", batch.pk)]
    now = await reload(runtime.database, batch)
    assert now.status == BatchStatus.FINALIZING
    assert now.finalizing_at is not None


async def test_a_window_that_closes_while_lines_are_called(runtime: Runtime) -> None:
    batch = await make_batch(runtime.database, status=BatchStatus.IN_PROGRESS, window=PAST)
    shard = await make_shard(runtime.database, batch, state=ShardState.RUNNING)
    # Its worker hears of it with the next heartbeat; the files are written when it has gone.
    assert await swept(runtime) == []
    assert await status_of(runtime, batch) == BatchStatus.FINALIZING
    async with runtime.database.begin() as session:
        await session.execute(update(Shard).where(Shard.pk == shard.pk).values(LAPSED))
    assert await swept(runtime) == [("finalize", batch.pk)]


async def test_an_open_window_stays_open(runtime: Runtime) -> None:
    batch = await make_batch(runtime.database, status=BatchStatus.IN_PROGRESS)
    await make_shard(runtime.database, batch, state=ShardState.RUNNING)
    assert await swept(runtime) == []
    assert await status_of(runtime, batch) == BatchStatus.IN_PROGRESS


async def test_an_expired_batch_from_end_to_end(runtime: Runtime) -> None:
    batch = await started_batch(runtime, input_file(12))
    async with runtime.database.begin() as session:
        await session.execute(update(Batch).values(expires_at=func.now()))
    await sweep(runtime)
    await run_shards(runtime)
    await finalize_batch(runtime, batch.pk)
    batch = await reload(runtime.database, batch)
    assert (batch.status, batch.completed, batch.failed) == (BatchStatus.EXPIRED, 0, 0)
    lines = await all_lines_of(runtime.database, batch)
    assert {line["error"]["code"] for line in lines.values()} == {"batch_expired"}
    assert len(lines) == 12


@pytest.mark.parametrize(
    ("lease", "is_rung"),
    [({}, True), (LAPSED, True), (LIVE, False)],
    ids=["none", "lapsed", "live"],
)
@pytest.mark.parametrize(
    ("status", "bell"),
    [
        (BatchStatus.VALIDATING, "validate"),
        (BatchStatus.FINALIZING, "finalize"),
        (BatchStatus.CANCELLING, "finalize"),
    ],
)
async def test_a_bell_that_was_lost_is_rung_again(
    runtime: Runtime, status: BatchStatus, bell: str, lease: dict[str, Any], *, is_rung: bool
) -> None:
    batch = await make_batch(runtime.database, status=status, **lease)
    assert await swept(runtime) == ([(bell, batch.pk)] if is_rung else [])


async def test_the_most_urgent_batch_is_rung_for_first(runtime: Runtime) -> None:
    late = await make_batch(runtime.database, window=timedelta(hours=20))
    soon = await make_batch(runtime.database, window=timedelta(hours=1))
    assert await swept(runtime) == [("validate", soon.pk), ("validate", late.pk)]


async def test_runnable_shards_are_rung_for(runtime: Runtime) -> None:
    batch = await make_batch(runtime.database, status=BatchStatus.IN_PROGRESS)
    await make_shard(runtime.database, batch, no=0)
    await make_shard(runtime.database, batch, no=1, state=ShardState.RUNNING, **LAPSED)
    await make_shard(runtime.database, batch, no=2, state=ShardState.RUNNING)
    await make_shard(runtime.database, batch, no=3, state=ShardState.DONE)
    other = await make_batch(runtime.database, status=BatchStatus.CANCELLING, **LIVE)
    await make_shard(runtime.database, other)
    assert await swept(runtime) == [("run", 2)]


@pytest.mark.parametrize(
    ("waiting", "expected"), [(0, [("run", 3)]), (2, [("run", 1)]), (3, []), (9, [])]
)
async def test_no_more_bells_wait_than_there_are_shards(
    runtime: Runtime, waiting: int, expected: list[tuple[str, int]]
) -> None:
    batch = await make_batch(runtime.database, status=BatchStatus.IN_PROGRESS)
    for no in range(3):
        await make_shard(runtime.database, batch, no=no)
    doorbell_of(runtime).waiting = {RUN_QUEUE: waiting, CONTROL_QUEUE: 50}
    assert await swept(runtime) == expected


def doorbell_of(runtime: Runtime) -> RecordingDoorbell:
    assert isinstance(runtime.doorbell, RecordingDoorbell)
    return runtime.doorbell


async def test_a_busy_control_worker_is_not_rung_to_death(runtime: Runtime) -> None:
    first, second = [await make_batch(runtime.database) for _ in range(2)]
    # Some of the waiting bells may be the sweep's own.
    doorbell_of(runtime).waiting = {CONTROL_QUEUE: 2 + 5}
    assert await swept(runtime) == []
    doorbell_of(runtime).waiting = {CONTROL_QUEUE: 1 + 5, RUN_QUEUE: 50}
    assert await swept(runtime) == [("validate", first.pk), ("validate", second.pk)]


async def test_while_the_broker_is_away_the_rest_is_done(runtime: Runtime) -> None:
    await make_batch(runtime.database)
    expired = await make_batch(runtime.database, status=BatchStatus.IN_PROGRESS, window=PAST)
    await make_shard(runtime.database, expired)
    running = await make_batch(runtime.database, status=BatchStatus.IN_PROGRESS)
    await make_shard(runtime.database, running)
    doorbell_of(runtime).is_away = True
    assert await swept(runtime) == []
    assert await status_of(runtime, expired) == BatchStatus.FINALIZING


async def test_only_a_window_of_shards_is_rung_for(runtime: Runtime) -> None:
    batch = await make_batch(runtime.database, status=BatchStatus.IN_PROGRESS)
    for no in range(RUN_WINDOW + 6):
        await make_shard(runtime.database, batch, no=no)
    assert await swept(runtime) == [("run", RUN_WINDOW)]


async def test_a_batch_whose_last_worker_died_before_saying_so(runtime: Runtime) -> None:
    batch = await make_batch(runtime.database, status=BatchStatus.IN_PROGRESS)
    await make_shard(runtime.database, batch, state=ShardState.DONE)
    assert await swept(runtime) == [("finalize", batch.pk)]
    assert await status_of(runtime, batch) == BatchStatus.FINALIZING


async def test_every_gap_on_the_way_is_closed_by_sweeps_alone(runtime: Runtime) -> None:
    """No bell ever arrives: a sweep and what it rings for are all that happens."""
    file = await make_file(runtime.database, input_file(12))
    batch = await make_batch(runtime.database, input_file_id=file.id)
    seen = []
    for _ in range(10):
        for bell, number in list(await swept(runtime)):
            seen.append(bell)
            match bell:
                case "validate":
                    await validate_batch(runtime, number)
                case "run":
                    await run_shards(runtime)
                case "finalize":
                    await finalize_batch(runtime, number)
    assert await status_of(runtime, batch) == BatchStatus.COMPLETED
    assert seen == ["validate", "run", "finalize"]


async def test_many_sweeps_at_once_do_no_harm(runtime: Runtime, other_runtime: Runtime) -> None:
    expired = [
        await make_batch(runtime.database, status=BatchStatus.IN_PROGRESS, window=PAST)
        for _ in range(5)
    ]
    done = await make_batch(runtime.database, status=BatchStatus.IN_PROGRESS)
    await make_shard(runtime.database, done, state=ShardState.DONE)
    files = [await make_file(runtime.database, deleted_at=datetime.now(UTC)) for _ in range(8)]
    await asyncio.gather(*(sweep(worker) for worker in [runtime, other_runtime] * 3))
    for batch in [*expired, done]:
        assert await status_of(runtime, batch) == BatchStatus.FINALIZING
    assert await kept_files(runtime.database) == []
    assert len(files) == 8


async def kept_files(database: Database) -> list[int]:
    """The files whose bytes are still there."""
    async with database.begin() as session:
        with_bytes = select(FileChunk.file_pk).distinct().order_by(FileChunk.file_pk)
        kept = list(await session.scalars(with_bytes))
        not_purged = select(File.pk).where(File.purged_at.is_(None)).order_by(File.pk)
        assert kept == list(await session.scalars(not_purged))
        return kept


async def count_chunks(database: Database) -> int:
    async with database.begin() as session:
        return await session.scalar(select(func.count()).select_from(FileChunk)) or 0


@pytest.mark.parametrize(
    "values",
    [{"deleted_at": datetime.now(UTC)}, {"expires_at": datetime.now(UTC) - timedelta(seconds=1)}],
    ids=["deleted", "expired"],
)
async def test_files_that_are_gone_for_clients_are_purged(
    runtime: Runtime, values: dict[str, Any]
) -> None:
    kept = await make_file(runtime.database, b"x" * 600_000)
    await make_file(runtime.database, b"x" * 600_000, **values)
    soon = await make_file(runtime.database, expires_at=datetime.now(UTC) + timedelta(hours=1))
    await sweep(runtime)
    assert await kept_files(runtime.database) == [kept.pk, soon.pk]
    assert await count_chunks(runtime.database) == 4


async def test_the_place_of_a_purged_file_is_remembered_for_a_day(runtime: Runtime) -> None:
    hours_ago = [datetime.now(UTC) - timedelta(hours=hours) for hours in (23, 25)]
    for moment in hours_ago:
        await make_file(runtime.database, deleted_at=moment, purged_at=moment)
    await sweep(runtime)
    async with runtime.database.begin() as session:
        assert list(await session.scalars(select(File.purged_at))) == hours_ago[:1]


async def test_many_files_are_purged_little_by_little(runtime: Runtime) -> None:
    for _ in range(25):
        await make_file(runtime.database, deleted_at=datetime.now(UTC))
    await sweep(runtime)
    assert len(await kept_files(runtime.database)) == 5
    await sweep(runtime)
    assert await kept_files(runtime.database) == []


async def test_a_large_file_is_purged_little_by_little(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.stages.sweep.MAX_REMOVED_CHUNKS", 2)
    large = await make_file(
        runtime.database, b"x" * (5 * CHUNK_BYTES), deleted_at=datetime.now(UTC)
    )
    counts = [await count_chunks(runtime.database)]
    while await kept_files(runtime.database):
        await sweep(runtime)
        counts.append(await count_chunks(runtime.database))
    assert counts == [5, 3, 1, 0]
    async with runtime.database.begin() as session:
        assert (await session.get_one(File, large.pk)).purged_at is not None


async def test_a_large_upload_that_came_to_nothing_is_removed_by_the_sweep(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.storage.MAX_REMOVED_CHUNKS", 10)
    monkeypatch.setattr("worker.stages.sweep.MAX_REMOVED_CHUNKS", 10)
    upload = await open_upload(runtime.database, File(id=new_file_id(), purpose="x", filename="x"))
    await upload.write(b"x" * (16 * CHUNK_BYTES))
    await upload.discard()
    assert await count_chunks(runtime.database) == 16
    for left in (6, 0):
        # Nobody can go on with it, not even while some of its bytes are there.
        with pytest.raises(Unavailable):
            await upload.write(b"x" * (8 * CHUNK_BYTES))
        await sweep(runtime)
        assert await count_chunks(runtime.database) == left
    async with runtime.database.begin() as session:
        assert await session.scalar(select(func.count()).select_from(File)) == 0


async def test_an_upload_that_has_stalled_is_removed(runtime: Runtime) -> None:
    settings = runtime.control_settings.model_copy(update={"upload_stall_seconds": 60})
    runtime = replace(runtime, control_settings=settings)
    uploads = []
    for _ in range(2):
        file = File(id=new_file_id(), purpose="batch", filename="x")
        upload = await open_upload(runtime.database, file)
        await upload.write(b"x" * 3_000_000)
        uploads.append(upload)
    await make_file(runtime.database)
    async with runtime.database.begin() as session:
        # An old one that has been published is not stalled.
        await session.execute(
            update(File)
            .where(File.pk != uploads[1].file_pk)
            .values(touched_at=func.now() - timedelta(seconds=61))
        )
    await sweep(runtime)
    async with runtime.database.begin() as session:
        rows = await session.execute(select(File.pk, File.status).order_by(File.pk))
        kept = [tuple(row) for row in rows]
    assert kept[0] == (uploads[1].file_pk, FileStatus.UPLOADING)
    assert kept[1][1] == FileStatus.PROCESSED
    # The one that goes on is whole in the end.
    assert (await uploads[1].publish()).bytes == 3_000_000


@pytest.mark.parametrize("status", [s for s in BatchStatus if s not in FINAL])
async def test_an_input_stays_while_a_batch_needs_it(runtime: Runtime, status: BatchStatus) -> None:
    file = await make_file(runtime.database, deleted_at=datetime.now(UTC))
    await make_batch(runtime.database, status=status, input_file_pk=file.pk, **LIVE)
    await sweep(runtime)
    assert await kept_files(runtime.database) == [file.pk]


@pytest.mark.parametrize("status", sorted(FINAL))
async def test_an_input_goes_when_its_batches_have_ended(
    runtime: Runtime, status: BatchStatus
) -> None:
    file = await make_file(runtime.database, deleted_at=datetime.now(UTC))
    await make_batch(runtime.database, status=status, input_file_pk=file.pk)
    await sweep(runtime)
    assert await kept_files(runtime.database) == []


async def test_an_input_deleted_in_mid_batch_serves_it_to_the_end(runtime: Runtime) -> None:
    batch = await started_batch(runtime, input_file(12))
    async with runtime.database.begin() as session:
        await session.execute(update(File).values(deleted_at=func.now()))
    await sweep(runtime)
    await run_shards(runtime)
    await sweep(runtime)
    await finalize_batch(runtime, batch.pk)
    await sweep(runtime)
    batch = await reload(runtime.database, batch)
    assert (batch.status, batch.completed) == (BatchStatus.COMPLETED, 12)
    assert await shards_of(runtime.database, batch) == []
    async with runtime.database.begin() as session:
        ids = list(await session.scalars(select(File.id).where(File.purged_at.is_(None))))
    assert ids == [batch.output_file_id]


async def test_a_file_that_a_batch_is_taking_up_is_not_purged_from_under_it(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client deletes the file while validation has just found it."""
    file = await make_file(runtime.database, input_file(3))
    batch = await make_batch(runtime.database, input_file_id=file.id)
    deletions: list[asyncio.Task[None]] = []

    async def delete_and_sweep() -> None:
        async with runtime.database.begin() as session:
            await session.execute(update(File).values(deleted_at=func.now()))
        await sweep(runtime)

    take = validate_batch.__globals__["_take_input"]

    async def taking(*args: Any) -> File | None:
        found: File | None = await take(*args)
        deletions.append(asyncio.create_task(delete_and_sweep()))
        # The deletion waits for this transaction.
        await asyncio.wait(deletions, timeout=0.2)
        assert not deletions[0].done()
        return found

    monkeypatch.setattr("worker.stages.validate._take_input", taking)
    await validate_batch(runtime, batch.pk)
    await deletions[0]
    assert await kept_files(runtime.database) == [file.pk]
    assert await status_of(runtime, batch) == BatchStatus.IN_PROGRESS
