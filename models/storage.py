"""The bytes of files: streamed into and out of Postgres in compressed chunks.

Promises: never more than a few chunks are in memory, whatever the file's size; a byte range costs
only the chunks that it touches; no transaction is held while a client is slow.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence

import zstandard
from sqlalchemy import ColumnElement, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from models.chunk_cache import ChunkCache
from models.database import Database
from models.errors import InputUnreadable, Unavailable
from models.failpoints import Failpoint, pass_failpoint
from models.file import File, FileChunk, FileStatus
from models.reading import LineReader, PlacedLine

CHUNK_BYTES = 256 * 1024
"""Raw bytes a chunk: small enough to fetch for one line, large enough to compress well."""

MAX_REMOVED_CHUNKS = 2048
"""So many chunks, half a gigabyte, are removed in one statement: more may outlast its time limit."""

_LEVEL = 1
_FETCH = 8
_SPAN_BYTES = 4 * CHUNK_BYTES
_STALLED = "upload, which had stalled,"

Place = tuple[int, int, int]
"""A line's number, its offset in the file, and its length."""

Within = Callable[[AsyncSession], Awaitable[None]]
"""What else is done in a transaction."""


class ChunkEncoder:
    """Cuts a stream of bytes into numbered, compressed chunks of exactly `CHUNK_BYTES`."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._raw = bytearray()
        self._no = 0
        self.size_bytes = 0

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[int, bytes]]:
        """Take more bytes; yield the chunks that became whole."""
        self.size_bytes += len(data)
        self._raw += data
        position = 0
        while len(self._raw) - position >= CHUNK_BYTES:
            yield self._encode(memoryview(self._raw)[position : position + CHUNK_BYTES])
            position += CHUNK_BYTES
        if position:
            del self._raw[:position]

    def finish(self) -> Iterator[tuple[int, bytes]]:
        """Yield the last, shorter chunk, if any byte is left."""
        if self._raw:
            yield self._encode(memoryview(self._raw))
            self._raw.clear()

    def _encode(self, raw: memoryview) -> tuple[int, bytes]:
        with raw:
            encoded = self._no, self._compressor.compress(raw)
        self._no += 1
        return encoded


async def insert_chunks(
    session: AsyncSession, file_pk: int, chunks: list[tuple[int, bytes]]
) -> None:
    """Write some chunks of a file, in the caller's transaction."""
    if chunks:
        rows = [{"file_pk": file_pk, "no": no, "data": data} for no, data in chunks]
        await session.execute(insert(FileChunk), rows)


