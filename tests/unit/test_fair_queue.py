"""The fair queue: whose line goes next, by urgency, weight, batch and shard."""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from worker.flow.fair_queue import FairQueue

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
_batches = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Shard:
    project_pk: int = 1
    weight: float = 1.0
    batch_pk: int = field(default_factory=_batches.__next__)
    no: int = 0
    is_urgent: bool = False
    expires_at: datetime = NOON


@dataclass(eq=False)
class Source:
    """A shard with so many lines ready; `is_reading` while none is at hand."""

    shard: Shard
    lines: int = 10**6
    is_reading: bool = False

    @property
    def is_ready(self) -> bool:
        return self.lines > 0 and not self.is_reading


Queue = FairQueue[Source]


def source(lines: int = 10**6, /, **values: object) -> Source:
    return Source(Shard(**values), lines)  # type: ignore[arg-type]  # the dataclass's own fields


def queue_of(*sources: Source) -> Queue:
    queue: Queue = FairQueue()
    for each in sources:
        queue.add(each)
    return queue


def serve(queue: Queue, count: int) -> list[Source]:
    """So many lines, or as many as there are."""
    served: list[Source] = []
    while len(served) < count and (found := queue.next()) is not None:
        found.lines -= 1
        served.append(found)
    return served


def _is(one: Source) -> Callable[[Source], bool]:
    return lambda other: other is one


def test_nothing_is_in_an_empty_queue() -> None:
    queue = queue_of()
    assert queue.next() is None
    assert (len(queue), list(queue)) == (0, [])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_nobody_who_is_not_ready_goes(count: int) -> None:
    sources = [source(project_pk=number) for number in range(count)]
    for each in sources:
        each.is_reading = True
    queue = queue_of(*sources)
    assert queue.next() is None
    sources[-1].is_reading = False
    assert queue.next() is sources[-1]


def test_what_is_in_it() -> None:
    one, urgent = source(), source(is_urgent=True)
    queue = queue_of(one, urgent)
    assert set(queue) == {one, urgent}
    queue.remove(urgent)
    assert (list(queue), queue.next()) == ([one], one)
    queue.remove(one)
    assert queue.next() is None
    with pytest.raises(KeyError):
        queue.remove(one)


def test_a_small_batch_behind_a_big_one_gets_every_second_line() -> None:
    big = [source(batch_pk=10**6, no=no) for no in range(8)]
    queue = queue_of(*big)
    serve(queue, 1000)
    small = source(10)
    queue.add(small)
    served = serve(queue, 20)
    assert served == [big[0], small] * 10
    assert serve(queue, 5) == [big[0]] * 5


def test_within_a_batch_the_first_shard_goes_until_it_has_nothing_ready() -> None:
    second, first, third = (source(3, batch_pk=10**6, no=no) for no in (4, 2, 9))
    queue = queue_of(second, first, third)
    assert serve(queue, 5) == [first, first, first, second, second]
    first.lines += 1
    assert serve(queue, 9) == [first, second, third, third, third]


def test_batches_take_turns_even_if_one_has_more_shards() -> None:
    many = [source(batch_pk=10**6, no=no) for no in range(5)]
    few = source()
    served = Counter(each.shard.batch_pk for each in serve(queue_of(*many, few), 100))
    assert set(served.values()) == {50}


def test_projects_share_by_weight_however_many_batches_they_have() -> None:
    heavy = source(project_pk=1, weight=3)
    light = [source(project_pk=2, weight=1) for _ in range(4)]
    lightest = source(project_pk=3, weight=0.5)
    queue = queue_of(*light, heavy, lightest)
    served = serve(queue, 900)
    shares = Counter(each.shard.project_pk for each in served)
    for project_pk, weight in ((1, 3), (2, 1), (3, 0.5)):
        assert shares[project_pk] == pytest.approx(900 * weight / 4.5, abs=2)
    of_light = Counter(each.shard.batch_pk for each in served if each.shard.project_pk == 2)
    assert max(of_light.values()) - min(of_light.values()) <= 1
    # Not in bursts: the heavy one never waits for longer than the two others take one line each.
    gaps = [
        len(list(run)) for is_heavy, run in itertools.groupby(served, _is(heavy)) if not is_heavy
    ]
    assert max(gaps) <= 2


def test_nobody_starves_beside_the_heaviest() -> None:
    heavy, light = source(project_pk=1, weight=1000), source(project_pk=2, weight=1)
    served = serve(queue_of(heavy, light), 10_010)
    assert served.count(light) == pytest.approx(10, abs=1)


def test_a_newcomer_gets_its_share_and_nothing_for_the_time_before() -> None:
    old, older = source(project_pk=1), source(project_pk=2)
    queue = queue_of(old, older)
    serve(queue, 1000)
    new = source(project_pk=3)
    queue.add(new)
    assert Counter(serve(queue, 30)) == {old: 10, older: 10, new: 10}


def test_who_was_not_ready_gets_nothing_for_that_time() -> None:
    busy, other, idle = (source(project_pk=number) for number in (1, 2, 3))
    queue = queue_of(busy, other, idle)
    serve(queue, 3)
    idle.is_reading = True
    assert Counter(serve(queue, 1000)) == {busy: 500, other: 500}
    idle.is_reading = False
    assert serve(queue, 12).count(idle) == pytest.approx(4, abs=1)


def test_who_leaves_and_comes_back_gets_no_more_than_its_share() -> None:
    """A project whose shards have one line each is as light as any other of its weight."""
    steady = source(project_pk=1, weight=4)
    queue = queue_of(steady)
    served = []
    for no in range(200):
        short = source(1, project_pk=2, no=no)
        queue.add(short)
        while short.lines:
            served += serve(queue, 1)
        queue.remove(short)
    assert served.count(steady) == pytest.approx(4 * 200, abs=5)


def test_urgent_ones_go_first_by_their_deadline() -> None:
    calm = source(project_pk=2, weight=1000, expires_at=NOON)
    later = source(3, is_urgent=True, expires_at=NOON + timedelta(minutes=5))
    second = source(2, is_urgent=True, batch_pk=10**6, no=1, expires_at=NOON)
    first = source(2, is_urgent=True, batch_pk=10**6, no=0, expires_at=NOON)
    queue = queue_of(calm, later, second, first)
    first.is_reading = True
    assert serve(queue, 1) == [second]
    first.is_reading = False
    assert serve(queue, 7) == [first, first, second, later, later, later, calm]


def test_the_same_sources_are_served_in_the_same_order() -> None:
    def run() -> list[tuple[int, int]]:
        sources = [
            source(7, project_pk=number % 3, weight=1 + number % 2, batch_pk=number // 2, no=number)
            for number in range(24)
        ]
        return [(each.shard.batch_pk, each.shard.no) for each in serve(queue_of(*sources), 200)]

    first = run()
    assert len(first) == 24 * 7
    assert run() == first
