"""/v1/batches: every route, happy and with each bad input."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select, text

from models import Batch
from models.database import Database
from models.lifecycle import BatchStatus, ShardState
from models.queries import advance
from tests.answers import ok, refusal
from tests.factories import make_batch, make_file, make_shard
from tests.fixtures.client import AppFactory, ClientFactory, RecordingBell

DAY = 24 * 3600
BODY = {
    "input_file_id": "file-abc",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}


async def stored(database: Database) -> Batch:
    async with database.begin() as session:
        return (await session.scalars(select(Batch))).one()


# Create


async def test_a_new_batch(
    api_client: httpx.AsyncClient, database: Database, bell: RecordingBell
) -> None:
    before = int(datetime.now(UTC).timestamp())
    file = await make_file(database)
    request = BODY | {"input_file_id": file.id, "metadata": {"k": "v"}}
    batch = ok(await api_client.post("/v1/batches", json=request))
    row = await stored(database)
    assert bell.rings == [("validate", row.pk)]
    assert before <= batch["created_at"] <= before + 5
    assert len(batch["id"]) == len("batch_") + 32
    nothing_yet = (
        "model",
        "errors",
        "output_file_id",
        "error_file_id",
        "in_progress_at",
        "finalizing_at",
        "completed_at",
        "failed_at",
        "expired_at",
        "cancelling_at",
        "cancelled_at",
        "usage",
    )
    assert batch == dict.fromkeys(nothing_yet) | {
        "id": row.id,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "input_file_id": file.id,
        "completion_window": "24h",
        "status": "validating",
        "created_at": batch["created_at"],
        "expires_at": batch["created_at"] + DAY,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": {"k": "v"},
    }
    assert row.expires_at - row.created_at == timedelta(hours=24)
    assert ok(await api_client.get(f"/v1/batches/{row.id}")) == batch


@pytest.mark.parametrize(
    "endpoint",
    [
        "/v1/responses",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/completions",
        "/v1/moderations",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/videos",
    ],
)
async def test_every_endpoint(api_client: httpx.AsyncClient, endpoint: str) -> None:
    batch = ok(await api_client.post("/v1/batches", json=BODY | {"endpoint": endpoint}))
    assert batch["endpoint"] == endpoint


async def test_whether_the_file_exists_is_not_asked(api_client: httpx.AsyncClient) -> None:
    batch = ok(await api_client.post("/v1/batches", json=BODY | {"input_file_id": "nonsense"}))
    assert (batch["status"], batch["input_file_id"]) == ("validating", "nonsense")


@pytest.mark.parametrize(
    "metadata", [None, {}, {"k": "v", "": ""}, {"nul": "\0", "é": "☃ 𝄞", "quote": '"\\'}]
)
async def test_metadata_comes_back_as_sent(
    api_client: httpx.AsyncClient, metadata: dict[str, str] | None
) -> None:
    batch = ok(await api_client.post("/v1/batches", json=BODY | {"metadata": metadata}))
    assert batch["metadata"] == metadata
    assert ok(await api_client.get(f"/v1/batches/{batch['id']}"))["metadata"] == metadata


async def test_a_life_for_the_output(api_client: httpx.AsyncClient, database: Database) -> None:
    life = {"anchor": "created_at", "seconds": 7200}
    ok(await api_client.post("/v1/batches", json=BODY | {"output_expires_after": life}))
    assert (await stored(database)).output_expires_after_seconds == 7200


async def test_other_windows(make_app: AppFactory, make_client: ClientFactory) -> None:
    client = await make_client(make_app(completion_windows="1h,7d"))
    batch = ok(await client.post("/v1/batches", json=BODY | {"completion_window": "7d"}))
    assert batch["completion_window"] == "7d"
    assert batch["expires_at"] == batch["created_at"] + 7 * DAY
    response = await client.post("/v1/batches", json=BODY)
    message = "Invalid value: '24h'. Supported values are: '1h' and '7d'."
    refusal(response, 400, message, code="invalid_value", param="completion_window")


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
async def test_any_content_type_will_do(api_client: httpx.AsyncClient, content_type: str) -> None:
    content = httpx.Request("POST", "http://x", json=BODY).content
    headers = {"content-type": content_type}
    ok(await api_client.post("/v1/batches", content=content, headers=headers))


@pytest.mark.parametrize(
    ("changes", "message", "code", "param"),
    [
        (
            {"endpoint": "/v1/images/variations"},
            (
                "Invalid value: '/v1/images/variations'. Supported values are: '/v1/responses',"
                " '/v1/chat/completions', '/v1/embeddings', '/v1/completions', '/v1/moderations',"
                " '/v1/images/generations', '/v1/images/edits', and '/v1/videos'."
            ),
            "invalid_value",
            "endpoint",
        ),
        (
            {"completion_window": "1h"},
            "Invalid value: '1h'. Supported values are: '24h'.",
            "invalid_value",
            "completion_window",
        ),
        ({"color": "red"}, "Unknown parameter: 'color'.", "unknown_parameter", "color"),
        (
            {"input_file_id": None},
            "Invalid type for 'input_file_id': expected a string, but got null instead.",
            "invalid_type",
            "input_file_id",
        ),
        (
            {"input_file_id": "a\0b"},
            "Invalid 'input_file_id': it contains a NUL character, and no file id does.",
            "invalid_value",
            "input_file_id",
        ),
        (
            {"metadata": {"k": ["v"]}},
            "Invalid type for 'metadata.k': expected a string, but got an array instead.",
            "invalid_type",
            "metadata.k",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 60}},
            (
                "Invalid 'output_expires_after.seconds': integer below minimum value. Expected a value"
                " >= 3600, but got 60 instead."
            ),
            "integer_below_min_value",
            "output_expires_after.seconds",
        ),
    ],
)
async def test_a_wrong_parameter(
    api_client: httpx.AsyncClient,
    bell: RecordingBell,
    changes: dict[str, Any],
    message: str,
    code: str,
    param: str,
) -> None:
    response = await api_client.post("/v1/batches", json=BODY | changes)
    refusal(response, 400, message, code=code, param=param)
    assert bell.rings == []


@pytest.mark.parametrize("content", [b"", b" \n", b"{}"])
async def test_an_empty_body(api_client: httpx.AsyncClient, content: bytes) -> None:
    response = await api_client.post("/v1/batches", content=content)
    message = "Missing required parameter: 'input_file_id'."
    code, param = "missing_required_parameter", "input_file_id"
    refusal(response, 400, message, code=code, param=param)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"not json",
        b'{"input_file_id": NaN}',
        b'{"input_file_id": "\\ud800"}',
        b'{"input_file_id": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"[" * 5000 + b"]" * 5000,
        b"{'single': 'quotes'}",
    ],
)
async def test_a_body_that_is_no_json(api_client: httpx.AsyncClient, content: bytes) -> None:
    response = await api_client.post("/v1/batches", content=content)
    message = (
        "We could not parse the JSON body of your request. The API expects a JSON payload, but what"
        " was sent was not valid JSON."
    )
    refusal(response, 400, message)


async def test_a_body_that_is_no_object(api_client: httpx.AsyncClient) -> None:
    response = await api_client.post("/v1/batches", json=[BODY])
    message = "Invalid type for 'body': expected an object, but got an array instead."
    refusal(response, 400, message, code="invalid_type")


async def test_a_huge_body(api_client: httpx.AsyncClient) -> None:
    response = await api_client.post("/v1/batches", content=b" " * 2_000_000)
    refusal(response, 413, "The body is larger than 1048576 bytes.")


async def test_unknown_parameters_can_be_ignored(
    make_app: AppFactory, make_client: ClientFactory
) -> None:
    client = await make_client(make_app(unknown_parameters="ignore"))
    ok(await client.post("/v1/batches", json=BODY | {"color": "red"}))


async def test_a_broker_that_is_away_fails_nothing(
    api_client: httpx.AsyncClient, database: Database, bell: RecordingBell
) -> None:
    bell.failure = ConnectionError("no broker")
    ok(await api_client.post("/v1/batches", json=BODY))
    assert (await stored(database)).status == "validating"


async def test_a_slow_bell_holds_nobody_up(
    api_client: httpx.AsyncClient, bell: RecordingBell, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr("api.bell._RING_SECONDS", 0.05)
    monkeypatch.setattr(bell, "ring_validate", lambda _: released.wait(10))
    try:
        creating = asyncio.create_task(api_client.post("/v1/batches", json=BODY))
        ok(await api_client.get("/healthz"))
        ok(await creating)
    finally:
        released.set()


# Show


async def test_an_ended_batch(api_client: httpx.AsyncClient, database: Database) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    usage = {
        "input_tokens": 10,
        "cached_tokens": 4,
        "output_tokens": 20,
        "reasoning_tokens": 5,
        "total_tokens": 30,
    }
    made = await make_batch(
        database,
        status=BatchStatus.COMPLETED,
        created_at=moment,
        model="m",
        total=3,
        completed=2,
        failed=1,
        usage=usage,
        output_file_id="file-out",
        error_file_id="file-err",
    )
    shown = ok(await api_client.get(f"/v1/batches/{made.id}"))
    seconds = int(moment.timestamp())
    assert shown["status"] == "completed"
    assert shown["model"] == "m"
    assert shown["completed_at"] == shown["finalizing_at"] == shown["in_progress_at"] == seconds
    assert (shown["output_file_id"], shown["error_file_id"]) == ("file-out", "file-err")
    assert shown["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert shown["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 5},
        "total_tokens": 30,
    }


async def test_a_failed_batch(api_client: httpx.AsyncClient, database: Database) -> None:
    error = {"code": "invalid_json_line", "message": "no", "param": None, "line": 3}
    made = await make_batch(database, status=BatchStatus.FAILED, errors=[error])
    shown = ok(await api_client.get(f"/v1/batches/{made.id}"))
    assert shown["errors"] == {"object": "list", "data": [error]}
    assert shown["in_progress_at"] is None
    assert shown["failed_at"] is not None
    assert shown["expires_at"] is not None


async def test_the_counts_of_a_running_batch_are_those_of_its_shards(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    made = await make_batch(database, status=BatchStatus.IN_PROGRESS, total=9)
    await make_shard(database, made, no=0, state=ShardState.DONE)
    await make_shard(
        database, made, no=1, state=ShardState.RUNNING, line_numbers=[4, 5, 6], failed=1
    )
    await make_shard(database, made, no=2, line_numbers=[7, 8, 9])
    shown = ok(await api_client.get(f"/v1/batches/{made.id}"))
    assert shown["request_counts"] == {"total": 9, "completed": 3, "failed": 1}
    assert shown["usage"] is None
    listed = ok(await api_client.get("/v1/batches"))["data"]
    assert listed == [shown]


UNKNOWN_IDS = ["batch_unknown", "batch_" + "x" * 500, "batch_%00", "%F0%9F%98%80", "batch_%FF"]


@pytest.mark.parametrize("batch_id", UNKNOWN_IDS)
@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/cancel")])
async def test_an_unknown_batch(
    api_client: httpx.AsyncClient, method: str, path: str, batch_id: str
) -> None:
    url = httpx.URL("http://overnight").copy_with(raw_path=f"/v1/batches/{batch_id}{path}".encode())
    response = await api_client.request(method, url)
    assert response.status_code == 404
    assert response.json()["error"]["message"].startswith("No batch found with id '")
    if batch_id == "batch_unknown":
        refusal(response, 404, "No batch found with id 'batch_unknown'.")


# List


async def some_batches(database: Database, count: int = 7) -> list[str]:
    """Make batches, some of them of the same moment; return their ids, newest first."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    made = [
        await make_batch(database, created_at=moment + timedelta(seconds=number // 3))
        for number in range(count)
    ]
    return [batch.id for batch in reversed(made)]


async def walk(client: httpx.AsyncClient, limit: int) -> list[str]:
    found: list[str] = []
    while True:
        after = {"after": found[-1]} if found else {}
        query: dict[str, Any] = {"limit": limit}
        page = ok(await client.get("/v1/batches", params=query | after))
        found += [batch["id"] for batch in page["data"]]
        if page["data"]:
            assert page["first_id"] == page["data"][0]["id"]
            assert page["last_id"] == page["data"][-1]["id"]
        if not page["has_more"]:
            return found
        assert len(page["data"]) == limit


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8])
async def test_pages_of_batches(
    api_client: httpx.AsyncClient, database: Database, limit: int
) -> None:
    newest_first = await some_batches(database)
    assert await walk(api_client, limit) == newest_first