class Upload:
    """A file being written piece by piece, each in a short transaction of its own.

    It stays invisible until `publish`; when its writer dies, the sweep removes it.
    """

    def __init__(self, database: Database, file_pk: int) -> None:
        self._database = database
        self._encoder = ChunkEncoder()
        self._pending: list[tuple[int, bytes]] = []
        self.file_pk = file_pk

    @property
    def size_bytes(self) -> int:
        """Raw bytes taken so far."""
        return self._encoder.size_bytes

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take more bytes; store them once a few chunks are whole."""
        self._pending.extend(self._encoder.feed(data))
        if len(self._pending) >= _FETCH:
            await self._store()

    async def publish(self, *, within: Within | None = None, **values: object) -> File:
        """Store the rest and make the file visible, with `values` for its other columns.

        With the status `part` among the values it is whole, but stays invisible.

        `within` is called first in the transaction that does so: it may refuse by raising, or write
        what has to appear together with the file.
        """
        self._pending.extend(self._encoder.finish())
        await self._store()
        async with self._database.begin() as session:
            if within is not None:
                await within(session)
            published = await session.execute(
                update(File)
                .where(self._is_unfinished())
                .values(
                    {
                        "status": FileStatus.PROCESSED,
                        "bytes": self._encoder.size_bytes,
                        "touched_at": func.now(),
                    }
                    | values
                )
                .returning(File)
            )
            pass_failpoint(Failpoint.UPLOAD_PUBLISHING)
        pass_failpoint(Failpoint.UPLOAD_PUBLISHED)
        return published.scalar_one()

    async def discard(self) -> None:
        """Remove every trace of it; what is too much for one statement is left to the sweep."""
        async with self._database.begin() as session:
            if self.size_bytes > MAX_REMOVED_CHUNKS * CHUNK_BYTES:
                await session.execute(
                    update(File).where(self._is_unfinished()).values(deleted_at=func.now())
                )
            else:
                await session.execute(delete(File).where(self._is_unfinished()))

    async def _store(self) -> None:
        async with self._database.begin() as session:
            touched = await session.scalar(
                update(File)
                .where(self._is_unfinished())
                .values(touched_at=func.now())
                .returning(File.pk)
            )
            if touched is None:
                # It had stalled for so long that the sweep took it away.
                raise Unavailable(_STALLED)
            await insert_chunks(session, self.file_pk, self._pending)
        pass_failpoint(Failpoint.UPLOAD_CHUNKS_STORED)
        self._pending.clear()

    def _is_unfinished(self) -> ColumnElement[bool]:
        return (
            (File.pk == self.file_pk)
            & (File.status == FileStatus.UPLOADING)
            & File.deleted_at.is_(None)
        )


async def open_upload(database: Database, file: File) -> Upload:
    """Begin writing a new file; `file` needs its id, purpose and file name."""
    async with database.begin() as session:
        file.chunk_bytes = CHUNK_BYTES
        file.status = FileStatus.UPLOADING
        session.add(file)
        await session.flush()
    pass_failpoint(Failpoint.UPLOAD_OPENED)
    return Upload(database, file.pk)


async def read_range(
    database: Database, file: File, start: int = 0, stop: int | None = None
) -> AsyncGenerator[bytes]:
    """Yield the bytes `start` to `stop` of a file, chunk by chunk.

    Each fetch is a transaction of its own, so a slow reader holds no connection. The next few chunks
    are fetched while the last few are being read.

    Raises:
        InputUnreadable: a chunk is missing or does not decode.
    """
    stop = file.bytes if stop is None else min(stop, file.bytes)
    if start >= stop:
        return
    decompressor = zstandard.ZstdDecompressor()
    no, last = start // file.chunk_bytes, (stop - 1) // file.chunk_bytes
    fetching = asyncio.create_task(_fetch(database, file, no, last))
    try:
        while no <= last:
            rows = await fetching
            no += len(rows)
            if no <= last:
                fetching = asyncio.create_task(_fetch(database, file, no, last))
            for chunk_no, data in rows:
                # Lets the next fetch make progress, and others have their turn.
                await asyncio.sleep(0)
                raw = _decompress(decompressor, file, data)
                base = chunk_no * file.chunk_bytes
                if base < start or base + len(raw) > stop:
                    raw = raw[max(start - base, 0) : stop - base]
                yield raw
    finally:
        fetching.cancel()
        # Joined, so that its connection is back in the pool before the reader goes on.
        await asyncio.gather(fetching, return_exceptions=True)


async def _fetch(
    database: Database, file: File, first: int, last: int
) -> Sequence[tuple[int, bytes]]:
    """A few chunks from `first` on."""
    return await _fetch_some(database, file, range(first, min(first + _FETCH - 1, last) + 1))


async def _fetch_some(
    database: Database, file: File, numbers: Sequence[int]
) -> Sequence[tuple[int, bytes]]:
    """The chunks of these ascending numbers, compressed."""
    if not numbers:
        return []
    is_row = FileChunk.no.between(numbers[0], numbers[-1])
    if numbers[-1] - numbers[0] >= len(numbers):
        is_row = FileChunk.no.in_(numbers)
    async with database.statement() as session:
        rows = await session.execute(
            select(FileChunk.no, FileChunk.data)
            .where(FileChunk.file_pk == file.pk, is_row)
            .order_by(FileChunk.no)
        )
    chunks = [(row.no, row.data) for row in rows]
    if [no for no, _ in chunks] != list(numbers):
        message = f"file {file.id} has lost chunks between {numbers[0]} and {numbers[-1]}"
        raise InputUnreadable(message)
    return chunks


def _decompress(decompressor: zstandard.ZstdDecompressor, file: File, data: bytes) -> bytes:
    try:
        return decompressor.decompress(data, max_output_size=file.chunk_bytes)
    except zstandard.ZstdError as error:
        message = f"a chunk of file {file.id} does not decode"
        raise InputUnreadable(message) from error


async def read_places(
    database: Database,
    file: File,
    places: Sequence[Place],
    cache: ChunkCache | None = None,
) -> AsyncIterator[tuple[int, bytes]]:
    """Yield (line number, bytes) for each (line number, offset, length), in the given order.

    About a megabyte of lines is read at a time, each chunk that it touches once, wherever they lie. With
    a `cache`, chunks of which others want the most part are kept for them.

    Raises:
        InputUnreadable: the file cannot be read.
    """
    begin = 0
    while begin < len(places):
        size, end = places[begin][2], begin + 1
        while end < len(places) and size + places[end][2] <= _SPAN_BYTES:
            size, end = size + places[end][2], end + 1
        for entry in await _read_together(database, file, places[begin:end], cache):
            yield entry
        begin = end


async def _read_together(
    database: Database, file: File, places: Sequence[Place], cache: ChunkCache | None
) -> list[tuple[int, bytes]]:
    wanted: dict[int, list[int]] = {}
    used = Counter[int]()
    for index, (_, offset, length) in enumerate(places):
        for no in range(offset // file.chunk_bytes, (offset + length - 1) // file.chunk_bytes + 1):
            wanted.setdefault(no, []).append(index)
            used[no] += min(offset + length, (no + 1) * file.chunk_bytes)
            used[no] -= max(offset, no * file.chunk_bytes)
    parts: list[list[bytes]] = [[] for _ in places]
    numbers = sorted(wanted)
    for start in range(0, len(numbers), _FETCH):
        some = numbers[start : start + _FETCH]
        kept = {no for no in some if used[no] * 2 < file.chunk_bytes}
        async for no, raw in _chunks(database, file, some, cache, kept):
            base = no * file.chunk_bytes
            for index in wanted[no]:
                _, offset, length = places[index]
                parts[index].append(raw[max(offset - base, 0) : offset + length - base])
    return [
        (line_no, b"".join(found)) for (line_no, _, _), found in zip(places, parts, strict=True)
    ]


async def _chunks(
    database: Database, file: File, numbers: list[int], cache: ChunkCache | None, kept: set[int]
) -> AsyncIterator[tuple[int, bytes]]:
    """These chunks in the order of the file, decompressed; those in `kept` stay in the cache."""
    decompressor = zstandard.ZstdDecompressor()
    if cache is None:
        for no, data in await _fetch_some(database, file, numbers):
            await asyncio.sleep(0)
            yield no, _decompress(decompressor, file, data)
        return
    found: list[tuple[int, bytes]] = []
    async with cache.reading:
        missing = []
        for no in numbers:
            chunk = cache.get(file.pk, no)
            if chunk is None:
                missing.append(no)
            else:
                found.append((no, chunk))
        for no, data in await _fetch_some(database, file, missing):
            await asyncio.sleep(0)
            raw = _decompress(decompressor, file, data)
            found.append((no, raw))
            if no in kept:
                cache.put(file.pk, no, raw)
    # A line may lie in two of them, of which one was kept and the other not.
    for entry in sorted(found):
        yield entry


async def read_lines(
    database: Database, file: File, *, max_line_bytes: int
) -> AsyncIterator[list[PlacedLine]]:
    """Yield the lines of a file, some at a time, as `LineReader` cuts them.

    Raises:
        LineTooLong: a line has more than `max_line_bytes` bytes.
        InputUnreadable: the file cannot be read.
    """
    reader = LineReader(max_line_bytes=max_line_bytes)
    async for piece in read_range(database, file):
        for lines in reader.feed(piece):
            yield lines
    for lines in reader.end():
        yield lines
