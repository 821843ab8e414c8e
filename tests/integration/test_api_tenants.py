"""Projects and keys. That each route keeps projects apart is tested in `tests/security`."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from models import ApiKey, Project
from models.database import Database
from models.lifecycle import BatchStatus
from tests.answers import ok, refusal
from tests.factories import input_file, make_batch, make_file, make_key, make_project
from tests.fixtures.client import API_KEY, AppFactory, ClientFactory
from tests.fixtures.runtime import Switch

PAST = datetime.now(UTC) - timedelta(seconds=1)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_lists_hold_only_what_is_ones_own(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    other = await make_project(database)
    key = bearer(await make_key(database, other))
    mine = await make_file(database), await make_batch(database)
    file = await make_file(database, project_pk=other.project_pk)
    batch = await make_batch(database, project_pk=other.project_pk)

    def ids(answer: httpx.Response) -> list[str]:
        return [entry["id"] for entry in ok(answer)["data"]]

    assert ids(await api_client.get("/v1/files")) == [mine[0].id]
    assert ids(await api_client.get("/v1/batches")) == [mine[1].id]
    assert ids(await api_client.get("/v1/files", headers=key)) == [file.id]
    assert ids(await api_client.get("/v1/batches", headers=key)) == [batch.id]


async def test_what_a_key_makes_belongs_to_its_project(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    key = bearer(await make_key(database, await make_project(database)))
    form: dict[str, Any] = {"data": {"purpose": "batch"}, "files": {"file": input_file()}}
    file = ok(await api_client.post("/v1/files", headers=key, **form))
    body = {
        "input_file_id": file["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch = ok(await api_client.post("/v1/batches", headers=key, json=body))

    ok(await api_client.get(f"/v1/files/{file['id']}", headers=key))
    ok(await api_client.get(f"/v1/batches/{batch['id']}", headers=key))
    assert (await api_client.get(f"/v1/files/{file['id']}")).status_code == 404
    assert (await api_client.get(f"/v1/batches/{batch['id']}")).status_code == 404


@pytest.mark.parametrize("values", [{"revoked_at": PAST}, {"expires_at": PAST}])
async def test_a_key_that_has_ended(
    api_client: httpx.AsyncClient, database: Database, values: dict[str, datetime]
) -> None:
    key = await make_key(database, await make_project(database), **values)
    answer = await api_client.get("/v1/files", headers=bearer(key))
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert key not in answer.text


async def test_keys_of_an_archived_project(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    key = await make_key(database, await make_project(database, archived_at=PAST))
    assert (await api_client.get("/v1/files", headers=bearer(key))).status_code == 401


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key[:-1] + ("a" if key[-1] != "a" else "b"),
        lambda key: key[:-1],
        lambda key: key + "a",
        lambda key: key.swapcase(),
    ],
)
async def test_nearly_a_key(
    api_client: httpx.AsyncClient, database: Database, change: Callable[[str], str]
) -> None:
    key = await make_key(database, await make_project(database))
    ok(await api_client.get("/v1/files", headers=bearer(key)))
    assert (await api_client.get("/v1/files", headers=bearer(change(key)))).status_code == 401


async def test_the_last_use_is_noted(api_client: httpx.AsyncClient, database: Database) -> None:
    caller = await make_project(database)
    key = await make_key(database, caller)

    async def last_used_at() -> datetime | None:
        async with database.begin() as session:
            return await session.scalar(
                select(ApiKey.last_used_at).where(ApiKey.project_pk == caller.project_pk)
            )

    assert await last_used_at() is None
    ok(await api_client.get("/v1/files", headers=bearer(key)))
    first = await last_used_at()
    assert first is not None
    # Not at every request: that would be a write for each poll.
    ok(await api_client.get("/v1/files", headers=bearer(key)))
    assert await last_used_at() == first
    async with database.begin() as session:
        await session.execute(update(ApiKey).values(last_used_at=first - timedelta(hours=1)))
    ok(await api_client.get("/v1/files", headers=bearer(key)))
    assert (await last_used_at() or first) > first


async def test_the_default_project_is_there(database: Database) -> None:
    async with database.begin() as session:
        project = await session.scalar(select(Project))
    assert project is not None
    assert (project.pk, project.id, project.name) == (1, "proj_default", "default")


@pytest.mark.parametrize("has_key", [False, True])
async def test_an_api_that_nobody_can_call_says_how_to_make_a_key(
    make_app: AppFactory,
    make_client: ClientFactory,
    database: Database,
    caplog: pytest.LogCaptureFixture,
    has_key: bool,
) -> None:
    key = await make_key(database, await make_project(database)) if has_key else API_KEY
    client = await make_client(make_app(api_key=None))
    assert ("overnight keys create" in caplog.text) is not has_key
    answer = await client.get("/v1/files", headers=bearer(key))
    assert answer.status_code == (200 if has_key else 401)


async def test_without_a_key_it_starts_though_the_database_is_away(
    make_app: AppFactory, make_client: ClientFactory, outage: Switch
) -> None:
    await outage()
    client = await make_client(make_app(api_key=None))
    assert (await client.get("/healthz")).status_code == 200
    await outage()


@pytest.mark.parametrize("value", ["", "org-other", "proj_of_another", "x" * 1000])
async def test_headers_of_organization_and_project_change_nothing(
    api_client: httpx.AsyncClient, database: Database, value: str
) -> None:
    caller = await make_project(database)
    key = bearer(await make_key(database, caller))
    theirs = {"openai-organization": value, "openai-project": value or "proj_default"}
    file = await make_file(database, project_pk=caller.project_pk)
    answer = await api_client.get("/v1/files", headers=key | theirs)
    assert [entry["id"] for entry in ok(answer)["data"]] == [file.id]
    assert answer.headers["openai-organization"] == "org-overnight"


async def test_keys_of_the_settings_need_no_database(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    batch = await make_batch(database, status=BatchStatus.COMPLETED)
    shown = ok(await api_client.get(f"/v1/batches/{batch.id}", headers=bearer(API_KEY)))
    refusal(
        await api_client.get("/v1/files", headers=bearer("sk-on-short")),
        401,
        "Incorrect API key provided: ****. You can find your API key at"
        " https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
    )
    assert shown["id"] == batch.id