async def test_by_default_a_page_has_twenty(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    newest_first = await some_batches(database, 21)
    page = ok(await api_client.get("/v1/batches"))
    assert [batch["id"] for batch in page["data"]] == newest_first[:20]
    assert page["has_more"] is True
    assert page["last_id"] == newest_first[19]


async def test_no_batches(api_client: httpx.AsyncClient) -> None:
    assert ok(await api_client.get("/v1/batches")) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


async def test_a_limit_of_nothing_is_an_empty_page(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    await some_batches(database)
    page = ok(await api_client.get("/v1/batches?limit=0"))
    assert (page["data"], page["first_id"], page["has_more"]) == ([], None, False)


@pytest.mark.parametrize(
    ("query", "code", "param", "message"),
    [
        (
            "limit=101",
            "integer_above_max_value",
            "limit",
            (
                "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101"
                " instead."
            ),
        ),
        (
            "limit=-5",
            "integer_below_min_value",
            "limit",
            (
                "Invalid 'limit': integer below minimum value. Expected a value >= 0, but got -5"
                " instead."
            ),
        ),
        (
            "limit=1.5",
            "invalid_type",
            "limit",
            "Invalid type for 'limit': expected an integer, but got a string instead.",
        ),
        (
            "after=batch_unknown",
            "invalid_value",
            "after",
            "Invalid 'after': no batch found with id 'batch_unknown'.",
        ),
        ("after=", "invalid_value", "after", "Invalid 'after': no batch found with id ''."),
        (
            "after=a%00",
            "invalid_value",
            "after",
            "Invalid 'after': no batch found with id 'a\0'.",
        ),
    ],
)
async def test_a_wrong_list_query(
    api_client: httpx.AsyncClient, query: str, code: str, param: str, message: str
) -> None:
    refusal(await api_client.get(f"/v1/batches?{query}"), 400, message, code=code, param=param)


async def test_a_limit_with_more_digits_than_any_number(api_client: httpx.AsyncClient) -> None:
    response = await api_client.get("/v1/batches?limit=" + "9" * 5000)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "limit"
    assert len(response.content) < 1000


# Cancel


@pytest.mark.parametrize("status", [BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS])
async def test_cancelling(
    api_client: httpx.AsyncClient, database: Database, bell: RecordingBell, status: BatchStatus
) -> None:
    made = await make_batch(database, status=status)
    shown = ok(await api_client.post(f"/v1/batches/{made.id}/cancel"))
    assert shown["status"] == "cancelling"
    assert shown["cancelling_at"] is not None
    assert bell.rings == [("finalize", made.pk)]
    assert ok(await api_client.get(f"/v1/batches/{made.id}")) == shown


@pytest.mark.parametrize("status", [BatchStatus.CANCELLING, BatchStatus.CANCELLED])
async def test_cancelling_again_changes_nothing(
    api_client: httpx.AsyncClient, database: Database, bell: RecordingBell, status: BatchStatus
) -> None:
    made = await make_batch(database, status=status)
    before = ok(await api_client.get(f"/v1/batches/{made.id}"))
    assert ok(await api_client.post(f"/v1/batches/{made.id}/cancel")) == before
    assert bell.rings == []


@pytest.mark.parametrize(
    "status",
    [BatchStatus.FINALIZING, BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED],
)
async def test_what_cannot_be_cancelled(
    api_client: httpx.AsyncClient, database: Database, bell: RecordingBell, status: BatchStatus
) -> None:
    made = await make_batch(database, status=status)
    response = await api_client.post(f"/v1/batches/{made.id}/cancel")
    refusal(response, 409, f"Cannot cancel a batch with status '{status.value}'.")
    assert response.headers["x-should-retry"] == "false"
    assert bell.rings == []


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"", "application/json"),
        (b"{}", "application/json"),
        (b"", None),
        (b"no json", "application/json"),
        (b"a=b", "application/x-www-form-urlencoded"),
        (b"\xff", "application/octet-stream"),
    ],
)
async def test_what_a_cancel_carries_does_not_matter(
    api_client: httpx.AsyncClient, database: Database, content: bytes, content_type: str | None
) -> None:
    made = await make_batch(database)
    headers = {} if content_type is None else {"content-type": content_type}
    url = f"/v1/batches/{made.id}/cancel"
    response = await api_client.post(url, content=content, headers=headers)
    assert ok(response)["status"] == "cancelling"


