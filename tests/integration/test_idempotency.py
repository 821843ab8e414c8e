"""Idempotency keys: equal requests make one object, whenever they come; another one is refused."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from models import Batch, File, FileChunk, IdempotencyKey
from models.database import Database
from models.lifecycle import BatchStatus
from models.queries import advance
from tests.answers import ok, refusal
from tests.factories import input_file, make_key, make_project
from tests.fixtures.client import AppFactory, ClientFactory, RecordingBell
from worker.runtime import Runtime
from worker.stages.sweep import sweep

BODY = {
    "input_file_id": "file-1",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
    "metadata": {"a": "1", "b": "2"},
}
REUSED = (
    "This 'Idempotency-Key' has been used before, with another request. Please use a new key"
    " for a new request, and the same key only to send the same request again."
)


async def create(
    client: httpx.AsyncClient, key: str | None = "key-1", /, **changes: Any
) -> httpx.Response:
    headers = {} if key is None else {"idempotency-key": key}
    return await client.post("/v1/batches", json=BODY | changes, headers=headers)


async def upload(
    client: httpx.AsyncClient,
    key: str | None = "key-1",
    /,
    *,
    content: bytes | None = None,
    name: str = "in.jsonl",
    bearer: str | None = None,
    **fields: str,
) -> httpx.Response:
    headers = {} if key is None else {"idempotency-key": key}
    if bearer is not None:
        headers["authorization"] = f"Bearer {bearer}"
    files = {"file": (name, input_file() if content is None else content)}
    return await client.post(
        "/v1/files", data={"purpose": "batch"} | fields, files=files, headers=headers
    )


async def count(database: Database, table: type) -> int:
    async with database.begin() as session:
        return await session.scalar(select(func.count()).select_from(table)) or 0


async def test_a_repeated_creation_answers_the_same_batch(
    api_client: httpx.AsyncClient, database: Database, bell: RecordingBell
) -> None:
    first = ok(await create(api_client))
    assert ok(await create(api_client)) == first
    # The same thing, said in another way.
    reversed_body = dict(reversed(BODY.items())) | {"output_expires_after": None}
    again = await api_client.post(
        "/v1/batches", json=reversed_body, headers={"Idempotency-Key": "key-1"}
    )
    assert ok(again) == first
    assert await count(database, Batch) == 1
    assert len(bell.rings) == 1


async def test_a_repeated_creation_answers_the_batch_as_it_is_now(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    first = ok(await create(api_client))
    async with database.begin() as session:
        assert await advance(session, 1, BatchStatus.IN_PROGRESS, total=7)
    now = ok(await create(api_client))
    assert (now["id"], now["status"]) == (first["id"], "in_progress")
    assert now["request_counts"]["total"] == 7


@pytest.mark.parametrize(
    "changes",
    [
        {"input_file_id": "file-2"},
        {"endpoint": "/v1/embeddings"},
        {"metadata": {"a": "1"}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 3600}},
    ],
)
async def test_the_key_of_another_creation(
    api_client: httpx.AsyncClient, database: Database, changes: dict[str, Any]
) -> None:
    ok(await create(api_client))
    answer = await create(api_client, **changes)
    refusal(answer, 409, REUSED, code="idempotency_key_reused")
    assert answer.headers["x-should-retry"] == "false"
    assert await count(database, Batch) == 1


async def test_other_keys_and_none_make_other_batches(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    answers = [await create(api_client, key) for key in ("key-1", "key-2", "KEY-1", None, None)]
    assert len({ok(answer)["id"] for answer in answers}) == 5
    assert await count(database, IdempotencyKey) == 3


async def test_keys_belong_to_a_project_and_an_operation(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    first = ok(await create(api_client))
    bearer = await make_key(database, await make_project(database))
    headers = {"authorization": f"Bearer {bearer}", "idempotency-key": "key-1"}
    theirs = ok(await api_client.post("/v1/batches", json=BODY, headers=headers))
    assert theirs["id"] != first["id"]
    file = ok(await upload(api_client))
    their_file = ok(await upload(api_client, bearer=bearer))
    assert file["id"] != their_file["id"]


async def test_equal_creations_at_the_same_time(
    api_client: httpx.AsyncClient, database: Database, bell: RecordingBell
) -> None:
    answers = await asyncio.gather(*(create(api_client) for _ in range(8)))
    assert len({ok(answer)["id"] for answer in answers}) == 1
    assert await count(database, Batch) == 1
    assert len(bell.rings) == 1


async def test_different_creations_with_one_key_at_the_same_time(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    answers = await asyncio.gather(
        *(create(api_client, input_file_id=f"file-{n}") for n in range(6))
    )
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 5]
    assert await count(database, Batch) == 1


async def test_what_was_refused_leaves_no_trace(
    make_app: AppFactory, make_client: ClientFactory, database: Database
) -> None:
    client = await make_client(make_app(max_batches_per_hour=1))
    assert (await create(client, endpoint="/nowhere")).status_code == 400
    assert await count(database, IdempotencyKey) == 0
    first = ok(await create(client, "key-1"))
    assert (await create(client, "key-2")).status_code == 429
    assert await count(database, IdempotencyKey) == 1
    # No new batch, so no limit stands against it.
    assert ok(await create(client, "key-1"))["id"] == first["id"]


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("", "invalid_value"),
        ("two words", "invalid_value"),
        ("tab\tbed", "invalid_value"),
        ("schlüssel".encode("latin-1"), "invalid_value"),
        ("x" * 256, "string_above_max_length"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/batches", "/v1/files", "/v1/batches/batch_1/retry"])
async def test_what_is_no_key(
    api_client: httpx.AsyncClient, path: str, key: str | bytes, code: str
) -> None:
    raw = key if isinstance(key, bytes) else key.encode()
    # The key is judged before a body that is wrong for each of them.
    answer = await api_client.post(path, headers=[(b"idempotency-key", raw)], json={"x": 1})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, "Idempotency-Key")
    assert error["message"].startswith("Invalid 'Idempotency-Key': ")


async def test_two_keys_in_one_request(api_client: httpx.AsyncClient) -> None:
    headers = [("idempotency-key", "a"), ("idempotency-key", "b")]
    answer = await api_client.post("/v1/batches", headers=headers, json=BODY)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Idempotency-Key"


async def test_the_longest_key(api_client: httpx.AsyncClient) -> None:
    first = ok(await create(api_client, "~" * 255))
    assert ok(await create(api_client, "~" * 255)) == first


async def test_a_repeated_upload_answers_the_same_file(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    content = input_file(5000)
    first = ok(await upload(api_client, content=content))
    chunks = await count(database, FileChunk)
    assert ok(await upload(api_client, content=content)) == first
    # Of the second copy nothing is left.
    assert (await count(database, File), await count(database, FileChunk)) == (1, chunks)


@pytest.mark.parametrize(
    "changes",
    [
        {"content": input_file(4)},
        {"name": "other.jsonl"},
        {"purpose": "user_data"},
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"},
    ],
)
async def test_the_key_of_another_upload(
    api_client: httpx.AsyncClient, database: Database, changes: dict[str, Any]
) -> None:
    ok(await upload(api_client))
    answer = await upload(api_client, **changes)
    refusal(answer, 409, REUSED, code="idempotency_key_reused")
    assert answer.headers["x-should-retry"] == "false"
    assert await count(database, File) == 1


async def test_an_expiry_is_compared_as_it_is_understood(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    seconds = "expires_after[seconds]"
    asked: Any = {"expires_after[anchor]": "created_at", seconds: "3600"}
    first = ok(await upload(api_client, **asked))
    again: Any = {seconds: "03600", "expires_after[anchor]": "created_at"}
    assert ok(await upload(api_client, **again)) == first
    assert await count(database, File) == 1


async def test_equal_uploads_at_the_same_time(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    answers = await asyncio.gather(*(upload(api_client) for _ in range(6)))
    assert len({ok(answer)["id"] for answer in answers}) == 1
    assert await count(database, File) == 1


async def test_a_file_that_was_deleted_is_made_anew(api_client: httpx.AsyncClient) -> None:
    first = ok(await upload(api_client))
    ok(await api_client.delete(f"/v1/files/{first['id']}"))
    answers = await asyncio.gather(*(upload(api_client) for _ in range(4)))
    [second] = {ok(answer)["id"] for answer in answers}
    assert second != first["id"]
    assert ok(await upload(api_client))["id"] == second
    # The key still stands for these bytes alone.
    assert (await upload(api_client, content=input_file(9))).status_code == 409


async def test_an_upload_that_was_refused_leaves_no_trace(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    assert (await upload(api_client, content=b"no json\n")).status_code == 400
    assert (await upload(api_client, purpose="nothing")).status_code == 400
    assert await count(database, IdempotencyKey) == 0
    ok(await upload(api_client))


async def test_a_repeated_upload_needs_no_room(
    make_app: AppFactory, make_client: ClientFactory, database: Database
) -> None:
    content = input_file()
    client = await make_client(make_app(max_stored_bytes=len(content) + 10))
    first = ok(await upload(client, content=content))
    assert ok(await upload(client, content=content)) == first
    assert (await upload(client, "key-2", content=content)).status_code == 400
    assert (await count(database, File), await count(database, IdempotencyKey)) == (1, 1)


async def test_the_sweep_forgets_keys_after_a_day(
    api_client: httpx.AsyncClient, runtime: Runtime
) -> None:
    first = ok(await create(api_client))
    await sweep(runtime)
    assert ok(await create(api_client))["id"] == first["id"]
    async with runtime.database.begin() as session:
        a_day_ago = datetime.now(UTC) - timedelta(hours=24, seconds=1)
        await session.execute(update(IdempotencyKey).values(created_at=a_day_ago))
    await sweep(runtime)
    assert ok(await create(api_client))["id"] != first["id"]
