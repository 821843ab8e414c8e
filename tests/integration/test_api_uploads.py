"""/v1/uploads: files that come in parts, whole."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from models import File, FileChunk, UploadPart, storage
from models.database import Database
from models.file import FileStatus
from models.lifecycle import BatchStatus
from models.storage import CHUNK_BYTES, Upload
from tests.answers import ok
from tests.factories import input_file, make_batch
from tests.fixtures.runtime import reload
from tests.uploads import (
    DAY,
    HOUR,
    KIB,
    add,
    age,
    begin,
    chunks_without_a_visible_file,
    complete,
    content,
    create,
    md5_of,
    send,
    some_bytes,
    statuses,
)
from worker.runtime import Runtime
from worker.stages.sweep import sweep
from worker.stages.validate import validate_batch

# The way it should go


async def test_an_upload_from_end_to_end(api_client: httpx.AsyncClient) -> None:
    before = int(datetime.now(UTC).timestamp())
    upload = ok(await create(api_client, 11, filename="/folder/of mine/notes.txt"))
    created_at = upload["created_at"]
    assert before <= created_at <= before + 5
    upload_id = upload["id"]
    assert upload_id.startswith("upload_")
    assert upload == {
        "id": upload_id,
        "object": "upload",
        "bytes": 11,
        "created_at": created_at,
        "filename": "notes.txt",
        "purpose": "vision",
        "status": "pending",
        "expires_at": created_at + HOUR,
        "file": None,
    }

    part = ok(await send(api_client, upload_id, b"hello "))
    assert part.pop("created_at") >= created_at
    assert part.pop("id").startswith("part_")
    assert part == {"object": "upload.part", "upload_id": upload_id}

    part_ids = await add(api_client, upload_id, b"world")
    first = ok(await send(api_client, upload_id, b"Hello "))["id"]
    done = ok(await complete(api_client, upload_id, [first, *part_ids]))
    file = done.pop("file")
    assert done == {key: upload[key] for key in upload if key != "file"} | {"status": "completed"}
    assert file == {
        "object": "file",
        "id": file["id"],
        "purpose": "vision",
        "filename": "notes.txt",
        "bytes": 11,
        "created_at": file["created_at"],
        "expires_at": None,
        "status": "processed",
        "status_details": None,
    }
    assert ok(await api_client.get(f"/v1/files/{file['id']}")) == file
    assert await content(api_client, file["id"]) == b"Hello world"


CUTS = [
    [255 * KIB] * 5,
    [256 * KIB] * 5,
    [256 * KIB + 1] * 5,
    [1, 256 * KIB, 1],
    [256 * KIB, 1],
    [512 * KIB, 256 * KIB, 255 * KIB],
    [3 * KIB],
    [600 * KIB, 256 * KIB],
]


@pytest.mark.parametrize("sizes", CUTS, ids=str)
@pytest.mark.parametrize("with_md5", [False, True])
async def test_parts_sent_at_once_are_joined_in_the_order_named(
    api_client: httpx.AsyncClient, database: Database, sizes: list[int], *, with_md5: bool
) -> None:
    whole = some_bytes(sum(sizes))
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    cut = [whole[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    upload_id = await begin(api_client, len(whole))
    # The last one is sent first.
    answers = await asyncio.gather(*(send(api_client, upload_id, data) for data in reversed(cut)))
    part_ids = [ok(answer)["id"] for answer in reversed(answers)]
    more = {"md5": md5_of(whole).upper()}
    done = ok(await complete(api_client, upload_id, part_ids, **(more if with_md5 else {})))
    assert done["file"]["bytes"] == len(whole)
    assert await content(api_client, done["file"]["id"]) == whole
    # Any range finds its place, so the chunks are those of a file that came in one piece.
    span = {"range": f"bytes={len(whole) // 2}-"}
    ranged = await api_client.get(f"/v1/files/{done['file']['id']}/content", headers=span)
    assert ranged.content == whole[len(whole) // 2 :]
    async with database.begin() as session:
        statement = select(func.count()).select_from(FileChunk).join(File)
        kept = await session.scalar(statement.where(File.status == FileStatus.PROCESSED))
    assert kept == -(-len(whole) // CHUNK_BYTES)


async def test_parts_that_fit_are_moved_and_not_copied(
    api_client: httpx.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = some_bytes(5 * CHUNK_BYTES)
    upload_id = await begin(api_client, len(whole))
    part_ids = await add(api_client, upload_id, whole[: 2 * CHUNK_BYTES], whole[2 * CHUNK_BYTES :])

    def never(*_: object) -> AsyncIterator[bytes]:
        raise AssertionError

    monkeypatch.setattr(storage, "read_range", never)
    done = ok(await complete(api_client, upload_id, part_ids))
    monkeypatch.undo()
    assert await content(api_client, done["file"]["id"]) == whole
    # Nothing of the parts is left, not even a row.
    assert await statuses(database) == ["processed"]
    async with database.begin() as session:
        assert await session.scalar(select(func.count()).select_from(UploadPart)) == 0


async def test_many_parts_are_moved(
    api_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "CHUNK_BYTES", 8)
    whole = some_bytes(40 * 16 + 3)
    upload_id = await begin(api_client, len(whole))
    cut = [whole[start : start + 16] for start in range(0, len(whole), 16)]
    part_ids = await add(api_client, upload_id, *cut)
    done = ok(await complete(api_client, upload_id, part_ids))
    assert await content(api_client, done["file"]["id"]) == whole


async def test_a_copy_is_made_a_few_chunks_at_a_time(
    api_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "CHUNK_BYTES", 64)
    whole = some_bytes(100_000)
    upload_id = await begin(api_client, len(whole))
    part_ids = await add(api_client, upload_id, whole[:50_001], whole[50_001:])
    written: list[int] = []
    stored: list[int] = []
    write, insert_chunks = Upload.write, storage.insert_chunks

    async def noting_write(self: Upload, data: bytes) -> None:
        written.append(len(data))
        await write(self, data)

    async def noting_insert(session: Any, file_pk: int, chunks: list[tuple[int, bytes]]) -> None:
        stored.append(len(chunks))
        await insert_chunks(session, file_pk, chunks)

    monkeypatch.setattr(Upload, "write", noting_write)
    monkeypatch.setattr(storage, "insert_chunks", noting_insert)
    md5 = md5_of(whole)
    done = ok(await complete(api_client, upload_id, part_ids, md5=md5))
    assert max(written) == 64
    assert sum(written) == len(whole)
    assert max(stored) <= 9
    assert await content(api_client, done["file"]["id"]) == whole


async def test_parts_that_are_not_named_are_left_out(
    api_client: httpx.AsyncClient, runtime: Runtime
) -> None:
    upload_id = await begin(api_client, 4)
    part_ids = await add(api_client, upload_id, b"ab", b"xx", b"cd", b"ab")
    done = ok(await complete(api_client, upload_id, [part_ids[3], part_ids[2]]))
    assert await content(api_client, done["file"]["id"]) == b"abcd"
    await sweep(runtime)
    assert await statuses(runtime.database) == ["processed"]
    assert await chunks_without_a_visible_file(runtime.database) == 0


@pytest.mark.parametrize(
    ("purpose", "expires_after", "life"),
    [
        ("batch", None, 30 * DAY),
        ("batch", {"anchor": "created_at", "seconds": HOUR}, HOUR),
        ("fine-tune", {"anchor": "created_at", "seconds": DAY}, DAY),
        ("assistants", None, None),
        ("user_data", ..., None),
        ("evals", ..., None),
    ],
)
async def test_the_life_of_the_file_counts_from_its_completion(
    api_client: httpx.AsyncClient,
    database: Database,
    purpose: str,
    expires_after: Any,
    life: int | None,
) -> None:
    upload_id = await begin(api_client, 2, purpose=purpose, expires_after=expires_after)
    part_ids = await add(api_client, upload_id, b"{}")
    await age(database, upload_id, timedelta(minutes=30))
    done = ok(await complete(api_client, upload_id, part_ids))
    file = done["file"]
    assert file["created_at"] >= done["created_at"] + HOUR // 2
    assert file["expires_at"] == (None if life is None else file["created_at"] + life)


async def test_a_batch_over_a_file_that_came_in_parts(
    api_client: httpx.AsyncClient, runtime: Runtime
) -> None:
    whole = input_file(4000)
    upload_id = await begin(api_client, len(whole), purpose="batch", filename="in.jsonl")
    part_ids = await add(api_client, upload_id, whole[:300_001], whole[300_001:])
    file = ok(await complete(api_client, upload_id, part_ids))["file"]
    batch = await make_batch(runtime.database, input_file_id=file["id"])
    await validate_batch(runtime, batch.pk)
    batch = await reload(runtime.database, batch)
    assert (batch.status, batch.total) == (BatchStatus.IN_PROGRESS, 4000), batch.errors
