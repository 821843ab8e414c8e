"""Every route with an id in its path or query, called with another project's object.

The calls come from the OpenAPI document: a new route that takes an id fails here until it has its row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select

from api.app import create_app
from models import Base, WebhookEndpoint
from models.database import Database
from models.ids import new_webhook_endpoint_id
from models.lifecycle import BatchStatus
from models.project import Caller
from models.settings import DatabaseSettings, UpstreamSettings
from tests.answers import ok
from tests.factories import (
    input_file,
    make_batch,
    make_file,
    make_key,
    make_project,
    make_shard,
)
from tests.fixtures.client import RecordingBell, api_settings
from tests.fixtures.runtime import reload
from worker.runtime import Runtime
from worker.stages.validate import validate_batch

NOBODYS = {
    "file_id": "file-0000000000000000000000",
    "batch_id": "batch_00000000000000000000000000000000",
    "upload_id": "upload_00000000000000000000000000000000",
    "webhook_endpoint_id": "whe_00000000000000000000000000000000",
}
# Path parameters that name nothing of a project's.
NO_ID = {"model"}
# What `after` names, by the list that it stands in; and the query parameters that name nothing.
LISTED = {
    "/v1/files": "file_id",
    "/v1/batches": "batch_id",
    "/v1/webhook_endpoints": "webhook_endpoint_id",
}
NO_CURSOR = {"limit", "metadata", "offset", "order", "purpose", "status"}

Body = Callable[[dict[str, str]], dict[str, Any]]
# A good body for each route that takes an id in its path and a body.
BODIES: dict[tuple[str, str], Body] = {
    ("POST", "/v1/batches/{batch_id}/retry"): lambda _: {"json": {}},
    ("POST", "/v1/uploads/{upload_id}/parts"): lambda _: {"files": {"data": b"more"}},
    ("POST", "/v1/uploads/{upload_id}/complete"): lambda ids: {"json": {"part_ids": [ids["part"]]}},
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}"): lambda _: {"json": {"name": "other"}},
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret"): lambda _: {"json": {}},
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/test"): lambda _: {
        "json": {"event_type": "batch.completed"}
    },
}


@dataclass(frozen=True)
class Call:
    """One request that names one object: in its path, or after `after`."""

    method: str
    path: str
    names: str
    is_cursor: bool
    has_body: bool

    def __str__(self) -> str:
        return f"{self.method} {self.path}{'?after' if self.is_cursor else ''}"


def calls() -> Iterator[Call]:
    """All of them. What is an id and has no row here is a call, too, and fails."""
    app = create_app(
        api_settings(),
        database=DatabaseSettings.model_validate({"database_url": "postgresql://x/y"}),
        upstream=UpstreamSettings.model_validate({"upstream_url": "http://x/v1"}),
        bell=RecordingBell(),
    )
    # Clients use it, and the document leaves it out.
    yield Call("HEAD", "/v1/files/{file_id}/content", "file_id", is_cursor=False, has_body=False)
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            has_body = "requestBody" in operation
            for parameter in operation.get("parameters", []):
                where, name = parameter["in"], parameter["name"]
                if where == "path" and name not in NO_ID:
                    yield Call(method.upper(), path, name, is_cursor=False, has_body=has_body)
                if where == "query" and name not in NO_CURSOR:
                    names = LISTED.get(path, "?") if name == "after" else name
                    yield Call(method.upper(), path, names, is_cursor=True, has_body=has_body)


CALLS = list(calls())


async def make_one_of_each(
    client: httpx.AsyncClient, database: Database, owner: Caller
) -> dict[str, str]:
    """One object of every kind, by the names that paths have for them; `client` has the owner's key."""
    project: dict[str, Any] = {"project_pk": owner.project_pk}
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS, total=3, **project)
    await make_shard(database, batch)
    file = await make_file(database, **project)
    announced = {
        "filename": "in.jsonl",
        "purpose": "batch",
        "mime_type": "application/jsonl",
        "bytes": len(input_file()),
    }
    upload = ok(await client.post("/v1/uploads", json=announced))
    parts = f"/v1/uploads/{upload['id']}/parts"
    part = ok(await client.post(parts, files={"data": input_file()}))
    endpoint = {
        "id": new_webhook_endpoint_id(),
        "name": "n",
        # Refused before a connection is made.
        "url": "https://127.0.0.1:1/",
        "event_types": ["batch.completed"],
        "secret": "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz",
    }
    async with database.begin() as session:
        await session.execute(insert(WebhookEndpoint).values(endpoint | project))
    return {
        "file_id": file.id,
        "batch_id": batch.id,
        "upload_id": upload["id"],
        "webhook_endpoint_id": endpoint["id"],
        "part": part["id"],
    }


async def everything(database: Database) -> dict[str, list[Any]]:
    """All rows of all tables that a request could change."""
    tables = [table for name, table in Base.metadata.tables.items() if name != "api_keys"]
    async with database.begin() as session:
        return {
            table.name: sorted(map(repr, (await session.execute(select(table))).all()))
            for table in tables
        }


