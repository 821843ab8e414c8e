"""Lists of batches by status and metadata: an extension."""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from models.database import Database
from models.lifecycle import BatchStatus
from tests.answers import ok, refusal
from tests.factories import make_batch, make_key, make_project

SUPPORTED = (
    "Supported values are: 'validating', 'failed', 'in_progress', 'finalizing', 'completed',"
    " 'expired', 'cancelling', and 'cancelled'."
)


async def ids(client: httpx.AsyncClient, query: Any, **headers: str) -> list[str]:
    answer = await client.get("/v1/batches", params=query, headers=headers)
    return [batch["id"] for batch in ok(answer)["data"]]


async def test_by_status(api_client: httpx.AsyncClient, database: Database) -> None:
    by_status = {
        status: (await make_batch(database, status=status)).id
        for status in (BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.IN_PROGRESS)
    }
    completed, failed, running = by_status.values()
    assert await ids(api_client, {"status": "completed"}) == [completed]
    assert await ids(api_client, {"status": "expired"}) == []
    both = [running, completed]
    assert await ids(api_client, {"status": "completed,in_progress"}) == both
    assert await ids(api_client, {"status": " completed , in_progress"}) == both
    assert await ids(api_client, [("status", "completed"), ("status", "in_progress")]) == both
    assert await ids(api_client, {}) == [running, failed, completed]


@pytest.mark.parametrize(
    ("status", "echo"),
    [("done", "done"), ("completed,", ""), ("", ""), ("COMPLETED", "COMPLETED"), ("\0", "\0")],
)
async def test_what_is_no_status(api_client: httpx.AsyncClient, status: str, echo: str) -> None:
    answer = await api_client.get("/v1/batches", params={"status": status})
    message = f"Invalid value: '{echo}'. {SUPPORTED}"
    refusal(answer, 400, message, code="invalid_value", param="status")


async def test_by_metadata(api_client: httpx.AsyncClient, database: Database) -> None:
    both = await make_batch(database, metadata_={"team": "a", "run": "1"})
    other = await make_batch(database, metadata_={"team": "b", "run": "1"})
    await make_batch(database, metadata_=None)
    await make_batch(database, metadata_={})
    assert await ids(api_client, {"metadata[team]": "a"}) == [both.id]
    assert await ids(api_client, {"metadata[run]": "1"}) == [other.id, both.id]
    assert await ids(api_client, {"metadata[run]": "1", "metadata[team]": "b"}) == [other.id]
    assert await ids(api_client, {"metadata[run]": "2"}) == []
    assert await ids(api_client, {"metadata[nothing]": ""}) == []
    assert await ids(api_client, {"metadata[team]": "A"}) == []
    # Not of the form, so no filter.
    assert len(await ids(api_client, {"metadata": "a", "metadata.team": "a"})) == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("", ""),
        ("a]b[c", "x"),
        ("it's", '100% \\ "quoted"'),
        ("ключ", "значение 🎉"),
        ("line\nbreak", "a\tb"),
        ("0", "1"),
        ("$.a", "{a}"),
        ("a", "\\u0000"),
    ],
)
async def test_any_text_is_found(
    api_client: httpx.AsyncClient, database: Database, key: str, value: str
) -> None:
    batch = await make_batch(database, metadata_={key: value})
    await make_batch(database, metadata_={key: value + "?"})
    assert await ids(api_client, {f"metadata[{key}]": value}) == [batch.id]


async def test_text_that_postgres_cannot_look_into(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    """Metadata may hold a NUL; nobody's list may break because of it."""
    await make_batch(database, metadata_={"team": "a", "odd": "\0"})
    await make_batch(database, metadata_={"te\0am": "a"})
    await make_batch(database, metadata_={"team": "a", "odd": "\\\0"})
    plain = await make_batch(database, metadata_={"team": "a"})
    assert await ids(api_client, {"metadata[team]": "a"}) == [plain.id]
    assert await ids(api_client, {"metadata[odd]": "\0"}) == []
    assert await ids(api_client, {"metadata[te\0am]": "a"}) == []


async def test_pages_of_what_is_wanted(api_client: httpx.AsyncClient, database: Database) -> None:
    # All at the same moment, so that only the order within it counts.
    now = datetime.now(UTC)
    wanted = []
    for number in range(10):
        batch = await make_batch(
            database,
            created_at=now,
            status=BatchStatus.COMPLETED if number % 2 else BatchStatus.FAILED,
            metadata_={"k": str(number % 5 == 0)},
        )
        wanted.append(batch.id)
    query: dict[str, Any] = {"status": "failed", "limit": 2}
    seen: list[str] = []
    for _ in range(10):
        page = ok(await api_client.get("/v1/batches", params=query))
        seen += [batch["id"] for batch in page["data"]]
        if not page["has_more"]:
            break
        query["after"] = page["last_id"]
    assert seen == wanted[8::-2]
    # The place to go on from need not be one of those wanted.
    assert await ids(api_client, {"status": "failed", "after": wanted[3]}) == [wanted[2], wanted[0]]
    assert await ids(api_client, {"metadata[k]": "True", "after": wanted[4]}) == [wanted[0]]


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        (
            {f"metadata[{n}]": "x" for n in range(17)},
            "object_above_max_properties",
            "metadata",
        ),
        (
            {f"metadata[{'k' * 65}]": "x"},
            "property_name_above_max_length",
            f"metadata.{'k' * 65}",
        ),
        ({"metadata[k]": "v" * 513}, "string_above_max_length", "metadata.k"),
        ([("metadata[k]", "a"), ("metadata[k]", "b")], "invalid_value", "metadata[k]"),
    ],
)
async def test_metadata_that_no_batch_has(
    api_client: httpx.AsyncClient, query: Any, code: str, param: str
) -> None:
    answer = await api_client.get("/v1/batches", params=query)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)


async def test_filters_stay_within_a_project(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    caller = await make_project(database)
    key = await make_key(database, caller)
    mine = await make_batch(database, metadata_={"k": "v"})
    theirs = await make_batch(database, metadata_={"k": "v"}, project_pk=caller.project_pk)
    query = {"status": "validating", "metadata[k]": "v"}
    assert await ids(api_client, query) == [mine.id]
    assert await ids(api_client, query, authorization=f"Bearer {key}") == [theirs.id]


async def test_a_window_of_any_length(make_app: Any, make_client: Any, database: Database) -> None:
    """From the request to the moment at which it ends."""
    del database
    client = await make_client(make_app(completion_windows="24h,10s-2h"))
    body = {"input_file_id": "file-1", "endpoint": "/v1/embeddings"}
    for word, seconds in (("10s", 10), ("90m", 5400), ("24h", 86400)):
        batch = ok(await client.post("/v1/batches", json=body | {"completion_window": word}))
        assert batch["completion_window"] == word
        assert batch["expires_at"] - batch["created_at"] == pytest.approx(seconds, abs=1)
    answer = await client.post("/v1/batches", json=body | {"completion_window": "9s"})
    message = (
        "Invalid value: '9s'. Supported values are: '24h' and any duration from '10s' to '2h'."
    )
    refusal(answer, 400, message, code="invalid_value", param="completion_window")
