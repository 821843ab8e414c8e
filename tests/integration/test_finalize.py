"""Writing the files and closing the batch: all of it at once, every line once, whoever tries."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event, func, select, text, update

from cli.simulator import SimulatedServer
from models import Batch, File, FileChunk, Shard
from models.database import Database
from models.file import FileStatus
from models.ids import request_id
from models.lifecycle import FINAL, BatchStatus, ShardState
from models.queries import advance
from tests.factories import (
    input_file,
    input_line,
    json_lines,
    make_batch,
    make_file,
    make_result,
    make_shard,
)
from tests.fixtures.runtime import (
    all_lines_of,
    count_results,
    lines_of,
    read_file,
    reload,
    run_settings,
    run_shards,
    run_to_end,
    shards_of,
    started_batch,
    wait_until,
)
from worker.answer import NO_USAGE
from worker.claim import ClaimedShard, claim_shard
from worker.recorder import Recorder, Row
from worker.runtime import Runtime
from worker.stages import finalize
from worker.stages.finalize import finalize_batch

EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
CANCELLED = {
    "code": "batch_cancelled",
    "message": "This request was not executed because the batch was cancelled.",
}


async def partly_run(
    runtime: Runtime,
    *,
    succeeded: range = range(0),
    failed: range = range(0),
    content: bytes | None = None,
    **values: Any,
) -> Batch:
    """A batch of twelve lines in progress, some of which have their results."""
    batch = await started_batch(runtime, content or input_file(12), **values)
    for line_no in succeeded:
        await make_result(runtime.database, batch, line_no)
    for line_no in failed:
        await make_result(runtime.database, batch, line_no, succeeded=False)
    return batch


async def move(runtime: Runtime, batch: Batch, to: BatchStatus) -> None:
    async with runtime.database.begin() as session:
        assert await advance(session, batch.pk, to)


async def ended(runtime: Runtime, batch: Batch, by: BatchStatus) -> Batch:
    await move(runtime, batch, by)
    await finalize_batch(runtime, batch.pk)
    return await reload(runtime.database, batch)


async def file_of(database: Database, file_id: str | None) -> File:
    async with database.begin() as session:
        return (await session.scalars(select(File).where(File.id == file_id))).one()


def numbers(lines: list[dict[str, Any]]) -> list[int]:
    return [int(line["custom_id"].removeprefix("request-")) for line in lines]


async def leftovers(database: Database, batch: Batch) -> tuple[int, int]:
    """The batch's result and shard rows."""
    return await count_results(database, batch), len(await shards_of(database, batch))


async def test_successes_and_failures_go_into_their_files_in_line_order(
    runtime: Runtime, model_server: SimulatedServer
) -> None:
    model_server.settings.bad_request_marker = "question 1"  # and 10, 11, 12
    batch = await run_to_end(runtime, await started_batch(runtime, input_file(12)))
    assert batch.status == BatchStatus.COMPLETED
    assert (batch.total, batch.completed, batch.failed) == (12, 8, 4)
    output = await lines_of(runtime.database, batch.output_file_id)
    errors = await lines_of(runtime.database, batch.error_file_id)
    assert numbers(output) == list(range(2, 10))
    assert numbers(errors) == [1, 10, 11, 12]
    assert {line["response"]["status_code"] for line in output} == {200}
    assert {line["response"]["status_code"] for line in errors} == {400}
    assert {line["error"] is None for line in output + errors} == {True}
    assert [line["id"] for line in output] == [request_id(batch.id, n) for n in range(2, 10)]
    assert await leftovers(runtime.database, batch) == (0, 0)
    assert (batch.lease_owner, batch.lease_until) == (None, None)
    for moment in (batch.in_progress_at, batch.finalizing_at, batch.completed_at):
        assert moment is not None


