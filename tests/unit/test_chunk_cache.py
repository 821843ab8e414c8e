"""Which chunks are kept: those used last, up to a size."""

from models.chunk_cache import ChunkCache


def test_the_chunk_whose_use_is_longest_ago_goes_first() -> None:
    cache = ChunkCache(max_bytes=30)
    for no in range(3):
        cache.put(1, no, bytes(10))
    assert cache.get(1, 0) == bytes(10)
    cache.put(1, 3, bytes(10))
    assert [cache.get(1, no) is not None for no in range(4)] == [True, False, True, True]
    assert cache.size_bytes == 30


def test_files_are_told_apart_and_a_chunk_counts_once() -> None:
    cache = ChunkCache(max_bytes=30)
    cache.put(1, 0, b"a" * 10)
    cache.put(2, 0, b"b" * 10)
    cache.put(2, 0, b"c" * 12)
    assert (cache.get(1, 0), cache.get(2, 0)) == (b"a" * 10, b"c" * 12)
    assert cache.size_bytes == 22


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = ChunkCache(max_bytes=30)
    cache.put(1, 0, bytes(31))
    assert (cache.get(1, 0), cache.size_bytes) == (None, 0)
