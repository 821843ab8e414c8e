"""Chunks of files that were decompressed lately and hold lines of other shards too. One per process.

Shards whose lines lie scattered over the same stretch of a file read the same chunks: without this,
each would fetch and decompress all of them again.
"""

import asyncio
from collections import OrderedDict

KEPT_BYTES = 32 * 1024 * 1024
"""Two stretches of lines that are dealt out together: the one that ends and the one that begins."""


class ChunkCache:
    """The chunks used last, by file and number, up to `max_bytes` in all. For one database."""

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self.reading = asyncio.Lock()
        """Held while chunks are looked up and fetched, so that two shards do not fetch the same."""

        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._chunks: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def get(self, file_pk: int, no: int) -> bytes | None:
        """The chunk, if it is kept; it then counts as used."""
        chunk = self._chunks.get((file_pk, no))
        if chunk is not None:
            self._chunks.move_to_end((file_pk, no))
        return chunk

    def put(self, file_pk: int, no: int, chunk: bytes) -> None:
        """Keep the chunk, and drop those whose use is longest ago."""
        self.size_bytes += len(chunk) - len(self._chunks.pop((file_pk, no), b""))
        self._chunks[file_pk, no] = chunk
        while self.size_bytes > self._max_bytes:
            _, dropped = self._chunks.popitem(last=False)
            self.size_bytes -= len(dropped)
