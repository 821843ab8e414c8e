"""Leases: who gets a shard next, and that nobody gets one that is somebody else's."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import IntegrityError

from models import Batch, Shard
from models.database import Database
from models.lifecycle import BatchStatus, ShardState
from models.upstreams import ModelFilter
from tests.factories import make_batch, make_project, make_result, make_shard
from tests.fixtures.runtime import reload, shards_of, wait_until
from worker.claim import ClaimedShard, claim_shard
from worker.lease import (
    advance_if_all_done,
    claim_batch,
    close_shard,
    release_batch,
    renew_batch,
)

LEASE_SECONDS = 2.0


async def claim(database: Database, owner: str = "me") -> ClaimedShard | None:
    return await claim_shard(database, owner=owner, lease_seconds=LEASE_SECONDS)


async def claimed(database: Database, owner: str = "me") -> ClaimedShard:
    shard = await claim(database, owner)
    assert shard is not None
    return shard


async def end(database: Database, shard: ClaimedShard) -> None:
    async with database.begin() as session:
        await session.execute(delete(Shard).where(Shard.pk == shard.pk))


async def running_batch(database: Database, shards: int = 1, **values: Any) -> Batch:
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS, input_file_pk=1, **values)
    for no in range(shards):
        await make_shard(database, batch, no=no, line_numbers=[3 * no + n for n in (1, 2, 3)])
    return batch


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.fixture
async def settled(database: Database) -> None:
    """Lapsed leases count only when the server has been up for as long as a lease lasts."""

    async def is_up() -> bool:
        async with database.begin() as session:
            up = "SELECT pg_postmaster_start_time() < now() - make_interval(secs => :seconds)"
            return bool(await session.scalar(text(up), {"seconds": LEASE_SECONDS}))

    await wait_until(is_up, "the server's settling")


async def test_nothing_to_claim(database: Database) -> None:
    assert await claim(database) is None


async def test_a_claim_says_all_that_a_run_needs(database: Database) -> None:
    batch = await running_batch(database, window=timedelta(hours=1))
    shard = await claimed(database)
    assert (shard.batch_pk, shard.batch_id) == (batch.pk, batch.id)
    assert (shard.endpoint, shard.input_file_pk) == (batch.endpoint, 1)
    assert shard.seconds_left == pytest.approx(3600, abs=20)
    assert shard.lines == [(1, 0, 99), (2, 100, 99), (3, 200, 99)]
    [row] = await shards_of(database, batch)
    assert (row.state, row.lease_owner, row.claims) == (ShardState.RUNNING, shard.lease_owner, 1)
    assert row.lease_until is not None
    assert in_seconds(0) < row.lease_until < in_seconds(LEASE_SECONDS + 1)
    assert await claim(database) is None


async def test_a_claim_gives_only_the_lines_without_a_result(database: Database) -> None:
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS, input_file_pk=1)
    other = await running_batch(database)
    await make_shard(
        database, batch, line_numbers=[9, 2, 7], offsets=[50, 10, 30], lengths=[5, 6, 7], claims=1
    )
    await make_result(database, batch, 2)
    # A result of another batch is none of this one's.
    await make_result(database, other, 9)
    assert (await claimed(database)).lines == [(9, 50, 5), (7, 30, 7)]


@pytest.mark.parametrize("status", [s for s in BatchStatus if s is not BatchStatus.IN_PROGRESS])
async def test_only_a_running_batch_s_shards_are_claimed(
    database: Database, status: BatchStatus
) -> None:
    batch = await make_batch(database, status=status, input_file_pk=1)
    await make_shard(database, batch)
    assert await claim(database) is None


async def test_no_shard_is_claimed_past_its_batch_s_window(database: Database) -> None:
    await running_batch(database, window=timedelta(seconds=-1))
    assert await claim(database) is None


async def test_a_done_shard_is_not_claimed(database: Database) -> None:
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS, input_file_pk=1)
    await make_shard(database, batch, state=ShardState.DONE)
    assert await claim(database) is None


@pytest.mark.usefixtures("settled")
async def test_a_lapsed_lease_is_claimed_and_a_live_one_is_not(database: Database) -> None:
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS, input_file_pk=1)
    live = await make_shard(database, batch, state=ShardState.RUNNING)
    await make_shard(
        database, batch, no=1, state=ShardState.RUNNING, lease_until=in_seconds(-0.1), claims=4
    )
    shard = await claimed(database)
    assert shard.pk != live.pk
    assert shard.lease_owner == "me#5"
    assert await claim(database) is None


async def test_after_a_start_of_the_server_its_holders_come_first(database: Database) -> None:
    """A lease lapsed while the server was away: its holder may renew it before others claim it."""
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS, input_file_pk=1)
    await make_shard(database, batch, state=ShardState.RUNNING, lease_until=in_seconds(-1))
    # As if the server had started less than such a lease ago.
    assert await claim_shard(database, owner="me", lease_seconds=10**7) is None


async def test_the_batch_with_the_fewest_shards_at_work_comes_first(database: Database) -> None:
    big = await running_batch(database, shards=6, window=timedelta(hours=1))
    small = await running_batch(database, shards=2, window=timedelta(hours=20))
    order = [(await claimed(database)).batch_pk for _ in range(8)]
    assert order == [big.pk, small.pk, big.pk, small.pk, big.pk, big.pk, big.pk, big.pk]


@pytest.mark.usefixtures("settled")
async def test_a_lapsed_lease_does_not_count_as_work(database: Database) -> None:
    dead = await running_batch(database, window=timedelta(hours=20))
    for no in (1, 2):
        await make_shard(
            database, dead, no=no, state=ShardState.RUNNING, lease_until=in_seconds(-1)
        )
    busy = await running_batch(database, window=timedelta(hours=1))
    await make_shard(database, busy, no=1, state=ShardState.RUNNING)
    assert (await claimed(database)).batch_pk == dead.pk


async def test_among_equals_the_one_that_ends_first_comes_first(database: Database) -> None:
    late = await running_batch(database, shards=2, window=timedelta(hours=24))
    soon = await running_batch(database, shards=2, window=timedelta(hours=2))
    order = [(await claimed(database)) for _ in range(4)]
    assert [shard.batch_pk for shard in order] == [soon.pk, late.pk, soon.pk, late.pk]
    assert [shard.lines[0][0] for shard in order] == [1, 1, 4, 4]


async def order_of(database: Database, count: int, **values: Any) -> list[tuple[int, int] | None]:
    """(batch, number) of each of so many claims, one after the other."""
    order: list[tuple[int, int] | None] = []
    for _ in range(count):
        shard = await claim_shard(database, owner="me", lease_seconds=LEASE_SECONDS, **values)
        order.append(None if shard is None else (shard.batch_pk, shard.no))
    return order


async def test_projects_share_by_weight(database: Database) -> None:
    heavy = (await make_project(database, "heavy", weight=3)).project_pk
    light = (await make_project(database, "light")).project_pk
    # Two batches, and the deadline, give a project no more than its share.
    for _ in range(2):
        await running_batch(database, shards=8, project_pk=light, window=timedelta(hours=2))
    await running_batch(database, shards=12, project_pk=heavy)
    claims = [await claimed(database) for _ in range(12)]
    assert {shard.project_pk: shard.weight for shard in claims} == {heavy: 3, light: 1}
    for count in (4, 8, 12):
        turns = [shard.project_pk for shard in claims[:count]]
        assert (turns.count(heavy), turns.count(light)) == (3 * count // 4, count // 4)


async def test_of_projects_that_are_alike_none_is_always_the_first(database: Database) -> None:
    for name in ("a", "b"):
        project = await make_project(database, name)
        await running_batch(database, project_pk=project.project_pk)
    firsts = set()
    # Each comes first half of the time: missing one in 64 tries is as likely as 1 in 2^63.
    for _ in range(64):
        shard = await claimed(database)
        firsts.add(shard.project_pk)
        await close_shard(database, shard)
        if len(firsts) == 2:
            return
    pytest.fail("one project was first every time")


async def test_a_batch_close_to_its_deadline_goes_before_all_others(database: Database) -> None:
    other = (await make_project(database, weight=1000)).project_pk
    await running_batch(database, shards=2, project_pk=other, window=timedelta(minutes=20))

    def begun(hours: float, *, left: float) -> dict[str, Any]:
        created_at = datetime.now(UTC) - timedelta(hours=hours - left)
        return {"created_at": created_at, "window": timedelta(hours=hours)}

    # An eighth of 24 hours is three; that of 1 hour is 7.5 minutes.
    calm = await running_batch(database, **begun(24, left=3.1))
    calm_too = await running_batch(database, **begun(1, left=0.2))
    urgent = await running_batch(database, shards=2, **begun(24, left=2.9))
    more_urgent = await running_batch(database, shards=2, **begun(24, left=2))
    await make_shard(database, more_urgent, no=2, state=ShardState.RUNNING)

    claims = [await claimed(database) for _ in range(8)]
    turns = [shard.batch_pk for shard in claims]
    assert turns[:4] == [more_urgent.pk, more_urgent.pk, urgent.pk, urgent.pk]
    assert {calm.pk, calm_too.pk} < set(turns[4:])
    assert [shard.is_urgent for shard in claims] == [True] * 4 + [False] * 4
    assert claims[0].expires_at == more_urgent.expires_at


async def test_batches_that_are_left_out(database: Database) -> None:
    first = await running_batch(database, shards=2, window=timedelta(hours=2))
    urgent = await running_batch(
        database,
        created_at=datetime.now(UTC) - timedelta(hours=23),
    )
    last = await running_batch(database)
    without = [first.pk, urgent.pk]
    assert await order_of(database, 2, without_batches=without) == [(last.pk, 0), None]
    assert await order_of(database, 3) == [(urgent.pk, 0), (first.pk, 0), (first.pk, 1)]


@pytest.mark.parametrize("is_urgent", [False, True])
async def test_only_the_models_that_are_meant(database: Database, *, is_urgent: bool) -> None:
    created_at = datetime.now(UTC) - timedelta(hours=23 if is_urgent else 0)
    a, b, none = [
        await running_batch(database, shards=3, model=model, created_at=created_at)
        for model in ("a", "b", None)
    ]
    only_a = ModelFilter(("a",), are_meant=True)
    assert await order_of(database, 1, models=only_a) == [(a.pk, 0)]
    # Busy batches have a branch of their own in the statement.
    assert await order_of(database, 1, models=only_a) == [(a.pk, 1)]
    not_a = {pk for pk, _ in filter(None, await order_of(database, 6, models=ModelFilter(("a",))))}
    assert not_a == {b.pk, none.pk}
    assert await order_of(database, 2, models=ModelFilter((), are_meant=True)) == [None, None]


@pytest.mark.usefixtures("settled")
async def test_within_a_batch_the_lowest_number_comes_first(database: Database) -> None:
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS, input_file_pk=1)
    for no in (4, 2, 0):
        await make_shard(database, batch, no=no)
    lapsed: dict[str, Any] = {"state": ShardState.RUNNING, "lease_until": in_seconds(-0.1)}
    await make_shard(database, batch, no=3, **lapsed)
    await make_shard(database, batch, no=1, state=ShardState.DONE)
    await make_shard(database, batch, no=5, **lapsed)
    order = await order_of(database, 6)
    assert order == [(batch.pk, no) for no in (0, 2, 3, 4, 5)] + [None]


async def test_a_batch_with_nothing_to_claim_does_not_hide_the_next(database: Database) -> None:
    """Whatever its rank: urgent, idle or busy."""
    created_at = datetime.now(UTC) - timedelta(hours=23)
    for values in ({"created_at": created_at}, {}):
        empty = await running_batch(database, shards=0, **values)
        await make_shard(database, empty, state=ShardState.DONE)
    busy = await running_batch(database, shards=0)
    await make_shard(database, busy, state=ShardState.RUNNING)
    other = (await make_project(database)).project_pk
    batch = await running_batch(database, project_pk=other)
    for no in (1, 2, 3):
        await make_shard(database, batch, no=no, state=ShardState.RUNNING)
    assert await order_of(database, 2) == [(batch.pk, 0), None]


async def test_renewing_a_lease_touches_no_index(database: Database) -> None:
    """It is written every half second for each shard: an index on `lease_until` would grow with it."""
    await running_batch(database)
    shard = await claimed(database)
    async with database.begin() as session:
        renew = update(Shard).where(Shard.pk == shard.pk)
        for _ in range(5):
            await session.execute(renew.values(lease_until=in_seconds(60), in_flight=3))
        updates = text("SELECT pg_stat_get_xact_tuples_hot_updated('shards'::regclass)")
        assert await session.scalar(updates) == 5


async def test_a_shard_that_is_being_claimed_is_passed_over(database: Database) -> None:
    batch = await running_batch(database, shards=2)
    first, second = await shards_of(database, batch)
    async with database.begin() as session:
        await session.execute(select(Shard).where(Shard.pk == first.pk).with_for_update())
        shard = await asyncio.wait_for(claim(database), timeout=10)
        assert shard is not None
        assert shard.pk == second.pk
        assert await asyncio.wait_for(claim(database), timeout=10) is None


async def test_two_claims_at_once_get_different_shards(database: Database) -> None:
    for _ in range(10):
        batch = await running_batch(database, shards=2)
        one, two = await asyncio.gather(claimed(database, "one"), claimed(database, "two"))
        # Else, on a slow machine, its lease has lapsed before the last round.
        for shard in (one, two):
            await end(database, shard)
        assert one.pk != two.pk
        assert {one.batch_pk, two.batch_pk} == {batch.pk}


async def test_no_shard_is_ever_held_by_two(database: Database) -> None:
    """Many claim, close and claim again at once; each line ends with the one who closed it last."""
    batches = [await running_batch(database, shards=8) for _ in range(3)]
    held: dict[int, str] = {}
    claims = 0

    async def work(owner: str) -> None:
        nonlocal claims
        while shard := await claim(database, owner):
            assert shard.pk not in held, f"{owner} got what {held[shard.pk]} holds"
            held[shard.pk] = owner
            claims += 1
            await asyncio.sleep(0)
            # Every other time the work is not finished.
            is_finished = claims % 2 == 0
            if is_finished:
                async with database.begin() as session:
                    done = update(Shard).where(Shard.pk == shard.pk).values(succeeded=Shard.size)
                    await session.execute(done)
            del held[shard.pk]
            assert await close_shard(database, shard) is is_finished

    await asyncio.gather(*(work(f"worker-{number}") for number in range(8)))
    for batch in batches:
        states = {shard.state for shard in await shards_of(database, batch)}
        assert states == {ShardState.DONE}
    assert claims >= 24


async def test_closing_gives_an_unfinished_shard_back(database: Database) -> None:
    batch = await running_batch(database)
    assert not await close_shard(database, await claimed(database))
    [row] = await shards_of(database, batch)
    assert (row.state, row.lease_owner, row.lease_until) == (ShardState.QUEUED, None, None)
    assert (await claimed(database)).lease_owner == "me#2"


async def test_only_the_holder_closes(database: Database) -> None:
    batch = await running_batch(database)
    first = await claimed(database)
    await close_shard(database, first)
    second = await claimed(database)
    # The same process, and the same shard; yet this claim of it is over.
    assert not await close_shard(database, first)
    [row] = await shards_of(database, batch)
    assert (row.state, row.lease_owner) == (ShardState.RUNNING, second.lease_owner)


async def test_a_batch_moves_on_when_no_shard_is_open(database: Database) -> None:
    batch = await running_batch(database, shards=2)
    for is_last in (False, True):
        shard = await claimed(database)
        async with database.begin() as session:
            await session.execute(
                update(Shard).where(Shard.pk == shard.pk).values(succeeded=2, failed=1)
            )
        assert await close_shard(database, shard)
        assert await advance_if_all_done(database, batch.pk) is is_last
    assert (await reload(database, batch)).status == BatchStatus.FINALIZING
    assert not await advance_if_all_done(database, batch.pk)


async def test_of_all_who_close_last_at_once_one_moves_the_batch(database: Database) -> None:
    async def finish(shard: ClaimedShard) -> bool:
        assert await close_shard(database, shard)
        return await advance_if_all_done(database, shard.batch_pk)

    for _ in range(5):
        batch = await running_batch(database, shards=4)
        shards = [await claimed(database) for _ in range(4)]
        async with database.begin() as session:
            await session.execute(update(Shard).values(succeeded=Shard.size))
        assert sum(await asyncio.gather(*(finish(shard) for shard in shards))) == 1
        assert (await reload(database, batch)).status == BatchStatus.FINALIZING


async def take(database: Database, batch: Batch, owner: str = "me") -> Batch | None:
    async with database.begin() as session:
        return await claim_batch(
            session,
            batch.pk,
            BatchStatus.VALIDATING,
            BatchStatus.FINALIZING,
            owner=owner,
            lease_seconds=LEASE_SECONDS,
        )


async def test_a_batch_s_own_lease(database: Database) -> None:
    batch = await make_batch(database)
    assert await take(database, batch) is not None
    assert await take(database, batch, "other") is None
    assert await take(database, batch) is None
    await release_batch(database, batch.pk, owner="other")
    assert await take(database, batch, "other") is None
    await release_batch(database, batch.pk, owner="me")
    taken = await take(database, batch, "other")
    assert taken is not None
    assert taken.lease_owner == "other"


async def test_a_batch_is_taken_only_in_the_right_status(database: Database) -> None:
    assert await take(database, await running_batch(database)) is None


async def test_a_batch_s_lapsed_lease_is_taken(database: Database) -> None:
    batch = await make_batch(database, lease_owner="dead", lease_until=in_seconds(-0.1))
    assert await take(database, batch) is not None


async def test_a_batch_s_lease_is_renewed_while_it_is_ours(database: Database) -> None:
    batch = await take(database, await make_batch(database))
    assert batch is not None
    assert await renew_batch(database, batch, owner="me", lease_seconds=100)
    renewed = (await reload(database, batch)).lease_until
    assert renewed is not None
    assert renewed > in_seconds(50)
    assert not await renew_batch(database, batch, owner="other", lease_seconds=100)
    async with database.begin() as session:
        await session.execute(
            update(Batch).values(status=BatchStatus.CANCELLING, cancelling_at=in_seconds(0))
        )
    # The batch has moved on, so the stage has nothing to keep.
    assert not await renew_batch(database, batch, owner="me", lease_seconds=100)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "lost"},
        {"state": "running"},
        {"lease_owner": "me"},
        {"lease_owner": "me", "lease_until": datetime(2026, 1, 1, tzinfo=UTC)},
        {"state": "running", "lease_owner": "me"},
        {"state": "done"},
        {"state": "done", "succeeded": 2},
        {"succeeded": 3, "failed": 1},
        {"succeeded": -1},
        {"size": 4},
        {"size": 0, "line_numbers": [], "offsets": [], "lengths": []},
        {"offsets": [1, 2]},
    ],
    ids=str,
)
async def test_a_shard_that_makes_no_sense_is_refused(
    database: Database, changes: dict[str, Any]
) -> None:
    await running_batch(database)
    with pytest.raises(IntegrityError):
        async with database.begin() as session:
            await session.execute(update(Shard).values(changes))