async def send(
    client: httpx.AsyncClient, call: Call, id_: str, ids: dict[str, str], key: str
) -> httpx.Response:
    body: dict[str, Any] = {}
    if call.has_body and not call.is_cursor:
        body = BODIES[call.method, call.path](ids)
    path = call.path if call.is_cursor else call.path.replace(f"{{{call.names}}}", id_)
    return await client.request(
        call.method,
        path,
        params={"after": id_} if call.is_cursor else None,
        headers={"authorization": f"Bearer {key}"},
        **body,
    )


def told(answer: httpx.Response, id_: str, call: Call) -> tuple[Any, ...]:
    """All that an answer tells, without the id that was asked for and what is new each time."""
    fleeting = {"x-request-id", "openai-processing-ms", "content-length"}
    headers = {name: value for name, value in answer.headers.items() if name not in fleeting}
    return answer.status_code, headers, answer.text.replace(id_, NOBODYS[call.names])


@pytest.mark.parametrize("call", CALLS, ids=str)
async def test_another_projects_object_is_not_there(
    api_client: httpx.AsyncClient, database: Database, call: Call
) -> None:
    assert call.names in NOBODYS, f"{call}: make one of these in `make_one_of_each`"
    assert not call.has_body or call.is_cursor or (call.method, call.path) in BODIES, (
        f"{call}: give a good body in BODIES"
    )
    owner, stranger = [await make_project(database, name) for name in ("owner", "stranger")]
    keys = [await make_key(database, each) for each in (owner, stranger)]
    api_client.headers["authorization"] = f"Bearer {keys[0]}"
    ids = await make_one_of_each(api_client, database, owner)
    theirs, nobodys = ids[call.names], NOBODYS[call.names]
    before = await everything(database)

    refused = await send(api_client, call, theirs, ids, keys[1])
    unknown = await send(api_client, call, nobodys, ids, keys[1])

    assert told(refused, theirs, call) == told(unknown, nobodys, call)
    assert refused.status_code == (400 if call.is_cursor else 404)
    if call.is_cursor:
        assert refused.json()["error"]["param"] == "after"
    assert await everything(database) == before
    # It is there for its owner, so the request was a good one.
    found = await send(api_client, call, theirs, ids, keys[0])
    assert found.status_code not in {401, 404, 422}, found.text
    assert found.status_code < 500
    if call.is_cursor:
        assert found.status_code == 200


def test_the_document_names_all_kinds_of_objects() -> None:
    assert {call.names for call in CALLS} == set(NOBODYS)
    assert {call.path for call in CALLS if call.is_cursor} == set(LISTED)


async def test_another_projects_file_is_no_input(runtime: Runtime) -> None:
    stranger = await make_project(runtime.database)
    file = await make_file(runtime.database)
    told_of = []
    for input_file_id in (file.id, NOBODYS["file_id"]):
        batch = await make_batch(
            runtime.database, input_file_id=input_file_id, project_pk=stranger.project_pk
        )
        await validate_batch(runtime, batch.pk)
        batch = await reload(runtime.database, batch)
        told_of.append((batch.status, repr(batch.errors).replace(file.id, NOBODYS["file_id"])))
    assert told_of[0] == told_of[1]
    assert told_of[0][0] == BatchStatus.FAILED


async def test_another_projects_part_is_no_part(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    owner, stranger = [await make_project(database, name) for name in ("owner", "stranger")]
    keys = [await make_key(database, each) for each in (owner, stranger)]
    made = []
    for project, key in zip((owner, stranger), keys, strict=True):
        api_client.headers["authorization"] = f"Bearer {key}"
        made.append(await make_one_of_each(api_client, database, project))
    complete = f"/v1/uploads/{made[1]['upload_id']}/complete"

    answers = [
        await api_client.post(complete, json={"part_ids": [part]})
        for part in (made[0]["part"], "part_00000000000000000000000000000000")
    ]

    assert answers[0].status_code == answers[1].status_code == 400
    texts = [answer.text.replace(made[0]["part"], "part_" + "0" * 32) for answer in answers]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/files"])
async def test_an_idempotency_key_is_a_projects_own(
    api_client: httpx.AsyncClient, database: Database, path: str
) -> None:
    body: dict[str, Any] = {"files": {"file": input_file()}, "data": {"purpose": "batch"}}
    if path == "/v1/batches":
        create = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        body = {"json": create | {"input_file_id": NOBODYS["file_id"]}}
    seen = set()
    for name in ("a", "b"):
        key = await make_key(database, await make_project(database, name))
        headers = {"authorization": f"Bearer {key}", "idempotency-key": "same"}
        first = ok(await api_client.post(path, headers=headers, **body))
        again = ok(await api_client.post(path, headers=headers, **body))
        assert first == again
        seen.add(first["id"])
    assert len(seen) == 2
