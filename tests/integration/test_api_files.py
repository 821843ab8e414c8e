"""/v1/files: every route, happy and with each bad input."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from models import File, FileChunk
from models.database import Database
from models.ids import new_file_id
from models.storage import open_upload
from tests.answers import ok, refusal
from tests.factories import input_file, make_file
from tests.fixtures.client import AppFactory, ClientFactory

DAY = 24 * 3600
NOT_JSON_LINES = "Invalid file format for Batch API. Must be .jsonl"


async def upload(
    client: httpx.AsyncClient,
    content: bytes = b'{"a": 1}\n',
    /,
    *,
    filename: str | None = "in.jsonl",
    **fields: str,
) -> httpx.Response:
    files = {"file": (filename, content)}
    return await client.post("/v1/files", data={"purpose": "batch"} | fields, files=files)


async def rows(database: Database) -> tuple[int, int]:
    async with database.begin() as session:
        files = await session.scalar(select(func.count()).select_from(File))
        chunks = await session.scalar(select(func.count()).select_from(FileChunk))
    return files or 0, chunks or 0


# Upload


async def test_an_uploaded_file(api_client: httpx.AsyncClient) -> None:
    before = int(datetime.now(UTC).timestamp())
    content = input_file(5)
    file = ok(await upload(api_client, content))
    created_at = file.pop("created_at")
    assert before <= created_at <= before + 5
    assert file.pop("id").startswith("file-")
    assert file == {
        "object": "file",
        "purpose": "batch",
        "filename": "in.jsonl",
        "bytes": len(content),
        "expires_at": created_at + 30 * DAY,
        "status": "processed",
        "status_details": None,
    }


@pytest.mark.parametrize("purpose", ["assistants", "fine-tune", "vision", "user_data", "evals"])
async def test_other_purposes_take_any_content_and_never_expire(
    api_client: httpx.AsyncClient, purpose: str
) -> None:
    file = ok(await upload(api_client, b"\x00\xff anything", purpose=purpose))
    assert (file["purpose"], file["expires_at"]) == (purpose, None)


async def test_an_empty_file_of_another_purpose(api_client: httpx.AsyncClient) -> None:
    file = ok(await upload(api_client, b"", purpose="vision"))
    assert file["bytes"] == 0
    content = await api_client.get(f"/v1/files/{file['id']}/content")
    assert (content.status_code, content.content) == (200, b"")


@pytest.mark.parametrize("purpose", ["batch", "fine-tune"])
async def test_a_life_of_its_own(api_client: httpx.AsyncClient, purpose: str) -> None:
    life = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = ok(await upload(api_client, purpose=purpose, **life))
    assert file["expires_at"] == file["created_at"] + 3600


async def test_retention_is_a_setting(make_app: AppFactory, make_client: ClientFactory) -> None:
    client = await make_client(make_app(file_retention_days=1))
    file = ok(await upload(client))
    assert file["expires_at"] == file["created_at"] + DAY


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("in.jsonl", "in.jsonl"),
        (None, "upload"),
        ("", "upload"),
        ("..", "upload"),
        ("/etc/passwd", "passwd"),
        ("C:\\data\\in.jsonl", "in.jsonl"),
        ("añb ☃.jsonl", "añb ☃.jsonl"),
        ('quo"te.jsonl', 'quo"te.jsonl'),
        ("n" * 3000, "n" * 255),
    ],
)
async def test_any_file_name(api_client: httpx.AsyncClient, sent: str | None, kept: str) -> None:
    file = ok(await upload(api_client, filename=sent))
    assert file["filename"] == kept
    response = await api_client.get(f"/v1/files/{file['id']}/content")
    assert response.headers["content-disposition"].startswith("attachment; filename=")


BOUNDARY = "b0undary"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(disposition: str, content: bytes) -> bytes:
    head = f"--{BOUNDARY}\r\ncontent-disposition: form-data; {disposition}\r\n\r\n"
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


PURPOSE = part('name="purpose"', b"batch")
FILE = part('name="file"; filename="in.jsonl"', b'{"a": 1}\n')


@pytest.mark.parametrize("parts", [[PURPOSE, FILE], [FILE, PURPOSE]])
async def test_parts_in_any_order(api_client: httpx.AsyncClient, parts: list[bytes]) -> None:
    file = ok(await api_client.post("/v1/files", content=form(*parts), headers=FORM))
    assert (file["bytes"], file["purpose"]) == (9, "batch")
    content = await api_client.get(f"/v1/files/{file['id']}/content")
    assert content.content == b'{"a": 1}\n'


async def test_control_characters_in_a_file_name_are_dropped(api_client: httpx.AsyncClient) -> None:
    file = part('name="file"; filename="nul\0tab\tdel\x7fcr\rnext\x85.jsonl"', b"{}")
    body = form(PURPOSE, file)
    shown = ok(await api_client.post("/v1/files", content=body, headers=FORM))
    assert shown["filename"] == "nultabdelcrnext.jsonl"


async def test_a_body_without_a_length(api_client: httpx.AsyncClient) -> None:
    whole = form(FILE, PURPOSE)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(whole), 11):
            yield whole[start : start + 11]

    file = ok(await api_client.post("/v1/files", content=pieces(), headers=FORM))
    assert file["bytes"] == 9


async def test_a_file_of_many_chunks(api_client: httpx.AsyncClient) -> None:
    content = input_file(40_000)
    file = ok(await upload(api_client, content))
    assert file["bytes"] == len(content) > 5_000_000
    response = await api_client.get(f"/v1/files/{file['id']}/content")
    assert response.content == content


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1}\nbad lines after a good one are for validation\n',
        b'{"a": 1}',
        b'\r\n\n{"a": 1}\r\n',
        b'\xef\xbb\xbf{"a": 1}\n',
    ],
)
async def test_what_passes_the_light_check(api_client: httpx.AsyncClient, content: bytes) -> None:
    ok(await upload(api_client, content))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"just notes\n", b"[1, 2]\n", b"{\n}\n", b'{"a": \n', b"\x89PNG\r\n", b"null"],
)
@pytest.mark.parametrize("file_first", [True, False])
async def test_what_does_not(
    api_client: httpx.AsyncClient, database: Database, content: bytes, file_first: bool
) -> None:
    parts = [part('name="file"; filename="in.jsonl"', content), PURPOSE]
    body = form(*(parts if file_first else parts[::-1]))
    refusal(await api_client.post("/v1/files", content=body, headers=FORM), 400, NOT_JSON_LINES)
    assert await rows(database) == (0, 0)


@pytest.mark.parametrize(
    ("fields", "message", "code", "param"),
    [
        (
            {"purpose": "answers"},
            (
                "'answers' is not one of ['assistants', 'batch', 'fine-tune', 'vision', 'user_data',"
                " 'evals'] - 'purpose'"
            ),
            None,
            None,
        ),
        ({"color": "red"}, "Unknown parameter: 'color'.", "unknown_parameter", "color"),
        (
            {"expires_after[anchor]": "created_at"},
            "Missing required parameter: 'expires_after.seconds'.",
            "missing_required_parameter",
            "expires_after.seconds",
        ),
        (
            {"expires_after[seconds]": "3600"},
            "Missing required parameter: 'expires_after.anchor'.",
            "missing_required_parameter",
            "expires_after.anchor",
        ),
        (
            {"expires_after[seconds]": "3599", "expires_after[anchor]": "created_at"},
            (
                "Invalid 'expires_after.seconds': integer below minimum value. Expected a value >="
                " 3600, but got 3599 instead."
            ),
            "integer_below_min_value",
            "expires_after.seconds",
        ),
        (
            {"expires_after[seconds]": "2592001", "expires_after[anchor]": "created_at"},
            (
                "Invalid 'expires_after.seconds': integer above maximum value. Expected a value <="
                " 2592000, but got 2592001 instead."
            ),
            "integer_above_max_value",
            "expires_after.seconds",
        ),
        (
            {"expires_after[seconds]": "soon", "expires_after[anchor]": "created_at"},
            (
                "Invalid type for 'expires_after.seconds': expected an integer, but got a string"
                " instead."
            ),
            "invalid_type",
            "expires_after.seconds",
        ),
        (
            {"expires_after[seconds]": "3600", "expires_after[anchor]": "now"},
            "Invalid value: 'now'. Supported values are: 'created_at'.",
            "invalid_value",
            "expires_after.anchor",
        ),
    ],
)
async def test_a_wrong_field(
    api_client: httpx.AsyncClient,
    database: Database,
    fields: dict[str, str],
    message: str,
    code: str | None,
    param: str | None,
) -> None:
    refusal(await upload(api_client, **fields), 400, message, code=code, param=param)
    assert await rows(database) == (0, 0)


async def test_unknown_fields_can_be_ignored(
    make_app: AppFactory, make_client: ClientFactory
) -> None:
    client = await make_client(make_app(unknown_parameters="ignore"))
    ok(await upload(client, color="red"))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([PURPOSE], "'file' is a required property"),
        ([], "'file' is a required property"),
        ([FILE], "'purpose' is a required property"),
    ],
)
async def test_a_missing_part(
    api_client: httpx.AsyncClient, database: Database, parts: list[bytes], message: str
) -> None:
    response = await api_client.post("/v1/files", content=form(*parts), headers=FORM)
    refusal(response, 400, message)
    assert await rows(database) == (0, 0)


async def test_two_files(api_client: httpx.AsyncClient, database: Database) -> None:
    response = await api_client.post("/v1/files", content=form(PURPOSE, FILE, FILE), headers=FORM)
    message = "Only one 'file' can be uploaded in one request."
    refusal(response, 400, message, code="invalid_value", param="file")
    assert await rows(database) == (0, 0)


@pytest.mark.parametrize("body", [b"", PURPOSE + FILE, b"garbage" * 1000, form(FILE)[:-12]])
async def test_a_truncated_or_broken_form(
    api_client: httpx.AsyncClient, database: Database, body: bytes
) -> None:
    response = await api_client.post("/v1/files", content=body, headers=FORM)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("Could not parse the multipart form")
    assert await rows(database) == (0, 0)


async def test_another_content_type(api_client: httpx.AsyncClient) -> None:
    response = await api_client.post("/v1/files", json={"purpose": "batch"})
    message = (
        "Unsupported content type: 'application/json'. This API method only accepts"
        " 'multipart/form-data' requests. Please try again with a supported content type."
    )
    refusal(response, 400, message, code="unsupported_content_type")


@pytest.mark.parametrize(
    ("purpose", "size", "status"),
    [
        ("batch", 2000, 200),
        ("batch", 2001, 400),
        ("fine-tune", 4000, 200),
        ("fine-tune", 4001, 400),
    ],
)
@pytest.mark.parametrize("file_first", [True, False])
async def test_the_limits(
    make_app: AppFactory,
    make_client: ClientFactory,
    database: Database,
    purpose: str,
    size: int,
    status: int,
    file_first: bool,
) -> None:
    client = await make_client(make_app(max_file_bytes=2000, max_other_file_bytes=4000))
    content = b'{"a": "' + b"x" * (size - 9) + b'"}'
    parts = [
        part('name="file"; filename="x"', content),
        part('name="purpose"', purpose.encode()),
    ]
    body = form(*(parts if file_first else parts[::-1]))
    response = await client.post("/v1/files", content=body, headers=FORM)
    if status == 200:
        assert ok(response)["bytes"] == size
    else:
        refusal(response, 400, "File is too large.")
        assert await rows(database) == (0, 0)


async def test_a_file_announced_too_large_is_refused_unread(
    make_app: AppFactory, make_client: ClientFactory
) -> None:
    client = await make_client(make_app(max_file_bytes=100, max_other_file_bytes=100))
    headers = FORM | {"content-length": str(10**12)}
    response = await client.post("/v1/files", content=form(PURPOSE, FILE), headers=headers)
    refusal(response, 400, "File is too large.")


async def test_a_client_that_goes_away_leaves_nothing(
    make_app: AppFactory, make_client: ClientFactory, database: Database
) -> None:
    app = make_app()
    await make_client(app)
    sent: list[dict[str, Any]] = []
    first = (PURPOSE + FILE[:-10]).ljust(4_000_000, b"x")
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": first, "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [
        (b"authorization", b"Bearer sk-test-0123456789abcdefghij"),
        (b"content-type", FORM["content-type"].encode()),
        (b"transfer-encoding", b"chunked"),
    ]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/files",
        "query_string": b"",
        "headers": headers,
    }
    await app(scope, receive, send)
    assert sent == []
    assert await rows(database) == (0, 0)


async def test_a_client_that_falls_silent_is_cut_off(
    make_app: AppFactory, make_client: ClientFactory, database: Database
) -> None:
    client = await make_client(make_app(client_silence_seconds=0.05))

    async def pieces() -> AsyncIterator[bytes]:
        yield PURPOSE + FILE[:-10]
        await asyncio.Event().wait()

    response = await client.post("/v1/files", content=pieces(), headers=FORM)
    refusal(response, 408, "The request's body did not arrive: 0.05 s of silence.")
    assert await rows(database) == (0, 0)


# Show, list, delete


async def test_a_file_is_shown_as_it_was_uploaded(api_client: httpx.AsyncClient) -> None:
    file = ok(await upload(api_client))
    assert ok(await api_client.get(f"/v1/files/{file['id']}")) == file


UNKNOWN_IDS = ["file-unknown", "file-" + "x" * 500, "file-%00", "%F0%9F%98%80", "..", "file-%FF"]


@pytest.mark.parametrize("file_id", UNKNOWN_IDS)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("DELETE", ""), ("GET", "/content"), ("HEAD", "/content")]
)
async def test_an_unknown_file(
    api_client: httpx.AsyncClient, method: str, path: str, file_id: str
) -> None:
    url = httpx.URL("http://overnight").copy_with(raw_path=f"/v1/files/{file_id}{path}".encode())
    response = await api_client.request(method, url)
    assert response.status_code == 404
    if method != "HEAD" and file_id == "file-unknown":
        refusal(response, 404, "No such File object: file-unknown", param="id")


@pytest.mark.parametrize(
    "values",
    [
        {"deleted_at": func.now()},
        {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)},
        None,
    ],
)
async def test_what_is_deleted_expired_or_unfinished_is_not_there(
    api_client: httpx.AsyncClient, database: Database, values: dict[str, Any] | None
) -> None:
    if values is None:
        file = File(id=new_file_id(), purpose="batch", filename="x")
        await open_upload(database, file)
    else:
        file = await make_file(database, **values)
    for method, path in [("GET", ""), ("GET", "/content"), ("DELETE", "")]:
        response = await api_client.request(method, f"/v1/files/{file.id}{path}")
        refusal(response, 404, f"No such File object: {file.id}", param="id")
    assert ok(await api_client.get("/v1/files"))["data"] == []


async def test_a_deleted_file_is_gone_for_clients_and_kept_for_batches(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    file = await make_file(database)
    deleted = ok(await api_client.delete(f"/v1/files/{file.id}"))
    assert deleted == {"id": file.id, "object": "file", "deleted": True}
    response = await api_client.delete(f"/v1/files/{file.id}")
    refusal(response, 404, f"No such File object: {file.id}", param="id")
    assert await rows(database) == (1, 1)


async def test_no_files(api_client: httpx.AsyncClient) -> None:
    assert ok(await api_client.get("/v1/files")) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


async def some_files(database: Database, count: int = 7) -> list[str]:
    """Make files, some of them of the same moment; return their ids, oldest first."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    made = [
        await make_file(
            database,
            b"{}",
            purpose="batch" if number % 2 else "vision",
            created_at=moment + timedelta(seconds=number // 3),
        )
        for number in range(count)
    ]
    return [file.id for file in made]


