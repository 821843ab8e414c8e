"""Lines are dealt out to shards in order, those with a common prefix together, and every line is in one."""

import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable

import pytest

from models.chunk_cache import ChunkCache
from models.prefix import Prefix
from worker.stages.shard import Piece, ShardCutter


def cut(lengths: list[int], *, lines: int = 3, size_bytes: int = 10**9) -> ShardCutter:
    cutter = ShardCutter(lines=lines, size_bytes=size_bytes)
    offset = 0
    for line_no, length in enumerate(lengths, start=1):
        cutter.add(line_no, offset, length)
        offset += length + 1
    return cutter


def test_no_line_makes_no_shard() -> None:
    cutter = cut([])
    assert (cutter.total, cutter.deal()) == (0, [])


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (3, [3]), (4, [3, 1]), (6, [3, 3]), (7, [3, 3, 1])]
)
def test_a_shard_closes_when_it_has_its_lines(count: int, sizes: list[int]) -> None:
    cutter = cut([10] * count)
    assert cutter.total == count
    assert [len(shard.line_numbers) for shard in cutter.deal()] == sizes


def test_a_shard_closes_when_it_reaches_its_size() -> None:
    cutter = cut([40, 40, 40, 500, 1, 1], lines=100, size_bytes=100)
    assert [shard.lengths for shard in cutter.deal()] == [[40, 40, 40], [500], [1, 1]]


def test_places_are_kept_as_they_were_given() -> None:
    cutter = ShardCutter(lines=2, size_bytes=10**9)
    places = [(2, 100, 7), (5, 900, 8), (4, 50, 9)]
    for place in places:
        cutter.add(*place)
    given = [
        place
        for shard in cutter.deal()
        for place in zip(shard.line_numbers, shard.offsets, shard.lengths, strict=True)
    ]
    assert given == places


def test_every_line_is_in_one_shard_whatever_the_limits() -> None:
    dice = random.Random(5)
    for _ in range(50):
        lengths = [dice.randrange(1, 300) for _ in range(dice.randrange(1, 200))]
        lines, size_bytes = dice.randrange(1, 20), dice.randrange(1, 2000)
        cutter = cut(lengths, lines=lines, size_bytes=size_bytes)
        numbers = [number for shard in cutter.deal() for number in shard.line_numbers]
        assert numbers == list(range(1, len(lengths) + 1))
        for shard in cutter.deal():
            assert 0 < len(shard.line_numbers) <= lines
            assert sum(shard.lengths[:-1]) < size_bytes


def dealt(keys: Iterable[str], *, lines: int = 100, window_bytes: int = 10**9) -> list[list[int]]:
    """The lines of each shard, where each key has a letter for each level of its prefix."""
    cutter = ShardCutter(lines=lines, size_bytes=10**9, window_bytes=window_bytes)
    for line_no, key in enumerate(keys, start=1):
        levels = [int.from_bytes(key[: n + 1].encode()) for n in range(3)]
        cutter.add(line_no, line_no * 11, 10, Prefix(*levels) if key else None)
    return [piece.line_numbers for piece in cutter.deal()]


def test_lines_with_a_common_prefix_follow_one_another() -> None:
    assert dealt(["a", "b", "a", "c", "b", "a"]) == [[1, 3, 6, 2, 5, 4]]


def test_a_shard_may_hold_several_groups_and_a_group_several_shards() -> None:
    assert dealt(["a", "b"] * 4, lines=3) == [[1, 3, 5], [7, 2, 4], [6, 8]]


def test_groups_are_nested() -> None:
    assert dealt(["ax", "b", "ay", "ax", "ayp", "b", "ayq", "ayp"]) == [[1, 4, 3, 5, 8, 7, 2, 6]]


def test_lines_without_a_prefix_stay_where_they_are() -> None:
    assert dealt(["a", "", "b", "", "a", "", "b"]) == [[1, 5, 2, 3, 7, 4, 6]]
    assert dealt([""] * 5, lines=2) == [[1, 2], [3, 4], [5]]


@pytest.mark.parametrize("keys", [["a"] * 7, [*"aabbbcc"], [*"abcdefg"], ["ax", "ax", "ay", "b"]])
def test_groups_that_lie_together_leave_the_order_as_it_is(keys: list[str]) -> None:
    plain = dealt([""] * len(keys), lines=3)
    assert dealt(keys, lines=3) == plain
    assert dealt(keys, lines=3, window_bytes=40) == plain


def test_no_shard_with_groups_reaches_over_the_end_of_a_window() -> None:
    assert dealt(["a", "b"] * 5, window_bytes=40) == [[1, 3, 2, 4], [5, 7, 6, 8], [9, 10]]


class _Lru:
    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[int, None] = OrderedDict()
        self.misses = 0

    def call(self, prompt: int) -> None:
        self.misses += prompt not in self._kept
        self._kept[prompt] = None
        self._kept.move_to_end(prompt)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)


LINE_BYTES = 4096
PROMPTS = 50
ORDER = random.Random(1).choices(range(PROMPTS), k=12_000)


def interleaved(count: int, prompt_of: Callable[[int], int]) -> tuple[list[Piece], list[Piece]]:
    """Shards of lines whose prompts come in turn: by prefix, and in the order of the file."""
    cutters = [ShardCutter(lines=250, size_bytes=4 * 1024 * 1024) for _ in range(2)]
    for line_no in range(count):
        number = prompt_of(line_no) + 1
        place = line_no, line_no * (LINE_BYTES + 1), LINE_BYTES
        cutters[0].add(*place, Prefix(number, number, number * 10**6 + line_no))
        cutters[1].add(*place)
    return cutters[0].deal(), cutters[1].deal()


def misses(pieces: list[Piece], prompt_of: Callable[[int], int]) -> int:
    """Of a server's cache of 8 prompts, called by two processes that take shards in turn."""
    cache = _Lru(8)
    flows = [itertools.chain(*(piece.line_numbers for piece in pieces[n::2])) for n in range(2)]
    for pair in itertools.zip_longest(*flows):
        for line_no in pair:
            if line_no is not None:
                cache.call(prompt_of(line_no))
    return cache.misses


def in_turn(line_no: int) -> int:
    return line_no % PROMPTS


def at_random(line_no: int) -> int:
    return ORDER[line_no]


@pytest.mark.parametrize("prompt_of", [in_turn, at_random])
def test_fifty_interleaved_prompts_miss_a_cache_of_eight_seldom(
    prompt_of: Callable[[int], int],
) -> None:
    by_prefix, by_file = interleaved(12_000, prompt_of)
    assert misses(by_prefix, prompt_of) * 5 <= misses(by_file, prompt_of)


def test_each_process_reads_a_window_once() -> None:
    by_prefix, _ = interleaved(12_000, in_turn)
    chunk = 256 * 1024
    read = 0
    caches = [ChunkCache(), ChunkCache()]
    for piece, cache in zip(by_prefix, itertools.cycle(caches), strict=False):
        for no in sorted({offset // chunk for offset in piece.offsets}):
            if cache.get(1, no) is None:
                cache.put(1, no, bytes(chunk))
                read += chunk
    assert read <= 2.1 * 12_000 * LINE_BYTES
