"""/v1/uploads: what is refused, in which words, and that it changes nothing."""

from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from models import MultipartUpload
from models.database import Database
from models.lifecycle import BatchStatus
from tests.answers import ok, refusal
from tests.factories import input_file, make_batch, make_key, make_project
from tests.fixtures.client import AppFactory, ClientFactory
from tests.fixtures.runtime import reload
from tests.uploads import (
    HOUR,
    WISHES,
    add,
    age,
    begin,
    cancel,
    complete,
    content,
    create,
    md5_of,
    send,
    some_bytes,
    statuses,
    wish,
)
from worker.runtime import Runtime
from worker.stages.validate import validate_batch

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
