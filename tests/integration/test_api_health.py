"""Alive, ready, and what this is: with no key."""

import threading

import httpx
import pytest

from models.settings import DatabaseSettings
from tests.answers import assert_stamped, ok
from tests.fixtures.client import AppFactory, ClientFactory, RecordingBell
from tests.fixtures.database import Postgres

READY = {"status": "ready", "database": "ok", "broker": "ok", "workers": "ok"}


@pytest.fixture
async def stranger(app: object, api_client: httpx.AsyncClient) -> httpx.AsyncClient:
    """A client without a key."""
    del app
    del api_client.headers["authorization"]
    return api_client


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_a_head_will_do(stranger: httpx.AsyncClient, path: str) -> None:
    response = await stranger.head(path)
    assert (response.status_code, response.content) == (200, b"")


async def test_alive(stranger: httpx.AsyncClient) -> None:
    assert ok(await stranger.get("/healthz")) == {"status": "ok"}


async def test_ready(stranger: httpx.AsyncClient) -> None:
    assert ok(await stranger.get("/readyz")) == READY


async def test_what_this_is(stranger: httpx.AsyncClient) -> None:
    assert ok(await stranger.get("/"))["name"] == "Overnight"


async def not_ready(client: httpx.AsyncClient) -> dict[str, str]:
    response = await client.get("/readyz")
    assert response.status_code == 503
    assert_stamped(response)
    found: dict[str, str] = response.json()
    assert found.pop("status") == "not ready"
    return {part: answer for part, answer in found.items() if answer != "ok"}


async def test_without_a_broker(stranger: httpx.AsyncClient, bell: RecordingBell) -> None:
    bell.broker = False
    assert await not_ready(stranger) == {"broker": "unavailable"}


async def test_without_workers(stranger: httpx.AsyncClient, bell: RecordingBell) -> None:
    bell.workers = False
    assert await not_ready(stranger) == {"workers": "unavailable"}


async def test_without_a_database(
    stranger: httpx.AsyncClient, postgres: Postgres, database_name: str
) -> None:
    assert ok(await stranger.get("/readyz")) == READY
    postgres.take_away(database_name)
    assert await not_ready(stranger) == {"database": "unavailable"}
    assert ok(await stranger.get("/healthz")) == {"status": "ok"}
    postgres.give_back(database_name)
    assert ok(await stranger.get("/readyz")) == READY


async def test_with_a_database_that_nobody_has_migrated(
    postgres: Postgres, make_app: AppFactory, make_client: ClientFactory, database_name: str
) -> None:
    postgres.execute("DROP TABLE shards, batches", database=database_name)
    client = await make_client(make_app())
    assert await not_ready(client) == {"database": "unavailable"}


async def test_a_part_that_does_not_answer_in_time(
    stranger: httpx.AsyncClient, bell: RecordingBell, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr("api.services.health._SECONDS", 0.2)
    monkeypatch.setattr(bell, "workers_answer", lambda: released.wait(10))
    try:
        assert await not_ready(stranger) == {"workers": "unavailable"}
    finally:
        released.set()


async def test_everything_is_asked_with_this_tests_settings(
    database_settings: DatabaseSettings, database_name: str
) -> None:
    assert database_name in database_settings.database_url.get_secret_value()
