"""The recorder: every result once, counted exactly, under a live lease; and nothing lost on the way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from models import Batch, Result, Shard
from models.database import Database
from models.lifecycle import BatchStatus
from models.queries import advance
from tests.factories import make_batch, make_shard
from tests.fixtures.database import Postgres
from tests.fixtures.runtime import Switch, count_results, run_settings, shards_of, wait_until
from worker.answer import Usage
from worker.claim import ClaimedShard, claim_shard
from worker.lease import close_shard
from worker.recorder import Recorder, Row
from worker.settings import RunSettings

LINES = list(range(1, 1001))


@dataclass
class Heard:
    """What a recorder has called back."""

    statuses: list[BatchStatus] = field(default_factory=list)
    lost: int = 0
    pauses: int = 0
    may_give_up: bool = False

    def lose(self) -> None:
        self.lost += 1

    def pause(self) -> None:
        self.pauses += 1


@dataclass
class Desk:
    """A claimed shard of a thousand lines, and recorders for it."""

    database: Database
    batch: Batch
    shard: ClaimedShard
    heard: Heard = field(default_factory=Heard)

    @asynccontextmanager
    async def recorder(self, **changes: Any) -> AsyncIterator[Recorder]:
        """A recorder that is closed at the end of the block."""
        made = self.open(run_settings(**changes))
        yield made
        await asyncio.wait_for(made.close(), timeout=20)

    def open(self, settings: RunSettings) -> Recorder:
        return Recorder(
            self.database,
            self.shard,
            settings=settings,
            on_status=self.heard.statuses.append,
            on_lost=self.heard.lose,
            may_give_up=lambda: self.heard.may_give_up,
            on_paused=self.heard.pause,
            in_flight=lambda: 7,
        )

    async def row(self) -> Shard:
        [shard] = await shards_of(self.database, self.batch)
        return shard

    async def counts(self) -> tuple[int, int, int]:
        """The rows there are, and the shard's two counters."""
        shard = await self.row()
        return await count_results(self.database, self.batch), shard.succeeded, shard.failed


@pytest.fixture
async def desk(database: Database) -> Desk:
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS, input_file_pk=1)
    await make_shard(database, batch, line_numbers=LINES)
    shard = await claim_shard(database, owner="me", lease_seconds=2)
    assert shard is not None
    return Desk(database, batch, shard)


def row(line_no: int, *, succeeded: bool = True, line: bytes = b"{}\n") -> Row:
    return Row(line_no, succeeded, line, Usage(3, 1, 2, 1, 5))


async def test_results_counters_and_lease_are_written_together(desk: Desk) -> None:
    before = (await desk.row()).lease_until
    async with desk.recorder() as recorder:
        for line_no in range(1, 31):
            recorder.add(row(line_no, succeeded=line_no % 3 != 0, line=b"%d\n" % line_no))

        async def is_written() -> bool:
            return await desk.counts() == (30, 20, 10)

        # Without being closed.
        await wait_until(is_written)
        after = (await desk.row()).lease_until
    assert before is not None
    assert after is not None
    assert after > before
    async with desk.database.begin() as session:
        results = list(await session.scalars(select(Result).order_by(Result.line_no)))
    assert [result.line for result in results] == [b"%d\n" % n for n in range(1, 31)]
    assert {(r.input_tokens, r.cached_tokens, r.output_tokens) for r in results} == {(3, 1, 2)}
    assert {(r.reasoning_tokens, r.total_tokens) for r in results} == {(1, 5)}
    assert (desk.heard.lost, desk.heard.statuses) == (0, [])


async def test_closing_writes_everything_at_once(desk: Desk) -> None:
    # Many more than fit into one write, and a time that would never come.
    async with desk.recorder(record_seconds=0.6, record_rows=7) as recorder:
        for line_no in LINES:
            recorder.add(row(line_no))
    assert await desk.counts() == (1000, 1000, 0)
    assert await close_shard(desk.database, desk.shard)


