"""Lines are dealt out to shards in order, and every line is in one."""

import random

import pytest

from worker.stages.shard import ShardCutter


def cut(lengths: list[int], *, lines: int = 3, size_bytes: int = 10**9) -> ShardCutter:
    cutter = ShardCutter(lines=lines, size_bytes=size_bytes)
    offset = 0
    for line_no, length in enumerate(lengths, start=1):
        cutter.add(line_no, offset, length)
        offset += length + 1
    return cutter


def test_no_line_makes_no_shard() -> None:
    cutter = cut([])
    assert (cutter.total, cutter.shards) == (0, [])


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (3, [3]), (4, [3, 1]), (6, [3, 3]), (7, [3, 3, 1])]
)
def test_a_shard_closes_when_it_has_its_lines(count: int, sizes: list[int]) -> None:
    cutter = cut([10] * count)
    assert cutter.total == count
    assert [len(shard.line_numbers) for shard in cutter.shards] == sizes


def test_a_shard_closes_when_it_reaches_its_size() -> None:
    cutter = cut([40, 40, 40, 500, 1, 1], lines=100, size_bytes=100)
    assert [shard.lengths for shard in cutter.shards] == [[40, 40, 40], [500], [1, 1]]


def test_places_are_kept_as_they_were_given() -> None:
    cutter = ShardCutter(lines=2, size_bytes=10**9)
    places = [(2, 100, 7), (5, 900, 8), (4, 50, 9)]
    for place in places:
        cutter.add(*place)
    given = [
        place
        for shard in cutter.shards
        for place in zip(shard.line_numbers, shard.offsets, shard.lengths, strict=True)
    ]
    assert given == places


def test_every_line_is_in_one_shard_whatever_the_limits() -> None:
    dice = random.Random(5)
    for _ in range(50):
        lengths = [dice.randrange(1, 300) for _ in range(dice.randrange(1, 200))]
        lines, size_bytes = dice.randrange(1, 20), dice.randrange(1, 2000)
        cutter = cut(lengths, lines=lines, size_bytes=size_bytes)
        numbers = [number for shard in cutter.shards for number in shard.line_numbers]
        assert numbers == list(range(1, len(lengths) + 1))
        for shard in cutter.shards:
            assert 0 < len(shard.line_numbers) <= lines
            assert sum(shard.lengths[:-1]) < size_bytes
