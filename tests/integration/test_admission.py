"""Refusing what plainly cannot be done, where the operator asks for it; and taking everything else."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from models import File
from models.database import Database
from models.lifecycle import BatchStatus
from tests.answers import ok, refusal
from tests.factories import input_file, make_batch, make_file, make_project, make_shard
from tests.fixtures.client import AppFactory, ClientFactory


@pytest.fixture
async def client(make_app: AppFactory, make_client: ClientFactory) -> httpx.AsyncClient:
    """Of an API that refuses what is hopeless."""
    return await make_client(make_app(refuse_hopeless=True, completion_windows="24h,100s"))


async def create(
    client: httpx.AsyncClient, file: File, window: str = "100s", **headers: str
) -> httpx.Response:
    body = {
        "input_file_id": file.id,
        "endpoint": "/v1/chat/completions",
        "completion_window": window,
    }
    return await client.post("/v1/batches", json=body, headers=headers)


async def make_backlog(
    database: Database, *, done: int = 100, rate: float = 0.5, **values: Any
) -> None:
    """A batch of another project that ends in 50 seconds; 100 lines are left at half a line a second."""
    other = await make_project(database)
    columns: dict[str, Any] = {
        "project_pk": other.project_pk,
        "model": "m",
        "window": timedelta(seconds=50),
    }
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS, **columns | values)
    # Written just now, and on a slow machine just now, too.
    just_now = datetime.now(UTC) + timedelta(hours=1)
    await make_shard(
        database,
        batch,
        line_numbers=list(range(1, done + 101)),
        succeeded=done,
        lines_per_second=rate,
        lines_per_second_at=just_now,
    )


async def test_the_lines_before_it_take_longer_than_its_window(
    client: httpx.AsyncClient, database: Database
) -> None:
    await make_backlog(database)
    refused = await create(client, await make_file(database, input_file(1)))
    refusal(
        refused,
        429,
        "Rate limit reached for m in organization org-overnight on enqueued requests: 100 requests end"
        " before this batch, which at 0.5 a second takes 200s, and its window is 100s. Please try again"
        " in 100s.",
        type_="requests",
        code="rate_limit_exceeded",
    )
    assert refused.headers["retry-after"] == "100"
    assert ok(await client.get("/v1/batches"))["data"] == []


@pytest.mark.parametrize(
    "backlog",
    [
        {"rate": 1.1},
        {"rate": 0},
        # At it for less than a minute: who knows how fast it will be.
        {"done": 40},
        {"model": "n"},
        {"paused_at": datetime.now(UTC)},
        {"window": timedelta(hours=1)},
    ],
    ids=["fast", "no rate", "just begun", "another model", "paused", "ends later"],
)
async def test_what_may_be_done_in_time_is_taken(
    client: httpx.AsyncClient, database: Database, backlog: dict[str, Any]
) -> None:
    await make_backlog(database, **backlog)
    ok(await create(client, await make_file(database, input_file(1))))


async def test_in_a_long_window_it_is_taken(client: httpx.AsyncClient, database: Database) -> None:
    await make_backlog(database)
    ok(await create(client, await make_file(database, input_file(1)), window="24h"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[1]\n",
        b'{"body": {"model": 1}}\n',
        b'{"body": {"model": "m\\u0000"}}',
        b"\xff",
    ],
)
async def test_what_nobody_can_tell_is_taken(
    client: httpx.AsyncClient, database: Database, content: bytes
) -> None:
    """Bad lines are the validation's business, and so is a file that is not there."""
    await make_backlog(database)
    ok(await create(client, await make_file(database, content)))
    ok(await create(client, File(id="file-nothing")))


async def test_what_was_taken_is_answered_again(
    client: httpx.AsyncClient, database: Database
) -> None:
    file = await make_file(database, b"\xef\xbb\xbf\n" + input_file(1))
    key = {"idempotency-key": "key-1"}
    batch_id = ok(await create(client, file, **key))["id"]
    await make_backlog(database)
    assert ok(await create(client, file, **key))["id"] == batch_id
    refused = await create(client, file, **{"idempotency-key": "key-2"})
    assert refused.status_code == 429


async def test_by_default_everything_is_taken(
    make_app: AppFactory, make_client: ClientFactory, database: Database
) -> None:
    client = await make_client(make_app(completion_windows="24h,100s"))
    await make_backlog(database)
    ok(await create(client, await make_file(database, input_file(1))))
