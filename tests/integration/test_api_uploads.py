"""/v1/uploads: files that come in parts, what is refused, what ends an upload, what is left of it."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from api.services import completion
from models import File, FileChunk, MultipartUpload, UploadPart, joining, storage
from models.database import Database
from models.file import FileStatus
from models.lifecycle import BatchStatus
from models.storage import CHUNK_BYTES, Upload
from tests.answers import ok, refusal
from tests.factories import input_file, make_batch, make_key, make_project
from tests.fixtures.client import AppFactory, ClientFactory
from tests.fixtures.runtime import reload
from worker.runtime import Runtime
from worker.stages.sweep import sweep
from worker.stages.validate import validate_batch

HOUR = 3600
DAY = 24 * HOUR


def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


async def create(client: httpx.AsyncClient, size: int, **changes: Any) -> httpx.Response:
    body = {"filename": "x.bin", "purpose": "vision", "bytes": size, "mime_type": "text/plain"}
    sent = {name: value for name, value in (body | changes).items() if value is not ...}
    return await client.post("/v1/uploads", json=sent)


async def begin(client: httpx.AsyncClient, size: int, **changes: Any) -> str:
    upload_id: str = ok(await create(client, size, **changes))["id"]
    return upload_id


async def send(client: httpx.AsyncClient, upload_id: str, data: bytes) -> httpx.Response:
    return await client.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("upload", data)})


async def add(client: httpx.AsyncClient, upload_id: str, *parts: bytes) -> list[str]:
    return [ok(await send(client, upload_id, data))["id"] for data in parts]


async def complete(
    client: httpx.AsyncClient, upload_id: str, part_ids: object, **more: object
) -> httpx.Response:
    body = {"part_ids": part_ids} | more
    return await client.post(f"/v1/uploads/{upload_id}/complete", json=body)


async def cancel(client: httpx.AsyncClient, upload_id: str) -> httpx.Response:
    return await client.post(f"/v1/uploads/{upload_id}/cancel")


async def content(client: httpx.AsyncClient, file_id: str) -> bytes:
    response = await client.get(f"/v1/files/{file_id}/content")
    assert response.status_code == 200
    return response.content


async def statuses(database: Database) -> list[str]:
    """Of all rows of files, visible or not."""
    async with database.begin() as session:
        return list(await session.scalars(select(File.status).order_by(File.pk)))


async def chunks_without_a_visible_file(database: Database) -> int:
    async with database.begin() as session:
        statement = (
            select(func.count())
            .select_from(FileChunk)
            .join(File, File.pk == FileChunk.file_pk)
            .where(File.status != FileStatus.PROCESSED)
        )
        return await session.scalar(statement) or 0


async def age(database: Database, upload_id: str, by: timedelta) -> None:
    """Let an upload have been created so much earlier."""
    async with database.begin() as session:
        await session.execute(
            update(MultipartUpload)
            .where(MultipartUpload.id == upload_id)
            .values(
                created_at=MultipartUpload.created_at - by,
                expires_at=MultipartUpload.expires_at - by,
            )
        )


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


KIB = 1024
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


# What is refused


@pytest.mark.parametrize(
    ("changes", "message", "code", "param"),
    [
        (
            {"filename": ...},
            "Missing required parameter: 'filename'.",
            "missing_required_parameter",
            "filename",
        ),
        (
            {"purpose": ...},
            "Missing required parameter: 'purpose'.",
            "missing_required_parameter",
            "purpose",
        ),
        (
            {"bytes": ...},
            "Missing required parameter: 'bytes'.",
            "missing_required_parameter",
            "bytes",
        ),
        (
            {"mime_type": ...},
            "Missing required parameter: 'mime_type'.",
            "missing_required_parameter",
            "mime_type",
        ),
        ({"color": "red"}, "Unknown parameter: 'color'.", "unknown_parameter", "color"),
        (
            {"filename": 3},
            "Invalid type for 'filename': expected a string, but got an integer instead.",
            "invalid_type",
            "filename",
        ),
        (
            {"bytes": "12"},
            "Invalid type for 'bytes': expected an integer, but got a string instead.",
            "invalid_type",
            "bytes",
        ),
        (
            {"bytes": True},
            "Invalid type for 'bytes': expected an integer, but got a boolean instead.",
            "invalid_type",
            "bytes",
        ),
        (
            {"bytes": 0},
            (
                "Invalid 'bytes': integer below minimum value. Expected a value >= 1, but got 0"
                " instead."
            ),
            "integer_below_min_value",
            "bytes",
        ),
        ({"bytes": 8 * 1024**3 + 1}, "File is too large.", None, "bytes"),
        ({"bytes": 2**63}, "File is too large.", None, "bytes"),
        ({"bytes": 201 * 1024**2, "purpose": "batch"}, "File is too large.", None, "bytes"),
        (
            {"purpose": "batch_output"},
            (
                "Invalid value: 'batch_output'. Supported values are: 'assistants', 'batch',"
                " 'fine-tune', 'vision', 'user_data', and 'evals'."
            ),
            "invalid_value",
            "purpose",
        ),
        (
            {"mime_type": "a\0b"},
            "Invalid 'mime_type': it contains a NUL character.",
            "invalid_value",
            "mime_type",
        ),
        (
            {"mime_type": "x" * 257},
            (
                "Invalid 'mime_type': string too long. Expected a string with maximum length 256,"
                " but got a string with length 257 instead."
            ),
            "string_above_max_length",
            "mime_type",
        ),
        (
            {"expires_after": {"anchor": "created_at", "seconds": 3599}},
            (
                "Invalid 'expires_after.seconds': integer below minimum value. Expected a value >="
                " 3600, but got 3599 instead."
            ),
            "integer_below_min_value",
            "expires_after.seconds",
        ),
    ],
)
async def test_a_wrong_announcement(
    api_client: httpx.AsyncClient,
    database: Database,
    changes: dict[str, Any],
    message: str,
    code: str | None,
    param: str,
) -> None:
    response = await create(api_client, changes.pop("bytes", 10), **changes)
    refusal(response, 400, message, code=code, param=param)
    async with database.begin() as session:
        assert await session.scalar(select(func.count()).select_from(MultipartUpload)) == 0


async def test_any_file_name(api_client: httpx.AsyncClient) -> None:
    upload = ok(await create(api_client, 1, filename="..\\nul\0" + "n" * 400))
    assert upload["filename"] == "nul" + "n" * 252


async def test_the_largest_upload(api_client: httpx.AsyncClient) -> None:
    ok(await create(api_client, 8 * 1024**3))
    ok(await create(api_client, 200 * 1024**2, purpose="batch"))


WISHES = ["add a part to", "complete", "cancel"]


async def wish(client: httpx.AsyncClient, upload_id: str, wished: str) -> httpx.Response:
    match wished:
        case "complete":
            return await complete(client, upload_id, ["part_x"])
        case "cancel":
            return await cancel(client, upload_id)
        case _:
            return await send(client, upload_id, b"data")


@pytest.mark.parametrize("wished", WISHES)
@pytest.mark.parametrize("upload_id", ["upload_unknown", "file-x", "upload_%00", "u" * 500])
async def test_an_unknown_upload(
    api_client: httpx.AsyncClient, database: Database, wished: str, upload_id: str
) -> None:
    response = await wish(api_client, upload_id, wished)
    shown = upload_id.replace("%00", "\0")[:100]
    assert response.json()["error"]["message"].startswith(f"No such Upload object: {shown}")
    refusal(response, 404, response.json()["error"]["message"], param="id")
    assert await statuses(database) == []


@pytest.mark.parametrize("wished", WISHES)
async def test_another_projects_upload_is_not_found(
    api_client: httpx.AsyncClient, database: Database, wished: str
) -> None:
    key = await make_key(database, await make_project(database))
    upload_id = await begin(api_client, 4)
    part_ids = await add(api_client, upload_id, b"data")
    mine = api_client.headers["authorization"]
    api_client.headers["authorization"] = f"Bearer {key}"
    response = await wish(api_client, upload_id, wished)
    refusal(response, 404, f"No such Upload object: {upload_id}", param="id")
    # Nor can its parts be taken into another upload.
    other = await begin(api_client, 4)
    response = await complete(api_client, other, part_ids)
    message = f"Invalid 'part_ids[0]': no part of this upload has the id '{part_ids[0]}'."
    refusal(response, 400, message, code="invalid_value", param="part_ids[0]")
    api_client.headers["authorization"] = mine
    file = ok(await complete(api_client, upload_id, part_ids))["file"]
    assert await content(api_client, file["id"]) == b"data"


@pytest.mark.parametrize("ending", ["completed", "cancelled", "expired"])
@pytest.mark.parametrize("wished", WISHES)
async def test_an_upload_that_has_ended(
    api_client: httpx.AsyncClient, database: Database, ending: str, wished: str
) -> None:
    upload_id = await begin(api_client, 4)
    part_ids = await add(api_client, upload_id, b"data")
    match ending:
        case "completed":
            ok(await complete(api_client, upload_id, part_ids))
        case "cancelled":
            assert ok(await cancel(api_client, upload_id))["status"] == "cancelled"
        case _:
            await age(database, upload_id, timedelta(seconds=HOUR))
    before = await statuses(database)
    response = await wish(api_client, upload_id, wished)
    if (ending, wished) == ("cancelled", "cancel"):
        # A request whose answer was lost may be sent again.
        assert ok(response)["status"] == "cancelled"
    else:
        message = f"Cannot {wished} an upload with status '{ending}'."
        refusal(response, 400, message, param="id")
    assert await statuses(database) == before


async def test_parts_are_seen_nowhere(api_client: httpx.AsyncClient, runtime: Runtime) -> None:
    upload_id = await begin(api_client, 1000)
    [part_id] = await add(api_client, upload_id, input_file())
    assert ok(await api_client.get("/v1/files"))["data"] == []
    for path in ("", "/content"):
        response = await api_client.get(f"/v1/files/{part_id}{path}")
        refusal(response, 404, f"No such File object: {part_id}", param="id")
    response = await api_client.delete(f"/v1/files/{part_id}")
    refusal(response, 404, f"No such File object: {part_id}", param="id")
    assert (await api_client.get(f"/v1/files?after={part_id}")).status_code == 400
    batch = await make_batch(runtime.database, input_file_id=part_id)
    await validate_batch(runtime, batch.pk)
    assert (await reload(runtime.database, batch)).status == BatchStatus.FAILED


@pytest.mark.parametrize(
    ("files", "message", "code", "param"),
    [
        (
            [("other", b"x")],
            "Unknown parameter: 'other'.",
            "unknown_parameter",
            "other",
        ),
        (
            [("data", b"")],
            "Invalid 'data': it has no bytes.",
            "invalid_value",
            "data",
        ),
        (
            [("data", b"a"), ("data", b"b")],
            "Only one 'data' can be sent in one request.",
            "invalid_value",
            "data",
        ),
        ([("data", b"x" * 2001)], "File is too large.", None, "data"),
        # Larger than the form around it may make it: refused unread.
        ([("data", b"x" * 2_000_000)], "File is too large.", None, "data"),
    ],
)
async def test_a_wrong_part(
    make_app: AppFactory,
    make_client: ClientFactory,
    database: Database,
    files: list[tuple[str, bytes]],
    message: str,
    code: str | None,
    param: str,
) -> None:
    client = await make_client(make_app(max_part_bytes=2000))
    upload_id = await begin(client, 2000)
    response = await client.post(f"/v1/uploads/{upload_id}/parts", files=files)
    refusal(response, 400, message, code=code, param=param)
    assert await statuses(database) == []
    await add(client, upload_id, b"x" * 2000)


async def test_too_many_parts(
    api_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.services.multipart_uploads.MAX_PARTS", 2)
    upload_id = await begin(api_client, 9)
    await add(api_client, upload_id, b"abc", b"def")
    refusal(
        await send(api_client, upload_id, b"ghi"),
        400,
        "An upload can have at most 2 parts.",
        param="id",
        code="too_many_parts",
    )


async def test_a_part_without_data(api_client: httpx.AsyncClient) -> None:
    upload_id = await begin(api_client, 10)
    headers = {"content-type": "multipart/form-data; boundary=b"}
    url = f"/v1/uploads/{upload_id}/parts"
    response = await api_client.post(url, content=b"--b--\r\n", headers=headers)
    message, code = "Missing required parameter: 'data'.", "missing_required_parameter"
    refusal(response, 400, message, code=code, param="data")
    response = await api_client.post(url, json={"data": "x"})
    assert response.json()["error"]["code"] == "unsupported_content_type"


async def test_a_part_may_be_a_plain_field(api_client: httpx.AsyncClient) -> None:
    upload_id = await begin(api_client, 4)
    body = b'--b\r\ncontent-disposition: form-data; name="data"\r\n\r\nabcd\r\n--b--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    url = f"/v1/uploads/{upload_id}/parts"
    part = ok(await api_client.post(url, content=body, headers=headers))
    file = ok(await complete(api_client, upload_id, [part["id"]]))["file"]
    assert await content(api_client, file["id"]) == b"abcd"


async def test_far_too_many_parts(
    make_app: AppFactory, make_client: ClientFactory, database: Database
) -> None:
    client = await make_client(make_app(max_part_bytes=10))
    upload_id = await begin(client, 10)
    # Each of them may come twice, and then there is room for one more.
    part_ids = await add(client, upload_id, *[b"0123456789"] * 3)
    refusal(await send(client, upload_id, b"x"), 400, "File is too large.", param="data")
    assert await statuses(database) == ["part"] * 3
    ok(await complete(client, upload_id, part_ids[1:2]))


async def test_a_small_upload_takes_no_large_parts(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    upload_id = await begin(api_client, 10)
    response = await send(api_client, upload_id, some_bytes(31))
    refusal(response, 400, "File is too large.", param="data")
    assert await statuses(database) == []
    # As before: what is wrong about the parts is said at the end.
    ok(await send(api_client, upload_id, some_bytes(30)))


@pytest.mark.parametrize(
    ("body", "message", "code", "param"),
    [
        (
            {},
            "Missing required parameter: 'part_ids'.",
            "missing_required_parameter",
            "part_ids",
        ),
        (
            {"part_ids": "{0}"},
            "Invalid type for 'part_ids': expected an array, but got a string instead.",
            "invalid_type",
            "part_ids",
        ),
        (
            {"part_ids": []},
            (
                "Invalid 'part_ids': empty array. Expected an array with minimum length 1, but got"
                " an empty array instead."
            ),
            "empty_array",
            "part_ids",
        ),
        (
            {"part_ids": ["{0}", 7]},
            "Invalid type for 'part_ids[1]': expected a string, but got an integer instead.",
            "invalid_type",
            "part_ids[1]",
        ),
        (
            {"part_ids": ["{0}", "{1}", "{0}"]},
            "Invalid 'part_ids[2]': the part '{0}' is there more than once.",
            "invalid_value",
            "part_ids[2]",
        ),
        (
            {"part_ids": ["{0}", "part_unknown"]},
            "Invalid 'part_ids[1]': no part of this upload has the id 'part_unknown'.",
            "invalid_value",
            "part_ids[1]",
        ),
        (
            {"part_ids": ["nul\0"]},
            "Invalid 'part_ids[0]': no part of this upload has the id 'nul\0'.",
            "invalid_value",
            "part_ids[0]",
        ),
        (
            {"part_ids": ["{0}"]},
            ("Invalid 'part_ids': the parts have 2 bytes, but the upload was created for 4 bytes."),
            "invalid_value",
            "part_ids",
        ),
        (
            {"part_ids": ["{0}", "{1}"], "md5": "abc"},
            "Invalid 'md5': expected 32 hexadecimal digits.",
            "invalid_value",
            "md5",
        ),
        (
            {"part_ids": ["{1}", "{0}"], "md5": md5_of(b"abcd")},
            f"Invalid 'md5': the bytes have the checksum '{md5_of(b'cdab')}'.",
            "invalid_value",
            "md5",
        ),
        (
            {"part_ids": ["{0}", "{1}"], "md5": 5},
            "Invalid type for 'md5': expected a string, but got an integer instead.",
            "invalid_type",
            "md5",
        ),
        ({"part_ids": ["{0}"], "x": 1}, "Unknown parameter: 'x'.", "unknown_parameter", "x"),
    ],
)
async def test_a_wrong_completion_leaves_the_upload_as_it_was(
    api_client: httpx.AsyncClient, body: dict[str, Any], message: str, code: str, param: str
) -> None:
    upload_id = await begin(api_client, 4)
    part_ids = await add(api_client, upload_id, b"ab", b"cd")

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(each) for each in value]
        return value.format(*part_ids) if isinstance(value, str) else value

    sent = {name: named(value) for name, value in body.items()}
    response = await api_client.post(f"/v1/uploads/{upload_id}/complete", json=sent)
    refusal(response, 400, message.format(*part_ids), code=code, param=param)
    file = ok(await complete(api_client, upload_id, part_ids))["file"]
    assert await content(api_client, file["id"]) == b"abcd"


@pytest.mark.parametrize("parts", [[b"no", b"tes"], [b"\n\n"], [b"[1]\n{}\n"]])
@pytest.mark.parametrize("with_md5", [False, True])
async def test_a_batch_file_that_is_no_json_lines(
    api_client: httpx.AsyncClient, database: Database, parts: list[bytes], *, with_md5: bool
) -> None:
    whole = b"".join(parts)
    upload_id = await begin(api_client, len(whole), purpose="batch")
    part_ids = await add(api_client, upload_id, *parts)
    md5 = md5_of(whole) if with_md5 else None
    response = await complete(api_client, upload_id, part_ids, md5=md5)
    refusal(response, 400, "Invalid file format for Batch API. Must be .jsonl")
    assert await statuses(database) == ["part"] * len(parts)


# Ends that meet


@pytest.mark.parametrize("aligned", [True, False])
async def test_completing_again_shows_the_same_file(
    api_client: httpx.AsyncClient, runtime: Runtime, *, aligned: bool
) -> None:
    parts = [some_bytes(CHUNK_BYTES if aligned else 1000), b"tail"]
    upload_id = await begin(api_client, sum(map(len, parts)))
    part_ids = await add(api_client, upload_id, *parts)
    done = ok(await complete(api_client, upload_id, part_ids))
    await sweep(runtime)
    assert ok(await complete(api_client, upload_id, part_ids)) == done
    response = await complete(api_client, upload_id, part_ids[::-1])
    refusal(response, 400, "Cannot complete an upload with status 'completed'.", param="id")
    ok(await api_client.delete(f"/v1/files/{done['file']['id']}"))
    again = ok(await complete(api_client, upload_id, part_ids))
    assert again == done | {"file": None}


@pytest.mark.parametrize("aligned", [True, False])
async def test_many_ends_at_once(
    api_client: httpx.AsyncClient, database: Database, *, aligned: bool
) -> None:
    parts = [some_bytes(CHUNK_BYTES if aligned else 1000), b"tail"]
    for _ in range(5):
        upload_id = await begin(api_client, sum(map(len, parts)))
        part_ids = await add(api_client, upload_id, *parts)
        first, cancelled, *others = await asyncio.gather(
            complete(api_client, upload_id, part_ids),
            cancel(api_client, upload_id),
            complete(api_client, upload_id, part_ids),
            complete(api_client, upload_id, part_ids),
        )
        answers = [first, *others]
        if cancelled.status_code == 200:
            for answer in answers:
                message = "Cannot complete an upload with status 'cancelled'."
                refusal(answer, 400, message, param="id")
        else:
            message = "Cannot cancel an upload with status 'completed'."
            refusal(cancelled, 400, message, param="id")
            assert len({ok(answer)["file"]["id"] for answer in answers}) == 1
    visible = ok(await api_client.get("/v1/files"))["data"]
    async with database.begin() as session:
        statement = select(func.count()).where(MultipartUpload.status == "completed")
        assert await session.scalar(statement) == len(visible)
    assert "uploading" not in await statuses(database)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("rival", ["cancel", "complete", "complete otherwise", "expire"])
async def test_an_end_while_the_bytes_are_read(
    api_client: httpx.AsyncClient,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    rival: str,
    *,
    aligned: bool,
) -> None:
    """The rival ends it, and the sweep takes the parts away, from under a completion at work."""
    monkeypatch.setattr(storage, "CHUNK_BYTES", 64)
    parts = [some_bytes(64 * 20 + (not aligned)), some_bytes(64 * 20)]
    whole = b"".join(parts)
    upload_id = await begin(api_client, len(whole))
    part_ids = await add(api_client, upload_id, *parts)
    read_through = joining.read_through
    is_first = True

    async def interrupted(*args: Any) -> AsyncIterator[bytes]:
        nonlocal is_first
        is_mine, is_first = is_first, False
        async for piece in read_through(*args):
            if is_mine:
                is_mine = False
                if rival == "cancel":
                    ok(await cancel(api_client, upload_id))
                elif rival == "expire":
                    await age(runtime.database, upload_id, timedelta(seconds=HOUR))
                else:
                    order = part_ids[::-1] if rival.endswith("otherwise") else part_ids
                    ok(await complete(api_client, upload_id, order))
                await sweep(runtime)
            yield piece

    monkeypatch.setattr(completion, "read_through", interrupted)
    md5 = md5_of(whole)
    response = await complete(api_client, upload_id, part_ids, md5=md5)
    if rival == "complete":
        file = ok(response)["file"]
        assert await content(api_client, file["id"]) == whole
    else:
        status = {"cancel": "cancelled", "expire": "expired"}.get(rival, "completed")
        message = f"Cannot complete an upload with status '{status}'."
        refusal(response, 400, message, param="id")
    await sweep(runtime)
    visible = rival.startswith("complete")
    assert await statuses(runtime.database) == ["processed"] * visible
    assert await chunks_without_a_visible_file(runtime.database) == 0


@pytest.mark.parametrize("ending", ["cancelled", "completed", "expired"])
async def test_a_part_that_arrives_when_its_upload_has_ended(
    api_client: httpx.AsyncClient, database: Database, ending: str
) -> None:
    upload_id = await begin(api_client, 4)
    part_ids = await add(api_client, upload_id, b"data")
    head = b'--b\r\ncontent-disposition: form-data; name="data"\r\n\r\n'

    async def body() -> AsyncIterator[bytes]:
        yield head + b"x" * 1000
        if ending == "cancelled":
            ok(await cancel(api_client, upload_id))
        elif ending == "completed":
            ok(await complete(api_client, upload_id, part_ids))
        else:
            await age(database, upload_id, timedelta(seconds=HOUR))
        yield b"\r\n--b--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    url = f"/v1/uploads/{upload_id}/parts"
    response = await api_client.post(url, content=body(), headers=headers)
    message = f"Cannot add a part to an upload with status '{ending}'."
    refusal(response, 400, message, param="id")
    assert await statuses(database) == (["processed"] if ending == "completed" else ["part"])


# Time and death


async def test_an_upload_lives_for_exactly_an_hour(
    api_client: httpx.AsyncClient, runtime: Runtime
) -> None:
    upload_id = await begin(api_client, 4)
    part_ids = await add(api_client, upload_id, b"data")
    await age(runtime.database, upload_id, timedelta(minutes=59))
    await sweep(runtime)
    await add(api_client, upload_id, b"more")
    await age(runtime.database, upload_id, timedelta(minutes=1))
    message = "Cannot complete an upload with status 'expired'."
    refusal(await complete(api_client, upload_id, part_ids), 400, message, param="id")
    await sweep(runtime)
    refusal(await complete(api_client, upload_id, part_ids), 400, message, param="id")
    assert await statuses(runtime.database) == []


async def test_the_life_is_a_setting(make_app: AppFactory, make_client: ClientFactory) -> None:
    client = await make_client(make_app(upload_life_seconds=7))
    upload = ok(await create(client, 1))
    assert upload["expires_at"] == upload["created_at"] + 7


async def test_the_sweep_leaves_what_is_pending_and_removes_the_rest(
    api_client: httpx.AsyncClient, runtime: Runtime
) -> None:
    pending, cancelled = [await begin(api_client, 2000) for _ in range(2)]
    for upload_id in (pending, cancelled):
        await add(api_client, upload_id, some_bytes(1000), some_bytes(1000))
    ok(await cancel(api_client, cancelled))
    async with runtime.database.begin() as session:
        # However long ago they came: what has stalled is something else.
        await session.execute(update(File).values(touched_at=func.now() - timedelta(days=9)))
    await sweep(runtime)
    assert await statuses(runtime.database) == ["part"] * 2
    async with runtime.database.begin() as session:
        parts = list(await session.scalars(select(UploadPart.id).order_by(UploadPart.pk)))
    assert ok(await complete(api_client, pending, parts))["file"]["bytes"] == 2000


async def test_parts_are_removed_little_by_little(
    api_client: httpx.AsyncClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.stages.uploads._BYTES_AT_ONCE", 2000)
    upload_id = await begin(api_client, 3000)
    await add(api_client, upload_id, *[some_bytes(1000)] * 3)
    ok(await cancel(api_client, upload_id))
    await sweep(runtime)
    assert await statuses(runtime.database) == ["part"]
    await sweep(runtime)
    assert await statuses(runtime.database) == []


async def test_an_upload_is_forgotten_a_day_after_its_time(
    api_client: httpx.AsyncClient, runtime: Runtime
) -> None:
    ended = [await begin(api_client, 4) for _ in range(3)]
    part_ids = await add(api_client, ended[0], b"data")
    file = ok(await complete(api_client, ended[0], part_ids))["file"]
    ok(await cancel(api_client, ended[1]))
    for upload_id in ended:
        await age(runtime.database, upload_id, timedelta(hours=25, seconds=-60))
    await sweep(runtime)
    assert ok(await complete(api_client, ended[0], part_ids))["file"] == file
    for upload_id in ended:
        await age(runtime.database, upload_id, timedelta(seconds=61))
    await sweep(runtime)
    for upload_id in ended:
        response = await cancel(api_client, upload_id)
        refusal(response, 404, f"No such Upload object: {upload_id}", param="id")
    assert await content(api_client, file["id"]) == b"data"


class Death(BaseException):
    """The process is gone: whatever would clean up does not run."""


@pytest.mark.parametrize(
    ("step", "aligned"),
    [
        ("read", True),
        ("end", True),
        ("move", True),
        ("forget", True),
        ("read", False),
        ("write", False),
        ("end", False),
    ],
)
async def test_a_completion_that_dies_on_any_line_can_be_asked_for_again(
    api_client: httpx.AsyncClient,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    *,
    aligned: bool,
) -> None:
    monkeypatch.setattr(storage, "CHUNK_BYTES", 64)
    parts = [some_bytes(64 * 20 + (not aligned)), some_bytes(64 * 20)]
    whole = b"".join(parts)
    md5 = md5_of(whole)
    upload_id = await begin(api_client, len(whole))
    part_ids = await add(api_client, upload_id, *parts)

    owner, name = {
        "read": (completion, "read_through"),
        "write": (Upload, "_store"),
        "end": (completion, "_end"),
        "move": (completion, "move_chunks"),
        "forget": (completion, "_forget"),
    }[step]
    original: Any = getattr(owner, name)

    async def dying(*args: Any) -> Any:
        # After it has done its work, so that only what is committed remains.
        await original(*args)
        raise Death

    async def dying_stream(*args: Any) -> AsyncIterator[bytes]:
        async for piece in original(*args):
            yield piece
            raise Death

    async def nothing(self: Upload) -> None:
        del self

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying_stream if step == "read" else dying)
        patch.setattr(Upload, "discard", nothing)
        with pytest.raises(Death):
            await complete(api_client, upload_id, part_ids, md5=md5)
    assert ok(await api_client.get("/v1/files"))["data"] == []
    left = [] if aligned else ["uploading"]
    assert await statuses(runtime.database) == ["part", "part", *left]

    done = ok(await complete(api_client, upload_id, part_ids, md5=md5))
    assert await content(api_client, done["file"]["id"]) == whole
    async with runtime.database.begin() as session:
        await session.execute(update(File).values(touched_at=func.now() - timedelta(hours=2)))
    await sweep(runtime)
    assert await statuses(runtime.database) == ["processed"]
    assert await chunks_without_a_visible_file(runtime.database) == 0


async def test_a_part_whose_sender_goes_away_leaves_nothing(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    upload_id = await begin(api_client, 3_000_000)
    head = b'--b\r\ncontent-disposition: form-data; name="data"\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = await api_client.post(
        f"/v1/uploads/{upload_id}/parts", content=head + b"x" * 3_000_000, headers=headers
    )
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("Could not parse the multipart form")
    assert await statuses(database) == []


async def test_a_slow_part_holds_no_connection(
    make_app: AppFactory, make_client: ClientFactory, database: Database
) -> None:
    app = make_app()
    client = await make_client(app)
    upload_id = await begin(client, 3_000_000)
    pool = app.state.database._engine.pool
    held: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="data"\r\n\r\n'
        for _ in range(3):
            held.append(pool.checkedout())
            yield b"x" * 1_000_000
        held.append(pool.checkedout())
        yield b"\r\n--b--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    ok(await client.post(f"/v1/uploads/{upload_id}/parts", content=body(), headers=headers))
    assert held == [0] * 4
    assert await statuses(database) == ["part"]


# Quotas


async def test_an_upload_announces_what_will_be_stored(
    make_app: AppFactory, make_client: ClientFactory
) -> None:
    client = await make_client(make_app(max_stored_bytes=10))
    upload_id = await begin(client, 6)
    response = await create(client, 6)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "storage_limit_exceeded"
    # Completing puts a file in the place of the announcement, and cancelling takes it back.
    ok(await complete(client, upload_id, await add(client, upload_id, b"123456")))
    ok(await cancel(client, await begin(client, 4)))
    ok(await create(client, 4))