async def test_the_files_are_ordinary_files(runtime: Runtime) -> None:
    batch = await ended(
        runtime,
        await partly_run(runtime, succeeded=range(1, 7), failed=range(7, 13)),
        BatchStatus.FINALIZING,
    )
    for file_id, name in ((batch.output_file_id, "output"), (batch.error_file_id, "error")):
        file = await file_of(runtime.database, file_id)
        assert (file.purpose, file.status) == ("batch_output", FileStatus.PROCESSED)
        assert file.filename == f"{batch.id}_{name}.jsonl"
        assert file.bytes == len(await read_file(runtime.database, file_id))
        assert file.deleted_at is None
        assert file.expires_at is not None
        assert file.expires_at - file.created_at == timedelta(days=30)


async def test_output_files_expire_when_the_batch_says(runtime: Runtime) -> None:
    batch = await partly_run(runtime, succeeded=range(1, 13), output_expires_after_seconds=3600)
    batch = await ended(runtime, batch, BatchStatus.FINALIZING)
    file = await file_of(runtime.database, batch.output_file_id)
    assert file.expires_at is not None
    assert file.expires_at - file.created_at == timedelta(hours=1)


async def test_no_success_means_no_output_file(runtime: Runtime) -> None:
    batch = await ended(
        runtime, await partly_run(runtime, failed=range(1, 13)), BatchStatus.FINALIZING
    )
    assert (batch.status, batch.output_file_id) == (BatchStatus.COMPLETED, None)
    assert (batch.total, batch.completed, batch.failed) == (12, 0, 12)
    assert len(await lines_of(runtime.database, batch.error_file_id)) == 12


async def test_no_failure_means_no_error_file(runtime: Runtime) -> None:
    batch = await ended(
        runtime, await partly_run(runtime, succeeded=range(1, 13)), BatchStatus.FINALIZING
    )
    assert (batch.status, batch.error_file_id) == (BatchStatus.COMPLETED, None)
    assert len(await lines_of(runtime.database, batch.output_file_id)) == 12
    async with runtime.database.begin() as session:
        files = select(func.count()).where(File.purpose == "batch_output")
        assert await session.scalar(files) == 1


async def test_usage_is_summed_over_all_lines(runtime: Runtime) -> None:
    batch = await partly_run(runtime, succeeded=range(1, 12))
    huge = {"input_tokens": 2**53, "output_tokens": 2**53, "total_tokens": 2**54}
    await make_result(runtime.database, batch, 12, succeeded=False, **huge)
    batch = await ended(runtime, batch, BatchStatus.FINALIZING)
    assert batch.usage == {
        "input_tokens": 33 + 2**53,
        "cached_tokens": 12,
        "output_tokens": 22 + 2**53,
        "reasoning_tokens": 12,
        "total_tokens": 55 + 2**54,
    }


async def test_an_expired_batch_keeps_what_has_finished(runtime: Runtime) -> None:
    batch = await partly_run(runtime, succeeded=range(3, 6), failed=range(6, 8))
    batch = await ended(runtime, batch, BatchStatus.FINALIZING)
    assert batch.status == BatchStatus.EXPIRED
    assert batch.expired_at is not None
    # Lines that never ran are in the error file, but they have not failed.
    assert (batch.total, batch.completed, batch.failed) == (12, 3, 2)
    output = await lines_of(runtime.database, batch.output_file_id)
    errors = await lines_of(runtime.database, batch.error_file_id)
    assert numbers(output) == [3, 4, 5]
    assert numbers(errors) == [6, 7, 1, 2, 8, 9, 10, 11, 12]
    for line in errors[2:]:
        assert line == {
            "id": request_id(batch.id, numbers([line])[0]),
            "custom_id": line["custom_id"],
            "response": None,
            "error": EXPIRED,
        }
    assert await leftovers(runtime.database, batch) == (0, 0)


async def test_a_cancelled_batch_keeps_what_has_finished(runtime: Runtime) -> None:
    batch = await partly_run(runtime, succeeded=range(1, 4))
    batch = await ended(runtime, batch, BatchStatus.CANCELLING)
    assert batch.status == BatchStatus.CANCELLED
    assert batch.cancelling_at is not None
    assert batch.cancelled_at is not None
    assert (batch.total, batch.completed, batch.failed) == (12, 3, 0)
    assert numbers(await lines_of(runtime.database, batch.output_file_id)) == [1, 2, 3]
    errors = await lines_of(runtime.database, batch.error_file_id)
    assert numbers(errors) == list(range(4, 13))
    assert [(line["response"], line["error"]) for line in errors] == [(None, CANCELLED)] * 9