async def test_a_repeated_result_is_kept_and_counted_once(desk: Desk) -> None:
    for _ in range(3):
        async with desk.recorder() as recorder:
            for _ in range(2):
                for line_no in (1, 2):
                    # The first that was written stays.
                    recorder.add(row(line_no, succeeded=True))
                    recorder.add(row(line_no, succeeded=False))
    assert await desk.counts() == (2, 2, 0)


async def test_the_lease_is_renewed_without_any_result(desk: Desk) -> None:
    async with desk.recorder():
        first = (await desk.row()).lease_until
        assert first is not None

        async def is_renewed() -> bool:
            until = (await desk.row()).lease_until
            return until is not None and until > first

        await wait_until(is_renewed)
    assert await desk.counts() == (0, 0, 0)


async def test_the_batch_s_status_comes_back_with_the_heartbeat(desk: Desk) -> None:
    async with desk.recorder():
        async with desk.database.begin() as session:
            assert await advance(session, desk.batch.pk, BatchStatus.CANCELLING)
        await wait_until(lambda: BatchStatus.CANCELLING in desk.heard.statuses)
    assert desk.heard.lost == 0


async def test_a_pause_comes_back_with_the_heartbeat_and_ends_nothing(desk: Desk) -> None:
    async with desk.recorder() as recorder:
        await set_paused_at(desk, func.now())
        await wait_until(lambda: desk.heard.pauses > 1)
        recorder.add(row(1))
    assert (await desk.counts(), desk.heard.statuses, desk.heard.lost) == ((1, 1, 0), [], 0)
    # Resumed, or on its way out: no pause any more.
    heard = desk.heard.pauses
    for status in (None, BatchStatus.CANCELLING):
        async with desk.database.begin() as session:
            if status is not None:
                assert await advance(session, desk.batch.pk, status, paused_at=func.now())
        if status is None:
            await set_paused_at(desk, None)
        async with desk.recorder() as recorder:
            recorder.add(row(2))
    assert desk.heard.pauses == heard
    assert desk.heard.statuses == [BatchStatus.CANCELLING]


async def set_paused_at(desk: Desk, moment: Any) -> None:
    async with desk.database.begin() as session:
        await session.execute(update(Batch).values(paused_at=moment))


async def test_what_only_the_worker_knows_is_written_too(desk: Desk) -> None:
    async with desk.recorder() as recorder:
        for line_no in (1, 2, 3):
            recorder.add(row(line_no, succeeded=line_no > 1))
        recorder.retries += 4
    async with desk.recorder() as recorder:
        recorder.add(row(3))
        recorder.add(row(4))
        recorder.retries += 1
    shard = await desk.row()
    assert (shard.in_flight, shard.retries) == (7, 5)
    # Of the line that was there already nothing is counted twice.
    assert (shard.input_tokens, shard.cached_tokens, shard.output_tokens) == (12, 4, 8)
    assert (shard.reasoning_tokens, shard.total_tokens) == (4, 20)
    assert shard.lines_per_second == pytest.approx(4 / 60, rel=0.2)
    await close_shard(desk.database, desk.shard)
    assert (await desk.row()).in_flight == 0


async def test_absurd_numbers_of_tokens_stop_nothing(desk: Desk) -> None:
    most = 2**53
    async with desk.database.begin() as session:
        await session.execute(update(Shard).values(total_tokens=10**18))
    usage = Usage(most, most, most, most, most)
    async with desk.recorder(record_rows=1000) as recorder:
        for line_no in LINES:
            recorder.add(row(line_no)._replace(usage=usage))
    shard = await desk.row()
    assert await desk.counts() == (1000, 1000, 0)
    assert shard.total_tokens == 10**18


async def test_results_of_a_cancelled_batch_are_still_taken(desk: Desk) -> None:
    async with desk.database.begin() as session:
        assert await advance(session, desk.batch.pk, BatchStatus.CANCELLING)
    async with desk.recorder() as recorder:
        recorder.add(row(1))
    assert await desk.counts() == (1, 1, 0)


