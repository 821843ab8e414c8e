"""The bytes of files in Postgres: in and out unchanged, whatever the cuts and ranges."""

import asyncio
import random
from collections.abc import Sequence

import pytest
from sqlalchemy import delete, func, select, update

from models import File, FileChunk, storage
from models.chunk_cache import ChunkCache
from models.database import Database
from models.errors import InputUnreadable
from models.file import FileStatus
from models.ids import new_file_id
from models.reading import LineTooLong, PlacedLine
from models.storage import open_upload, read_lines, read_places, read_range
from tests.factories import make_file

CHUNK = 64


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks so small that a test crosses many of them."""
    monkeypatch.setattr(storage, "CHUNK_BYTES", CHUNK)


def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def content(database: Database, file: File, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join([piece async for piece in read_range(database, file, start, stop)])


async def count_chunks(database: Database, file_pk: int) -> int:
    async with database.begin() as session:
        statement = select(func.count()).where(FileChunk.file_pk == file_pk)
        return await session.scalar(statement) or 0


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 8 * CHUNK, 8 * CHUNK + 1, 50 * CHUNK + 7]
)
@pytest.mark.parametrize("piece", [1, 13, CHUNK, 1000])
async def test_what_goes_in_comes_out(database: Database, size: int, piece: int) -> None:
    given = some_bytes(size)
    upload = await open_upload(
        database, File(id=new_file_id(), purpose="batch", filename="x", bytes=0)
    )
    for start in range(0, size, piece):
        await upload.write(memoryview(given)[start : start + piece])
    file = await upload.publish()
    assert (file.bytes, file.status) == (size, FileStatus.PROCESSED)
    assert await content(database, file) == given
    assert await count_chunks(database, file.pk) == -(-size // CHUNK)


async def test_a_file_of_many_full_chunks(database: Database) -> None:
    given = some_bytes(5_000_000)
    file = await make_file(database, given)
    assert file.bytes == len(given)
    assert await content(database, file) == given


@pytest.mark.usefixtures("small_chunks")
async def test_every_range(database: Database) -> None:
    given = some_bytes(3 * CHUNK + 5)
    file = await make_file(database, given)
    edges = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, len(given) - 1, len(given)]
    for start in edges:
        for stop in edges:
            assert await content(database, file, start, stop) == given[start:stop]
    assert await content(database, file, 5, 10**9) == given[5:]
    assert await content(database, file, 10**9) == b""


async def test_an_upload_is_invisible_until_it_is_published(database: Database) -> None:
    upload = await open_upload(database, File(id=new_file_id(), purpose="", filename="x"))
    await upload.write(b"x" * 3_000_000)
    async with database.begin() as session:
        file = await session.get_one(File, upload.file_pk)
    assert file.status == FileStatus.UPLOADING
    published = await upload.publish(purpose="batch", filename="y")
    assert (published.purpose, published.filename, published.bytes) == ("batch", "y", 3_000_000)


async def test_a_discarded_upload_leaves_nothing(database: Database) -> None:
    upload = await open_upload(database, File(id=new_file_id(), purpose="", filename="x"))
    await upload.write(some_bytes(3_000_000))
    assert await count_chunks(database, upload.file_pk) > 0
    await upload.discard()
    await upload.discard()
    async with database.begin() as session:
        assert await session.get(File, upload.file_pk) is None
    assert await count_chunks(database, upload.file_pk) == 0


async def test_a_published_file_cannot_be_discarded(database: Database) -> None:
    upload = await open_upload(database, File(id=new_file_id(), purpose="", filename="x"))
    await upload.write(b"kept")
    file = await upload.publish()
    await upload.discard()
    assert await content(database, file) == b"kept"


@pytest.mark.usefixtures("small_chunks")
async def test_a_lost_chunk_is_noticed(database: Database) -> None:
    file = await make_file(database, some_bytes(5 * CHUNK))
    async with database.begin() as session:
        await session.execute(delete(FileChunk).where(FileChunk.no == 3))
    assert len(await content(database, file, 0, 3 * CHUNK)) == 3 * CHUNK
    with pytest.raises(InputUnreadable, match="lost chunks"):
        await content(database, file)


@pytest.mark.usefixtures("small_chunks")
async def test_a_broken_chunk_is_noticed(database: Database) -> None:
    file = await make_file(database, some_bytes(5 * CHUNK))
    async with database.begin() as session:
        await session.execute(update(FileChunk).where(FileChunk.no == 3).values(data=b"broken"))
    with pytest.raises(InputUnreadable, match="does not decode"):
        await content(database, file)


LINES = {
    "plain": (b"a\nbc\n", [(1, 0, b"a"), (2, 2, b"bc")]),
    "no last newline": (b"a\nbc", [(1, 0, b"a"), (2, 2, b"bc")]),
    "crlf": (b"a\r\nbc\r\n", [(1, 0, b"a\r"), (2, 3, b"bc\r")]),
    "blank lines count": (b"\n \r\na\n\n\t\nb\n\n", [(3, 4, b"a"), (6, 9, b"b")]),
    "byte-order mark": (b"\xef\xbb\xbfa\nb", [(1, 3, b"a"), (2, 5, b"b")]),
    "a mark further on is content": (b"a\n\xef\xbb\xbfb", [(1, 0, b"a"), (2, 2, b"\xef\xbb\xbfb")]),
    "nothing": (b"", []),
    "only blanks": (b"\n \n\t", []),
    "only a mark": (b"\xef\xbb\xbf", []),
    "a long line": (b"x" * 1000 + b"\ny", [(1, 0, b"x" * 1000), (2, 1001, b"y")]),
    "a mark and a long line": (b"\xef\xbb\xbf" + b"x" * 500, [(1, 3, b"x" * 500)]),
}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", LINES)
async def test_lines(database: Database, name: str) -> None:
    given, expected = LINES[name]
    file = await make_file(database, given)
    found = [
        tuple(line)
        async for lines in read_lines(database, file, max_line_bytes=1000)
        for line in lines
    ]
    assert found == expected
    for _, offset, raw in expected:
        assert given[offset : offset + len(raw)] == raw


@pytest.mark.usefixtures("small_chunks")
async def test_lines_across_every_chunk_border(database: Database) -> None:
    chance = random.Random(7)
    texts = [b"%d" % number * chance.randrange(0, 40) for number in range(300)]
    given = b"\r\n".join(texts)
    file = await make_file(database, given)
    found = [
        line async for lines in read_lines(database, file, max_line_bytes=1000) for line in lines
    ]
    expected = [(number, text) for number, text in enumerate(texts, 1) if text]
    assert [(line.line_no, line.raw.rstrip(b"\r")) for line in found] == expected
    assert all(given[line.offset :].startswith(line.raw) for line in found)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("given", "line_no"),
    [
        (b"short\n" + b"x" * 101 + b"\nshort", 2),
        (b"short\n\n" + b"x" * 101, 3),
        (b"x" * 10_000, 1),
    ],
)
async def test_a_line_that_is_too_long(database: Database, given: bytes, line_no: int) -> None:
    file = await make_file(database, given)
    with pytest.raises(LineTooLong) as caught:
        async for _ in read_lines(database, file, max_line_bytes=100):
            pass
    assert caught.value.line_no == line_no


@pytest.mark.usefixtures("small_chunks")
async def test_lines_are_found_again_by_their_places(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_SPAN_BYTES", 3 * CHUNK)
    given = b"\n".join(b"%d" % number * 9 for number in range(200))
    file = await make_file(database, given)
    lines = [
        line async for page in read_lines(database, file, max_line_bytes=1000) for line in page
    ]
    chosen = lines[3:40] + lines[150:152] + lines[90:100] + lines[:2] + [lines[50]] * 2
    places = [(line.line_no, line.offset, len(line.raw)) for line in chosen]
    found = [entry async for entry in read_places(database, file, places)]
    assert found == [(line.line_no, line.raw) for line in chosen]
    assert [entry async for entry in read_places(database, file, [])] == []


@pytest.mark.usefixtures("small_chunks")
async def test_scattered_lines_are_fetched_once_for_all_their_readers(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = b"\n".join(b"%04d" % number for number in range(40 * CHUNK // 5))
    file = await make_file(database, given)
    lines = [
        line async for page in read_lines(database, file, max_line_bytes=1000) for line in page
    ]
    fetched: list[int] = []
    fetch = storage._fetch_some

    async def counted(
        database: Database, file: File, numbers: Sequence[int]
    ) -> Sequence[tuple[int, bytes]]:
        fetched.extend(numbers)
        return await fetch(database, file, numbers)

    monkeypatch.setattr(storage, "_fetch_some", counted)
    cache = ChunkCache()

    async def read(chosen: list[PlacedLine]) -> None:
        places = [(line.line_no, line.offset, len(line.raw)) for line in chosen]
        found = [entry async for entry in read_places(database, file, places, cache)]
        assert found == [(line.line_no, line.raw) for line in chosen]

    groups = [lines[start::8][::-1] for start in range(8)]
    await asyncio.gather(*map(read, groups))
    assert sorted(fetched) == list(range(-(-len(given) // CHUNK)))


@pytest.mark.usefixtures("small_chunks")
async def test_chunks_that_nobody_else_wants_are_not_kept(database: Database) -> None:
    file = await make_file(database, b"x" * (9 * CHUNK))
    cache = ChunkCache()
    places = [(1, 0, 5 * CHUNK), (2, 5 * CHUNK, 4 * CHUNK)]
    found = [entry async for entry in read_places(database, file, places, cache)]
    assert found == [(1, b"x" * (5 * CHUNK)), (2, b"x" * (4 * CHUNK))]
    assert cache.size_bytes == 0


@pytest.mark.usefixtures("small_chunks")
async def test_a_line_in_two_chunks_of_which_only_the_second_is_kept(database: Database) -> None:
    content = some_bytes(4 * CHUNK)
    file = await make_file(database, content)
    cache = ChunkCache()
    cache.put(file.pk, 2, content[2 * CHUNK : 3 * CHUNK])
    places = [(1, CHUNK + 10, CHUNK)]
    found = [entry async for entry in read_places(database, file, places, cache)]
    assert found == [(1, content[CHUNK + 10 : 2 * CHUNK + 10])]