async def test_a_batch_cancelled_after_its_last_line_is_cancelled_all_the_same(
    runtime: Runtime,
) -> None:
    batch = await partly_run(runtime, succeeded=range(1, 13))
    batch = await ended(runtime, batch, BatchStatus.CANCELLING)
    assert (batch.status, batch.completed) == (BatchStatus.CANCELLED, 12)
    assert batch.error_file_id is None


async def test_a_batch_cancelled_before_it_was_validated_has_no_files(runtime: Runtime) -> None:
    file = await make_file(runtime.database)
    batch = await make_batch(runtime.database, input_file_id=file.id)
    batch = await ended(runtime, batch, BatchStatus.CANCELLING)
    assert batch.status == BatchStatus.CANCELLED
    assert (batch.total, batch.output_file_id, batch.error_file_id) == (0, None, None)
    assert batch.usage is not None
    assert set(batch.usage.values()) == {0}


async def test_lines_that_never_ran_keep_their_odd_ids(runtime: Runtime) -> None:
    ids = ["é😀", 'quote"and\\', "tab\t", "", "\u0000", "x" * 3000]
    content = b"".join(
        json.dumps(input_line(1, custom_id=custom_id), ensure_ascii=number % 2 == 0).encode()
        + (b"\r\n" if number % 2 else b"\n\n")
        for number, custom_id in enumerate(ids)
    )
    batch = await partly_run(runtime, content=b"\xef\xbb\xbf" + content)
    batch = await ended(runtime, batch, BatchStatus.FINALIZING)
    errors = await lines_of(runtime.database, batch.error_file_id)
    assert [line["custom_id"] for line in errors] == ids