async def test_many_cancels_at_once(
    api_client: httpx.AsyncClient, database: Database, bell: RecordingBell
) -> None:
    made = await make_batch(database, status=BatchStatus.IN_PROGRESS)
    url = f"/v1/batches/{made.id}/cancel"
    answers = await asyncio.gather(*(api_client.post(url) for _ in range(10)))
    assert {ok(answer)["status"] for answer in answers} == {"cancelling"}
    assert len({ok(answer)["cancelling_at"] for answer in answers}) == 1
    assert bell.rings == [("finalize", made.pk)]


@pytest.mark.parametrize(
    ("rival", "status"), [(BatchStatus.FINALIZING, 409), (BatchStatus.CANCELLING, 200)]
)
async def test_a_cancel_that_loses_a_race_tells_what_won(
    api_client: httpx.AsyncClient, database: Database, rival: BatchStatus, status: int
) -> None:
    made = await make_batch(database, status=BatchStatus.IN_PROGRESS)
    async with database.begin() as session:
        assert await advance(session, made.pk, rival)
        # The cancel has read `in_progress` and waits for this row.
        cancelling = asyncio.create_task(api_client.post(f"/v1/batches/{made.id}/cancel"))
        await wait_for_a_waiter(database)
    assert (await cancelling).status_code == status


async def wait_for_a_waiter(database: Database) -> None:
    """Wait until some statement waits for a lock."""
    async with asyncio.timeout(10):
        while True:
            async with database.begin() as session:
                statement = text(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
                if await session.scalar(statement):
                    return
            await asyncio.sleep(0.01)