async def walk(client: httpx.AsyncClient, **query: Any) -> list[str]:
    found: list[str] = []
    while True:
        after = {"after": found[-1]} if found else {}
        page = ok(await client.get("/v1/files", params=query | after))
        found += [file["id"] for file in page["data"]]
        if page["data"]:
            assert page["first_id"] == page["data"][0]["id"]
            assert page["last_id"] == page["data"][-1]["id"]
        if not page["has_more"]:
            return found
        assert len(page["data"]) == query["limit"]


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8])
async def test_pages_of_files(
    api_client: httpx.AsyncClient, database: Database, limit: int
) -> None:
    oldest_first = await some_files(database)
    assert await walk(api_client, limit=limit) == oldest_first[::-1]
    assert await walk(api_client, limit=limit, order="desc") == oldest_first[::-1]
    assert await walk(api_client, limit=limit, order="asc") == oldest_first
    assert await walk(api_client, limit=limit, purpose="batch", order="asc") == oldest_first[1::2]


async def test_by_default_all_files_are_on_one_page(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    oldest_first = await some_files(database, 120)
    page = ok(await api_client.get("/v1/files"))
    assert [file["id"] for file in page["data"]] == oldest_first[::-1]
    assert page["has_more"] is False


async def test_a_walk_goes_on_after_a_file_that_was_deleted(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    oldest_first = await some_files(database)
    for file_id in oldest_first[-3:]:
        ok(await api_client.delete(f"/v1/files/{file_id}"))
    page = ok(await api_client.get("/v1/files", params={"after": oldest_first[-3]}))
    assert [file["id"] for file in page["data"]] == oldest_first[:-3][::-1]


async def test_a_limit_of_nothing_is_an_empty_page(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    await some_files(database)
    page = ok(await api_client.get("/v1/files?limit=0"))
    assert (page["data"], page["first_id"], page["has_more"]) == ([], None, False)


@pytest.mark.parametrize("purpose", ["unknown", "batch%00", "batch_output"])
async def test_files_of_a_purpose_that_there_are_none_of(
    api_client: httpx.AsyncClient, database: Database, purpose: str
) -> None:
    await some_files(database)
    assert ok(await api_client.get(f"/v1/files?purpose={purpose}"))["data"] == []


@pytest.mark.parametrize(
    ("query", "code", "param", "message"),
    [
        (
            "limit=10001",
            "integer_above_max_value",
            "limit",
            (
                "Invalid 'limit': integer above maximum value. Expected a value <= 10000, but got 10001"
                " instead."
            ),
        ),
        (
            "limit=-1",
            "integer_below_min_value",
            "limit",
            (
                "Invalid 'limit': integer below minimum value. Expected a value >= 0, but got -1"
                " instead."
            ),
        ),
        (
            "limit=",
            "invalid_type",
            "limit",
            "Invalid type for 'limit': expected an integer, but got a string instead.",
        ),
        (
            "order=up",
            "invalid_value",
            "order",
            "Invalid value: 'up'. Supported values are: 'asc' and 'desc'.",
        ),
        (
            "after=file-unknown",
            "invalid_value",
            "after",
            "Invalid 'after': no file found with id 'file-unknown'.",
        ),
        (
            "after=",
            "invalid_value",
            "after",
            "Invalid 'after': no file found with id ''.",
        ),
        (
            "after=a%00b",
            "invalid_value",
            "after",
            "Invalid 'after': no file found with id 'a\0b'.",
        ),
    ],
)
async def test_a_wrong_list_query(
    api_client: httpx.AsyncClient, query: str, code: str, param: str, message: str
) -> None:
    refusal(await api_client.get(f"/v1/files?{query}"), 400, message, code=code, param=param)


async def test_foreign_query_parameters_do_no_harm(api_client: httpx.AsyncClient) -> None:
    ok(await api_client.get("/v1/files?api-version=2025-01-01"))