async def test_many_results_are_written_page_by_page(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages end by rows or by bytes; neither loses a line, nor does a line larger than a page."""
    monkeypatch.setattr("worker.stages.finalize._PAGE_ROWS", 7)
    monkeypatch.setattr("worker.stages.finalize._PAGE_BYTES", 1000)
    batch = await started_batch(runtime, input_file(100))
    for line_no in range(1, 101):
        filler = "x" * (3000 if line_no % 17 == 0 else 300 if line_no % 5 == 0 else 0)
        line = json_lines({"custom_id": f"request-{line_no}", "filler": filler})
        # Every fourth has no result, so that the numbers have holes.
        if line_no % 4:
            await make_result(
                runtime.database, batch, line_no, line=line, succeeded=line_no % 3 > 0
            )
    batch = await ended(runtime, batch, BatchStatus.FINALIZING)
    output = await lines_of(runtime.database, batch.output_file_id)
    errors = await lines_of(runtime.database, batch.error_file_id)
    ran = [n for n in range(1, 101) if n % 4]
    assert numbers(output) == [n for n in ran if n % 3]
    assert numbers(errors) == [n for n in ran if not n % 3] + list(range(4, 101, 4))
    assert (batch.completed, batch.failed) == (50, 25)


async def test_many_results_are_dropped_page_by_page(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.stages.finalize._PAGE_ROWS", 4)
    batch = await partly_run(runtime, succeeded=range(1, 13))
    dropped: list[int] = []

    def note(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("DELETE FROM results"):
            dropped.append(cursor.rowcount)

    event.listen(Engine, "after_cursor_execute", note)
    try:
        await ended(runtime, batch, BatchStatus.FINALIZING)
    finally:
        event.remove(Engine, "after_cursor_execute", note)
    assert dropped == [4, 4, 4]
    assert await count_results(runtime.database, batch) == 0


async def test_large_lines_cross_chunks(runtime: Runtime) -> None:
    batch = await partly_run(runtime, succeeded=range(4, 13))
    for line_no in range(1, 4):
        text = str(line_no) * 3_000_000
        line = json_lines({"custom_id": f"request-{line_no}", "text": text})
        await make_result(runtime.database, batch, line_no, line=line)
    batch = await ended(runtime, batch, BatchStatus.FINALIZING)
    output = await lines_of(runtime.database, batch.output_file_id)
    assert [line["text"] for line in output[:3]] == [str(n) * 3_000_000 for n in (1, 2, 3)]
    file = await file_of(runtime.database, batch.output_file_id)
    async with runtime.database.begin() as session:
        chunks = select(func.count()).where(FileChunk.file_pk == file.pk)
        assert await session.scalar(chunks) == -(-file.bytes // file.chunk_bytes) > 30


@pytest.mark.parametrize(
    "status", [s for s in BatchStatus if s not in {BatchStatus.FINALIZING, BatchStatus.CANCELLING}]
)
async def test_a_batch_in_another_status_is_left_alone(
    runtime: Runtime, status: BatchStatus
) -> None:
    batch = await make_batch(runtime.database, status=status)
    await finalize_batch(runtime, batch.pk)
    now = await reload(runtime.database, batch)
    assert (now.status, now.lease_owner, now.usage) == (status, None, None)


async def test_a_batch_that_is_not_there(runtime: Runtime) -> None:
    await finalize_batch(runtime, 12345)


@pytest.mark.parametrize("status", [BatchStatus.CANCELLING, BatchStatus.FINALIZING])
async def test_while_a_worker_is_at_work_nothing_is_written(
    runtime: Runtime, status: BatchStatus
) -> None:
    batch = await partly_run(runtime, succeeded=range(1, 4))
    shard = await claim_shard(runtime.database, owner="somebody", lease_seconds=60)
    assert shard is not None
    now = await ended(runtime, batch, status)
    assert (now.status, now.lease_owner) == (status, None)
    await lapse(runtime, shard)
    await finalize_batch(runtime, batch.pk)
    assert (await reload(runtime.database, batch)).status in FINAL


def recorder_of(runtime: Runtime, shard: ClaimedShard, lost: list[bool]) -> Recorder:
    return Recorder(
        runtime.database,
        shard,
        settings=run_settings(),
        on_status=lambda _: None,
        on_lost=lambda: lost.append(True),
        may_give_up=lambda: False,
    )


async def lapse(runtime: Runtime, shard: ClaimedShard) -> None:
    async with runtime.database.begin() as session:
        lapsed = update(Shard).where(Shard.pk == shard.pk).values(lease_until=datetime.now(UTC))
        await session.execute(lapsed)


async def test_a_worker_that_comes_back_too_late_adds_nothing(runtime: Runtime) -> None:
    batch = await partly_run(runtime)
    shard = await claim_shard(runtime.database, owner="frozen", lease_seconds=2)
    assert shard is not None
    await lapse(runtime, shard)
    batch = await ended(runtime, batch, BatchStatus.FINALIZING)
    assert (batch.status, batch.completed) == (BatchStatus.EXPIRED, 0)
    lost: list[bool] = []
    recorder = recorder_of(runtime, shard, lost)
    recorder.add(Row(1, succeeded=True, line=b"{}\n", usage=NO_USAGE))
    await recorder.close()
    assert lost == [True]
    assert await leftovers(runtime.database, batch) == (0, 0)


Between = Callable[[str, Callable[[], Any]], None]


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Between:
    """Have a function awaited once, before a named step of the finalizer."""

    def put(step: str, act: Callable[[], Any]) -> None:
        original = getattr(finalize, step)
        acts = [act]

        async def stepping(*args: Any, **options: Any) -> Any:
            if acts:
                await acts.pop()()
            return await original(*args, **options)

        monkeypatch.setattr(finalize, step, stepping)

    return put


async def test_a_result_that_comes_between_two_reads_waits_and_is_refused(
    runtime: Runtime, between: Between
) -> None:
    """A worker that was frozen past its lease wakes while the files are being written."""
    batch = await partly_run(runtime, succeeded=range(2, 13))
    shard = await claim_shard(runtime.database, owner="frozen", lease_seconds=2)
    assert shard is not None
    await lapse(runtime, shard)
    recorders: list[Recorder] = []
    lost: list[bool] = []

    async def wake() -> None:
        recorders.append(recorder_of(runtime, shard, lost))
        recorders[0].add(Row(1, succeeded=True, line=b"late\n", usage=NO_USAGE))

        async def is_waiting() -> bool:
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            async with runtime.database.begin() as session:
                return bool(await session.scalar(text(waits)))

        await wait_until(is_waiting)

    between("_missing_places", wake)
    batch = await ended(runtime, batch, BatchStatus.FINALIZING)
    await recorders[0].close()
    assert lost == [True]
    assert (batch.status, batch.completed, batch.failed) == (BatchStatus.EXPIRED, 11, 0)
    assert len(await all_lines_of(runtime.database, batch)) == 12
    assert await leftovers(runtime.database, batch) == (0, 0)


async def test_a_claim_that_comes_between_is_respected(runtime: Runtime, between: Between) -> None:
    """It had begun before the batch moved on, and hands out a shard only now."""
    batch = await partly_run(runtime)

    async def claim() -> None:
        [first, *_] = await shards_of(runtime.database, batch)
        soon = datetime.now(UTC) + timedelta(seconds=60)
        values = {"state": "running", "lease_owner": "late#1", "lease_until": soon}
        async with runtime.database.begin() as session:
            await session.execute(update(Shard).where(Shard.pk == first.pk).values(values))

    between("_write_and_close", claim)
    now = await ended(runtime, batch, BatchStatus.FINALIZING)
    assert (now.status, now.lease_owner) == (BatchStatus.FINALIZING, None)
    assert (await shards_of(runtime.database, batch))[0].lease_owner == "late#1"


async def test_a_cancel_can_no_longer_come_between(runtime: Runtime, between: Between) -> None:
    batch = await partly_run(runtime, succeeded=range(1, 13))

    async def cancel() -> None:
        async with runtime.database.begin() as session:
            assert not await advance(session, batch.pk, BatchStatus.CANCELLING)

    between("_totals", cancel)
    batch = await ended(runtime, batch, BatchStatus.FINALIZING)
    assert batch.status == BatchStatus.COMPLETED


class Died(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", ["_plan", "_missing_places", "_totals", "advance"])
async def test_who_dies_on_the_way_leaves_nothing_behind(
    runtime: Runtime, between: Between, step: str
) -> None:
    batch = await partly_run(runtime, succeeded=range(1, 9), failed=range(9, 11))
    await move(runtime, batch, BatchStatus.FINALIZING)

    async def die() -> None:
        raise Died

    between(step, die)
    with pytest.raises(Died):
        await finalize_batch(runtime, batch.pk)
    now = await reload(runtime.database, batch)
    # Its lease is given back where it could still be.
    assert (now.status, now.lease_owner, now.usage) == (BatchStatus.FINALIZING, None, None)
    assert await leftovers(runtime.database, batch) == (10, 3)
    async with runtime.database.begin() as session:
        files = select(func.count()).where(File.purpose == "batch_output")
        assert await session.scalar(files) == 0
    await finalize_batch(runtime, batch.pk)
    now = await reload(runtime.database, batch)
    assert (now.status, now.completed, now.failed) == (BatchStatus.EXPIRED, 8, 2)
    assert len(await all_lines_of(runtime.database, now)) == 12


async def test_two_finalizers_at_once_write_the_files_once(
    runtime: Runtime, other_runtime: Runtime
) -> None:
    for _ in range(5):
        batch = await partly_run(runtime, succeeded=range(1, 9))
        await move(runtime, batch, BatchStatus.FINALIZING)
        await asyncio.gather(
            *(finalize_batch(worker, batch.pk) for worker in [runtime, other_runtime] * 2)
        )
        batch = await reload(runtime.database, batch)
        assert batch.status == BatchStatus.EXPIRED
        assert len(await all_lines_of(runtime.database, batch)) == 12
    async with runtime.database.begin() as session:
        files = select(func.count()).where(File.purpose == "batch_output")
        assert await session.scalar(files) == 10


async def test_a_finalizer_that_was_overtaken_writes_nothing(
    runtime: Runtime,
    other_runtime: Runtime,
    between: Between,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its lease lapsed while it was frozen, before it had locked the shards."""
    caplog.set_level("INFO")
    batch = await partly_run(runtime, succeeded=range(1, 13))
    await move(runtime, batch, BatchStatus.FINALIZING)

    async def overtake() -> None:
        async with runtime.database.begin() as session:
            lapsed = update(Batch).where(Batch.pk == batch.pk).values(lease_until=func.now())
            await session.execute(lapsed)
        await finalize_batch(other_runtime, batch.pk)

    between("_write_and_close", overtake)
    await finalize_batch(runtime, batch.pk)
    batch = await reload(runtime.database, batch)
    assert len(await all_lines_of(runtime.database, batch)) == 12
    assert "no longer ours to finalize" in caplog.text
    async with runtime.database.begin() as session:
        files = select(func.count()).where(File.purpose == "batch_output")
        assert await session.scalar(files) == 1


async def test_a_long_finalizing_keeps_its_lease(runtime: Runtime, between: Between) -> None:
    batch = await partly_run(runtime, succeeded=range(1, 13))
    held_until: list[datetime] = []

    async def wait_for_renewal() -> None:
        async def is_renewed() -> bool:
            until = (await reload(runtime.database, batch)).lease_until
            assert until is not None
            held_until.append(until)
            return held_until[-1] > held_until[0]

        await wait_until(is_renewed)

    between("_totals", wait_for_renewal)
    assert (await ended(runtime, batch, BatchStatus.FINALIZING)).status == BatchStatus.COMPLETED


async def test_the_input_may_have_been_deleted_meanwhile(runtime: Runtime) -> None:
    batch = await partly_run(runtime, succeeded=range(1, 4))
    async with runtime.database.begin() as session:
        await session.execute(update(File).values(deleted_at=func.now()))
    batch = await ended(runtime, batch, BatchStatus.CANCELLING)
    assert len(await all_lines_of(runtime.database, batch)) == 12


async def test_an_input_that_has_lost_bytes_does_not_keep_its_batch_from_ending(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    """What was answered is delivered, and every line has its place."""
    batch = await partly_run(runtime, succeeded=range(1, 4))
    async with runtime.database.begin() as session:
        await session.execute(delete(FileChunk).where(FileChunk.file_pk == batch.input_file_pk))
    batch = await ended(runtime, batch, BatchStatus.FINALIZING)
    assert batch.status == BatchStatus.EXPIRED
    assert numbers(await lines_of(runtime.database, batch.output_file_id)) == [1, 2, 3]
    errors = await lines_of(runtime.database, batch.error_file_id)
    assert [line["id"] for line in errors] == [request_id(batch.id, n) for n in range(4, 13)]
    assert {line["custom_id"] for line in errors} == {""}
    assert "has lost chunks" in caplog.text


async def test_lines_grouped_otherwise_than_in_file_order(runtime: Runtime) -> None:
    """Shards name their lines by number and place, in whatever order."""
    content = input_file(6)
    file = await make_file(runtime.database, content)
    offsets = [0]
    for line in content.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    batch = await make_batch(
        runtime.database, status=BatchStatus.IN_PROGRESS, input_file_pk=file.pk, total=6, model="m"
    )
    for no, group in enumerate(([6, 1, 4], [5, 3, 2])):
        await make_shard(
            runtime.database,
            batch,
            no=no,
            line_numbers=group,
            offsets=[offsets[n - 1] for n in group],
            lengths=[offsets[n] - offsets[n - 1] - 1 for n in group],
        )
    # One shard runs, the other never does.
    async with runtime.database.begin() as session:
        away = update(Shard).where(Shard.no == 1).values(state=ShardState.DONE, succeeded=3)
        await session.execute(away)
    await run_shards(runtime)
    batch = await reload(runtime.database, batch)
    assert batch.status == BatchStatus.FINALIZING
    await finalize_batch(runtime, batch.pk)
    batch = await reload(runtime.database, batch)
    assert numbers(await lines_of(runtime.database, batch.output_file_id)) == [1, 4, 6]
    assert numbers(await lines_of(runtime.database, batch.error_file_id)) == [2, 3, 5]
