"""What a project may use: batches an hour, stored bytes, enqueued requests and tokens."""

import asyncio
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, insert, select

from models import Batch, File, MultipartUpload
from models.database import Database
from models.errors import StorageLimitReached
from models.lifecycle import BatchStatus
from models.queries import advance
from models.quota import require_room
from tests.answers import ok, refusal
from tests.factories import (
    input_file,
    input_line,
    json_lines,
    make_batch,
    make_file,
    make_key,
    make_project,
)
from tests.fixtures.client import AppFactory, ClientFactory
from tests.fixtures.runtime import reload
from worker.runtime import Runtime
from worker.stages.validate import validate_batch

NEW_BATCH = {
    "input_file_id": "file-unknown",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}
RATE_REACHED = (
    "Rate limit reached for batches in organization org-overnight on batches per hour: Limit {limit},"
    " Used {limit}, Requested 1. Please try again in {seconds}s."
)
NO_ROOM = (
    "File is too large: the project would store more than its limit of {limit:,} bytes. Please delete"
    " files that are no longer needed."
)


async def create(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await client.post("/v1/batches", json=NEW_BATCH, headers=headers)


async def upload(client: httpx.AsyncClient, content: bytes, **headers: str) -> httpx.Response:
    form: dict[str, Any] = {"data": {"purpose": "user_data"}, "files": {"file": content}}
    return await client.post("/v1/files", headers=headers, **form)


async def test_one_batch_too_many_in_an_hour(
    make_app: AppFactory, make_client: ClientFactory, database: Database
) -> None:
    client = await make_client(make_app(max_batches_per_hour=3))
    now = datetime.now(UTC)
    # Ended ones count, and those of more than an hour ago do not.
    await make_batch(database, created_at=now - timedelta(minutes=59), status=BatchStatus.FAILED)
    await make_batch(database, created_at=now - timedelta(minutes=61))
    await make_batch(database, created_at=now - timedelta(minutes=10), status=BatchStatus.CANCELLED)
    ok(await create(client))

    refused = await create(client)
    seconds = int(refused.headers["retry-after"])
    # When the first of them is an hour old.
    assert 0 < seconds <= 60
    refusal(
        refused,
        429,
        RATE_REACHED.format(limit=3, seconds=seconds),
        type_="requests",
        code="rate_limit_exceeded",
    )
    assert "x-should-retry" not in refused.headers
    assert len(ok(await client.get("/v1/batches"))["data"]) == 4


async def test_a_wait_longer_than_clients_have_patience_for(
    make_app: AppFactory, make_client: ClientFactory
) -> None:
    client = await make_client(make_app(max_batches_per_hour=1))
    ok(await create(client))
    refused = await create(client)
    assert 3500 < int(refused.headers["retry-after"]) <= 3600
    assert refused.headers["x-should-retry"] == "false"


async def test_a_projects_own_rate_goes_before_the_settings(
    make_app: AppFactory, make_client: ClientFactory, database: Database
) -> None:
    client = await make_client(make_app(max_batches_per_hour=1))
    few = await make_project(database, "few", max_batches_per_hour=2)
    many = await make_project(database, "many", max_batches_per_hour=0)
    keys = {each: f"Bearer {await make_key(database, each)}" for each in (few, many)}
    statuses = {
        caller.project_id: [(await create(client, authorization=key)).status_code for _ in range(4)]
        for caller, key in keys.items()
    }
    assert statuses == {
        few.project_id: [200, 200, 429, 429],
        many.project_id: [200, 200, 200, 200],
    }
    # Nobody's batches count for another.
    ok(await create(client))


async def test_batches_created_at_once_share_what_is_left(
    make_app: AppFactory, make_client: ClientFactory, database: Database
) -> None:
    client = await make_client(make_app(max_batches_per_hour=5))
    answers = await asyncio.gather(*(create(client) for _ in range(16)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 11
    async with database.begin() as session:
        assert await session.scalar(select(func.count()).select_from(Batch)) == 5


async def test_a_file_that_would_be_too_much(
    make_app: AppFactory, make_client: ClientFactory, database: Database
) -> None:
    client = await make_client(make_app(max_stored_bytes=1000))
    kept = ok(await upload(client, b"x" * 600))
    refusal(
        await upload(client, b"x" * 401),
        400,
        NO_ROOM.format(limit=1000),
        code="storage_limit_exceeded",
    )
    ok(await upload(client, b"x" * 400))
    # Full to the brim: only what has no bytes still fits.
    assert (await upload(client, b"x")).status_code == 400
    ok(await upload(client, b""))
    # What was refused has left nothing behind, and what is deleted makes room.
    async with database.begin() as session:
        assert await session.scalar(select(func.count()).select_from(File)) == 3
    ok(await client.delete(f"/v1/files/{kept['id']}"))
    ok(await upload(client, b"x" * 600))


async def test_what_has_expired_and_what_is_anothers_takes_no_room(
    make_app: AppFactory, make_client: ClientFactory, database: Database
) -> None:
    client = await make_client(make_app(max_stored_bytes=1000))
    other = await make_project(database, max_stored_bytes=2000)
    key = f"Bearer {await make_key(database, other)}"
    await make_file(database, b"x" * 900, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    await make_file(database, b"x" * 900, project_pk=other.project_pk)
    ok(await upload(client, b"x" * 1000))
    ok(await upload(client, b"x" * 1100, authorization=key))
    refusal(
        await upload(client, b"x", authorization=key),
        400,
        NO_ROOM.format(limit=2000),
        code="storage_limit_exceeded",
    )


async def test_a_file_is_refused_before_all_of_it_has_come(
    make_app: AppFactory, make_client: ClientFactory
) -> None:
    client = await make_client(make_app(max_stored_bytes=1000))
    sent = 0

    async def body() -> Any:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(1000):
            sent += 1
            yield b"x" * 1000

    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = await client.post("/v1/files", content=body(), headers=headers)
    assert answer.json()["error"]["code"] == "storage_limit_exceeded"
    # The rest is read and dropped after the answer; here it is the end of the test that counts.
    async with client.stream("GET", "/v1/files") as listed:
        assert listed.status_code == 200


async def test_files_uploaded_at_once_share_what_is_left(
    make_app: AppFactory, make_client: ClientFactory
) -> None:
    client = await make_client(make_app(max_stored_bytes=1000))
    answers = await asyncio.gather(*(upload(client, b"x" * 300) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [400] * 5


async def test_what_pending_uploads_have_announced_is_taken(database: Database) -> None:
    now = datetime.now(UTC)

    async def announce(id_: str, size_bytes: int, **values: Any) -> None:
        columns = {
            "id": id_,
            "project_pk": 1,
            "filename": "f",
            "purpose": "batch",
            "mime_type": "text/plain",
            "bytes": size_bytes,
            "expires_at": now + timedelta(hours=1),
        }
        async with database.begin() as session:
            await session.execute(insert(MultipartUpload).values(columns | values))

    await announce("upload_1", 700)
    await announce("upload_2", 700, status="cancelled")
    await announce("upload_3", 700, expires_at=now - timedelta(seconds=1))
    async with database.begin() as session:
        await require_room(session, 1, 300, max_stored_bytes=1000)
    with pytest.raises(StorageLimitReached):
        async with database.begin() as session:
            await require_room(session, 1, 301, max_stored_bytes=1000)


def with_limits(runtime: Runtime, **limits: int) -> Runtime:
    settings = runtime.validate_settings.model_copy(update=limits)
    return replace(runtime, validate_settings=settings)


async def validated(runtime: Runtime, count: int = 3, *, model: str = "m", **values: Any) -> Batch:
    body = {"model": model, "messages": [{"role": "user", "content": "q" * 100}]}
    lines = [input_line(number, body=body) for number in range(1, count + 1)]
    file = await make_file(
        runtime.database, json_lines(*lines), project_pk=values.get("project_pk", 1)
    )
    batch = await make_batch(runtime.database, input_file_id=file.id, **values)
    await validate_batch(runtime, batch.pk)
    return await reload(runtime.database, batch)


def error(message: str) -> list[dict[str, Any]]:
    return [{"code": "token_limit_exceeded", "message": message, "param": None, "line": None}]


async def test_tokens_are_a_quarter_of_a_bodys_bytes(runtime: Runtime) -> None:
    bodies = [b'{"model": "m", "messages": [1]}', '{"model": "m", "messages": ["äöü"]}'.encode()]
    lines = [
        b'{"custom_id": "%d", "method": "POST", "url": "/v1/chat/completions", "body": %b}\n'
        % (number, body)
        for number, body in enumerate(bodies)
    ]
    file = await make_file(runtime.database, b"".join(lines))
    batch = await make_batch(runtime.database, input_file_id=file.id)
    await validate_batch(runtime, batch.pk)
    batch = await reload(runtime.database, batch)
    assert batch.status == BatchStatus.IN_PROGRESS
    assert batch.enqueued_tokens == sum(math.ceil(len(body) / 4) for body in bodies)


async def test_one_batch_too_many_tokens(runtime: Runtime) -> None:
    first = await validated(runtime)
    assert first.status == BatchStatus.IN_PROGRESS
    tokens = first.enqueued_tokens
    assert tokens > 75
    limited = with_limits(runtime, max_enqueued_tokens=2 * tokens - 1)

    refused = await validated(limited)
    assert refused.status == BatchStatus.FAILED
    assert refused.errors == error(
        "Enqueued token limit reached for m in organization org-overnight. Limit:"
        f" {2 * tokens - 1:,} enqueued tokens. Please try again once some in_progress batches have been"
        " completed."
    )
    assert (refused.total, refused.enqueued_tokens) == (0, 0)
    # Of another model, or of another project: counted by themselves.
    assert (await validated(limited, model="n")).status == BatchStatus.IN_PROGRESS
    other = await make_project(runtime.database)
    theirs = await validated(limited, project_pk=other.project_pk)
    assert theirs.status == BatchStatus.IN_PROGRESS


@pytest.mark.parametrize("ways", [["finalizing", "completed"], ["cancelling", "cancelled"]])
async def test_a_batch_that_ends_frees_its_tokens(runtime: Runtime, ways: list[str]) -> None:
    first = await validated(runtime)
    limited = with_limits(runtime, max_enqueued_tokens=first.enqueued_tokens)
    for way in ways:
        assert (await validated(limited)).status == BatchStatus.FAILED
        counts = {"completed": first.total} if way == "completed" else {}
        async with runtime.database.begin() as session:
            assert await advance(session, first.pk, BatchStatus(way), **counts)
    assert (await validated(limited)).status == BatchStatus.IN_PROGRESS


async def test_too_many_requests_at_once(runtime: Runtime) -> None:
    limited = with_limits(runtime, max_enqueued_lines=1000)
    project = await make_project(runtime.database, max_enqueued_lines=5)
    values: dict[str, Any] = {"project_pk": project.project_pk}
    assert (await validated(limited, 5, **values)).status == BatchStatus.IN_PROGRESS
    refused = await validated(limited, 1, **values)
    assert refused.errors == error(
        "Enqueued request limit reached for m in organization org-overnight. Limit: 5 enqueued"
        " requests. Please try again once some in_progress batches have been completed."
    )


async def test_a_projects_own_limit_may_be_none(runtime: Runtime) -> None:
    limited = with_limits(runtime, max_enqueued_lines=1, max_enqueued_tokens=1)
    assert (await validated(limited)).status == BatchStatus.FAILED
    free = await make_project(runtime.database, max_enqueued_lines=0, max_enqueued_tokens=0)
    started = await validated(limited, project_pk=free.project_pk)
    assert started.status == BatchStatus.IN_PROGRESS


async def test_batches_that_begin_at_once_share_what_is_left(runtime: Runtime) -> None:
    limited = with_limits(runtime, max_enqueued_lines=10)
    file = await make_file(runtime.database, input_file(3))
    batches = [await make_batch(runtime.database, input_file_id=file.id) for _ in range(6)]
    await asyncio.gather(*(validate_batch(limited, batch.pk) for batch in batches))
    statuses = [(await reload(runtime.database, batch)).status for batch in batches]
    assert sorted(statuses) == ["failed"] * 3 + ["in_progress"] * 3