async def take_over(desk: Desk) -> ClaimedShard:
    """Let the lease lapse and another claim the shard."""
    async with desk.database.begin() as session:
        await session.execute(update(Shard).values(lease_until=datetime.now(UTC)))
    claims: list[ClaimedShard] = []

    async def is_claimed() -> bool:
        shard = await claim_shard(desk.database, owner="me", lease_seconds=2)
        claims.extend([shard] if shard else [])
        return bool(claims)

    await wait_until(is_claimed)
    return claims[0]


async def test_who_has_lost_the_lease_writes_nothing(desk: Desk) -> None:
    second = await take_over(desk)
    async with desk.recorder() as recorder:
        recorder.add(row(1))
        await wait_until(lambda: desk.heard.lost == 1)
        # What comes later is not taken either, and does not hold up the end.
        recorder.add(row(2))
    assert await desk.counts() == (0, 0, 0)
    assert desk.heard.lost == 1
    # Not even the very same process, in another claim, is harmed.
    assert (await desk.row()).lease_owner == second.lease_owner


async def test_two_holders_one_after_the_other_count_each_line_once(desk: Desk) -> None:
    slow = desk.open(run_settings(lease_seconds=200, record_seconds=60))
    for line_no in range(1, 11):
        slow.add(row(line_no))
    async with Desk(desk.database, desk.batch, await take_over(desk)).recorder() as recorder:
        for line_no in range(1, 6):
            recorder.add(row(line_no))
    await slow.close()
    assert desk.heard.lost == 1
    assert await desk.counts() == (5, 5, 0)


async def test_a_shard_that_is_gone_is_lost(desk: Desk) -> None:
    async with desk.recorder() as recorder:
        async with desk.database.begin() as session:
            await session.delete(await session.get_one(Shard, desk.shard.pk))
        recorder.add(row(1))
    assert desk.heard.lost == 1
    assert await count_results(desk.database, desk.batch) == 0


