"""Every route of the application, called with every kind of object that is another project's.

The matrix is generated from the application's own routes: one that is not in it fails here. What a
stranger is answered has to be, to the letter, what is said of an object that never was, and nothing may
have changed; the owner is then answered otherwise, so that the request was a good one.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from sqlalchemy import insert, select

from models import ApiKey, Base, Project, WebhookEndpoint
from models.database import Database
from models.ids import new_webhook_endpoint_id
from models.lifecycle import BatchStatus
from models.project import Caller
from tests.answers import ok
from tests.factories import (
    input_file,
    make_batch,
    make_file,
    make_key,
    make_project,
    make_shard,
)
from tests.fixtures.runtime import reload
from worker.runtime import Runtime
from worker.stages.validate import validate_batch

NOBODYS = {
    "file_id": "file-0000000000000000000000",
    "batch_id": "batch_00000000000000000000000000000000",
    "upload_id": "upload_00000000000000000000000000000000",
    "webhook_endpoint_id": "whe_00000000000000000000000000000000",
    # These no route takes; a stranger may try them all the same.
    "part_id": "part_00000000000000000000000000000000",
    "project_id": "proj_000000000000000000000000",
    "key_id": "key_000000000000000000000000",
}
Body = Callable[[dict[str, str]], dict[str, Any]]


def _none(_: dict[str, str]) -> dict[str, Any]:
    return {}


def _json(**body: Any) -> Body:
    return lambda _: {"json": body}


# What each route that names an object in its path is sent besides; `calls` fails for one without a row.
OBJECTS: dict[tuple[str, str], Body] = {
    ("GET", "/v1/files/{file_id}"): _none,
    ("DELETE", "/v1/files/{file_id}"): _none,
    ("GET", "/v1/files/{file_id}/content"): _none,
    ("HEAD", "/v1/files/{file_id}/content"): _none,
    ("GET", "/v1/batches/{batch_id}"): _none,
    ("POST", "/v1/batches/{batch_id}/cancel"): _none,
    ("POST", "/v1/batches/{batch_id}/pause"): _none,
    ("POST", "/v1/batches/{batch_id}/resume"): _none,
    ("POST", "/v1/batches/{batch_id}/retry"): _json(),
    ("GET", "/v1/batches/{batch_id}/progress"): _none,
    ("GET", "/v1/batches/{batch_id}/output"): _none,
    ("GET", "/v1/batches/{batch_id}/errors"): _none,
    ("GET", "/v1/batches/{batch_id}/history"): _none,
    ("GET", "/v1/batches/{batch_id}/failures"): _none,
    ("GET", "/v1/batches/{batch_id}/lines/{line}"): _none,
    ("POST", "/v1/uploads/{upload_id}/parts"): lambda _: {"files": {"data": b"more"}},
    ("POST", "/v1/uploads/{upload_id}/complete"): lambda ids: {
        "json": {"part_ids": [ids["part_id"]]}
    },
    ("POST", "/v1/uploads/{upload_id}/cancel"): _none,
    ("GET", "/v1/webhook_endpoints/{webhook_endpoint_id}"): _none,
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}"): _json(name="other"),
    ("DELETE", "/v1/webhook_endpoints/{webhook_endpoint_id}"): _none,
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret"): _json(),
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/test"): _json(
        event_type="batch.completed"
    ),
}
# Lists, with what `after` names in each.
LISTS = {
    ("GET", "/v1/files"): "file_id",
    ("GET", "/v1/batches"): "batch_id",
    ("GET", "/v1/webhook_endpoints"): "webhook_endpoint_id",
}
# These make something of the caller's own; the tests below are about the ids in their bodies.
CREATES = {
    ("POST", "/v1/files"),
    ("POST", "/v1/batches"),
    ("POST", "/v1/uploads"),
    ("POST", "/v1/webhook_endpoints"),
}
# Nothing in these belongs to a project, or all of it to the operator's.
COMMON = {
    ("GET", "/v1/workers"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model:path}"),
    ("GET", "/v1/webhook_event_types"),
}
# Nor does one object; what they tell is the caller's own (`tests/dashboard`).
OWN = {("GET", "/v1/events")}
# And these want no key.
OPEN = {
    ("GET", "/"),
    ("GET", "/dashboard/static/{name:path}"),
    ("GET", "/dashboard/session"),
    ("POST", "/dashboard/session"),
    ("DELETE", "/dashboard/session"),
    ("GET", "/metrics"),
    *(
        (method, path)
        for path in (
            "/healthz",
            "/readyz",
            "/openapi.json",
            "/docs",
            "/docs/oauth2-redirect",
            "/redoc",
        )
        for method in ("GET", "HEAD")
    ),
}


@dataclass(frozen=True)
class Call:
    """One request that names one object, in its path or after `after`."""

    method: str
    path: str
    names: str
    """The kind of object that the route is about."""

    body: Body = _none

    @property
    def is_list(self) -> bool:
        """Whether the object stands in the query."""
        return "_id}" not in self.path

    async def send(
        self, client: httpx.AsyncClient, id_: str, ids: dict[str, str], key: str
    ) -> httpx.Response:
        """Send it about the object of this id."""
        path = self.path.replace(f"{{{self.names}}}", id_).replace("{line}", "1")
        return await client.request(
            self.method,
            path,
            params={"after": id_} if self.is_list else None,
            headers={"authorization": f"Bearer {key}"},
            **self.body(ids),
        )

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def calls() -> Iterator[Call]:
    """All that the matrix has, in its order."""
    for (method, path), body in OBJECTS.items():
        [names] = re.findall(r"{(\w+_id)}", path)
        yield Call(method, path, names, body)
    for (method, path), names in LISTS.items():
        yield Call(method, path, names)


def test_every_route_is_in_the_matrix(app: FastAPI) -> None:
    found = {
        (method, str(context.path))
        for context in iter_route_contexts(app.routes)
        for method in context.methods or ()
    }
    assert found == {*OBJECTS, *LISTS, *CREATES, *COMMON, *OWN, *OPEN}
    # What wants a key is judged by `test_api_auth.py` from the document; it has to know the same routes.
    document = app.openapi()["paths"]
    kept = {
        (method.upper(), path)
        for path, operations in document.items()
        for method, operation in operations.items()
        if "security" in operation
    }
    plain = {(method, path.replace(":path", "")) for method, path in found - OPEN}
    assert plain - kept == {("HEAD", "/v1/files/{file_id}/content")}
    assert kept <= plain


async def make_one_of_each(
    client: httpx.AsyncClient, database: Database, owner: Caller, key: str
) -> dict[str, str]:
    """One object of every kind, by the names that paths have for them."""
    project: dict[str, Any] = {"project_pk": owner.project_pk}
    headers = {"authorization": f"Bearer {key}"}
    file = await make_file(database, **project)
    of_file: dict[str, Any] = {"input_file_id": file.id, "input_file_pk": file.pk}
    batch = await make_batch(
        database, status=BatchStatus.IN_PROGRESS, total=3, **of_file, **project
    )
    length = len(input_file(1)) - 1
    await make_shard(database, batch, line_numbers=[1], offsets=[0], lengths=[length])
    announced = {
        "filename": "in.jsonl",
        "purpose": "batch",
        "mime_type": "application/jsonl",
        "bytes": len(input_file()),
    }
    upload = ok(await client.post("/v1/uploads", json=announced, headers=headers))
    parts = f"/v1/uploads/{upload['id']}/parts"
    part = ok(await client.post(parts, files={"data": input_file()}, headers=headers))
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
        of_project = select(Project.id).where(Project.pk == owner.project_pk)
        of_key = select(ApiKey.id).where(ApiKey.project_pk == owner.project_pk)
        project_id, key_id = await session.scalar(of_project), await session.scalar(of_key)
    assert project_id is not None
    assert key_id is not None
    return {
        "file_id": file.id,
        "batch_id": batch.id,
        "upload_id": upload["id"],
        "webhook_endpoint_id": endpoint["id"],
        "part_id": part["id"],
        "project_id": project_id,
        "key_id": key_id,
    }


async def everything(database: Database) -> dict[str, list[Any]]:
    """All rows of all tables that a request could change."""
    tables = [table for name, table in Base.metadata.tables.items() if name != "api_keys"]
    async with database.begin() as session:
        return {
            table.name: sorted(map(repr, (await session.execute(select(table))).all()))
            for table in tables
        }


def told(answer: httpx.Response, id_: str, nobodys: str) -> tuple[Any, ...]:
    """All that an answer tells, without the id that was asked for and what is new each time."""
    fleeting = {"x-request-id", "openai-processing-ms", "content-length"}
    headers = {name: value for name, value in answer.headers.items() if name not in fleeting}
    return answer.status_code, headers, answer.text.replace(id_, nobodys)


@dataclass
class Tenants:
    """An owner of one object of each kind, and a stranger with a good key."""

    strangers_key: str
    ids: dict[str, str]


@pytest.fixture
async def tenants(api_client: httpx.AsyncClient, database: Database) -> Tenants:
    """Two projects."""
    owner, stranger = [await make_project(database, name) for name in ("owner", "stranger")]
    keys = [await make_key(database, each) for each in (owner, stranger)]
    ids = await make_one_of_each(api_client, database, owner, keys[0])
    return Tenants(keys[1], ids)


async def test_another_projects_object_is_not_there(
    api_client: httpx.AsyncClient, database: Database, tenants: Tenants
) -> None:
    before = await everything(database)
    seen = 0
    for call in calls():
        for kind, nobodys in NOBODYS.items():
            theirs, place = tenants.ids[kind], f"{call} of a {kind}"
            refused = await call.send(api_client, theirs, tenants.ids, tenants.strangers_key)
            unknown = await call.send(api_client, nobodys, tenants.ids, tenants.strangers_key)
            assert told(refused, theirs, nobodys) == told(unknown, nobodys, nobodys), place
            assert refused.status_code == (400 if call.is_list else 404), place
            if call.method != "HEAD":
                assert set(refused.json()) == {"error"}, place
                assert not call.is_list or refused.json()["error"]["param"] == "after", place
            seen += 1
        assert await everything(database) == before, f"{call} has changed something"
    assert seen == len(NOBODYS) * (len(OBJECTS) + len(LISTS))


async def test_the_same_requests_find_it_for_its_owner(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    for call in calls():
        owner = await make_project(database, str(call))
        key = await make_key(database, owner)
        ids = await make_one_of_each(api_client, database, owner, key)
        found = await call.send(api_client, ids[call.names], ids, key)
        assert found.status_code < 500, call
        assert found.status_code not in {401, 404, 422}, call
        assert not call.is_list or found.status_code == 200, call


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
    api_client: httpx.AsyncClient, database: Database, tenants: Tenants
) -> None:
    stranger = await make_project(database, "another")
    key = await make_key(database, stranger)
    upload = (await make_one_of_each(api_client, database, stranger, key))["upload_id"]
    theirs, nobodys = tenants.ids["part_id"], NOBODYS["part_id"]

    answers = [
        await api_client.post(
            f"/v1/uploads/{upload}/complete",
            json={"part_ids": [part]},
            headers={"authorization": f"Bearer {key}"},
        )
        for part in (theirs, nobodys)
    ]

    assert answers[0].status_code == answers[1].status_code == 400
    assert answers[0].text.replace(theirs, nobodys) == answers[1].text


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