async def test_what_comes_while_the_database_is_away_is_written_when_it_is_back(
    desk: Desk, outage: Switch, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk.recorder() as recorder:
        recorder.add(row(1))

        async def is_written() -> bool:
            return await count_results(desk.database, desk.batch) == 1

        await wait_until(is_written)
        assert not recorder.is_behind
        await outage()
        for line_no in range(1, 21):
            recorder.add(row(line_no))
        # No new call is begun once the lease has not been renewed for long.
        await wait_until(lambda: recorder.is_behind)
        await outage()
        await wait_until(lambda: not recorder.is_behind)
    assert await desk.counts() == (20, 20, 0)
    assert desk.heard.lost == 0
    # One outage, one warning.
    assert caplog.text.count("could not record") == 1


async def test_closing_waits_for_the_database(desk: Desk, outage: Switch) -> None:
    recorder = desk.open(run_settings())
    await outage()
    recorder.add(row(1))
    closing = asyncio.create_task(recorder.close())
    # Longer than the lease: what has been paid for is not given up for that.
    await asyncio.wait({closing}, timeout=2.5)
    assert not closing.done()
    await outage()
    await asyncio.wait_for(closing, timeout=20)
    assert await desk.counts() == (1, 1, 0)


async def test_a_worker_that_is_stopped_does_not_wait_for_ever(desk: Desk, outage: Switch) -> None:
    recorder = desk.open(run_settings())
    await outage()
    recorder.add(row(1))
    desk.heard.may_give_up = True
    await asyncio.wait_for(recorder.close(), timeout=20)
    await outage()
    assert await desk.counts() == (0, 0, 0)


@pytest.fixture
def full_disk(postgres: Postgres, database_name: str) -> Switch:
    """Let the disk be full, with the first call: nothing can be added; and not so with the second."""
    statements = [
        "ALTER TABLE results ADD CONSTRAINT full_disk CHECK (false)",
        "ALTER TABLE results DROP CONSTRAINT full_disk",
    ]

    async def switch() -> None:
        await asyncio.to_thread(postgres.execute, statements.pop(0), database=database_name)

    return switch


async def test_a_shard_is_kept_while_nothing_can_be_recorded(
    desk: Desk, full_disk: Switch, caplog: pytest.LogCaptureFixture
) -> None:
    """Or others would take it, call its lines again, and could not record them either."""
    await full_disk()
    async with desk.recorder() as recorder:
        for line_no in (1, 2, 3):
            recorder.add(row(line_no))
        await wait_until(lambda: recorder.is_behind)
        first = (await desk.row()).lease_until
        assert first is not None

        async def is_kept_for_longer_than_a_lease() -> bool:
            until = (await desk.row()).lease_until
            return until is not None and until > first + timedelta(seconds=2.2)

        await wait_until(is_kept_for_longer_than_a_lease)
        assert desk.heard.lost == 0
        await full_disk()
        await wait_until(lambda: not recorder.is_behind)
        assert await desk.counts() == (3, 3, 0)
    assert caplog.text.count("could not record") == 1


async def test_what_cannot_be_recorded_does_not_hold_up_a_batch_that_is_to_be_closed(
    desk: Desk, full_disk: Switch
) -> None:
    await full_disk()
    recorder = desk.open(run_settings())
    recorder.add(row(1))
    async with desk.database.begin() as session:
        assert await advance(session, desk.batch.pk, BatchStatus.FINALIZING)
    await asyncio.wait_for(recorder.close(), timeout=20)
    assert BatchStatus.FINALIZING in desk.heard.statuses
    assert await desk.counts() == (0, 0, 0)


async def test_a_write_that_was_done_though_it_seemed_to_fail(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection broke between the commit and its confirmation."""
    write = Recorder._write
    writes: list[int] = []

    async def doubtful(self: Recorder, rows: list[Row]) -> str | None:
        status = await write(self, rows)
        writes.append(len(rows))
        if len(writes) == 1:
            raise ConnectionResetError
        return status

    monkeypatch.setattr(Recorder, "_write", doubtful)
    async with desk.recorder() as recorder:
        for line_no in range(1, 6):
            recorder.add(row(line_no, succeeded=line_no != 5))
    # In between, only the lease is renewed.
    assert writes[:3] == [5, 0, 5]
    assert await desk.counts() == (5, 4, 1)


async def test_a_write_is_of_bounded_size(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[list[int]] = []
    write = Recorder._write

    async def watched(self: Recorder, rows: list[Row]) -> str | None:
        writes.append([len(row.line) for row in rows])
        return await write(self, rows)

    monkeypatch.setattr(Recorder, "_write", watched)
    monkeypatch.setattr("worker.recorder._WRITE_BYTES", 1000)
    monkeypatch.setattr("worker.recorder._BEHIND_BYTES", 2000)
    sizes = [10, 500, 600, 5000, 400, 400, 400, 10, 990, 10]
    recorder = desk.open(run_settings())
    for line_no, size in enumerate(sizes, start=1):
        recorder.add(row(line_no, line=b"x" * size))
    was_behind = recorder.is_behind
    await recorder.close()
    # The calls waited until this was written.
    assert (was_behind, recorder.is_behind) == (True, False)
    assert [size for sizes in writes for size in sizes] == sizes
    assert all(sum(sizes) <= 1000 or len(sizes) == 1 for sizes in writes)
    async with desk.database.begin() as session:
        lengths = select(func.octet_length(Result.line)).order_by(Result.line_no)
        assert list(await session.scalars(lengths)) == sizes


async def test_a_fault_of_its_own_ends_the_work_and_comes_out(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def faulty(_: Recorder, __: list[Row]) -> BatchStatus | None:
        raise ZeroDivisionError

    monkeypatch.setattr(Recorder, "_write", faulty)
    recorder = desk.open(run_settings())
    recorder.add(row(1))
    await wait_until(lambda: desk.heard.lost == 1)
    with pytest.raises(ZeroDivisionError):
        await recorder.close()
