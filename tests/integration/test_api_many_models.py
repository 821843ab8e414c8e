"""/v1/models in front of several model servers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.services import models as service
from models.settings import DatabaseSettings, UpstreamSettings
from tests.answers import ok, refusal
from tests.fixtures.client import ClientFactory, RecordingBell, api_settings
from tests.fixtures.runtime import Reply, Request, ScriptedServer
from tests.fixtures.upstream import ModelsServer, serve_models

AWAY = "The model server is not available right now. Please try again shortly."
MODELS = """
[models.small]
upstream = "left"
aliases = ["tiny"]

[models.big]
upstream = "right"
upstream_model = "org/big-1"
"""


@pytest.fixture
def left() -> Iterator[ModelsServer]:
    with serve_models() as server:
        server.offer(
            {"id": "small", "created": 11, "owned_by": "somebody"},
            {"id": "other", "created": 12, "owned_by": "somebody"},
            {"id": "other", "created": 13, "owned_by": "somebody else"},
        )
        yield server


@pytest.fixture
def right() -> Iterator[ModelsServer]:
    with serve_models() as server:
        server.offer({"id": "org/big-1", "created": 21}, {"id": "hidden", "created": 22})
        yield server


Start = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
def start(
    left: ModelsServer,
    right: ModelsServer,
    tmp_path: Path,
    database_settings: DatabaseSettings,
    make_client: ClientFactory,
) -> Start:
    """A function that starts the API in front of both servers, with or without a default."""

    async def begin(default: str = "", models: str = MODELS, **urls: str) -> httpx.AsyncClient:
        (tmp_path / "left-key").write_text("left-secret")
        path = tmp_path / "overnight.toml"
        at = {"left": left.url, "right": right.url} | urls
        path.write_text(
            f"{default}\n[upstreams.left]\nurl = '{at['left']}'\napi_key_file = 'left-key'\n"
            f"headers = {{ x-team = 'a' }}\n[upstreams.right]\nurl = '{at['right']}'\n{models}"
        )
        app = create_app(
            api_settings(),
            database=database_settings,
            upstream=UpstreamSettings(config=path),
            bell=RecordingBell(),
        )
        return await make_client(app)

    return begin


def entry(name: str, created: int, owner: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": owner,
        "shutdown_date": None,
    }


CONFIGURED = [entry("small", 11, "left"), entry("tiny", 11, "left"), entry("big", 21, "right")]


async def test_the_models_of_the_file_and_no_others(start: Start) -> None:
    client = await start()
    assert ok(await client.get("/v1/models"))["data"] == CONFIGURED
    assert ok(await client.get("/v1/models/tiny")) == CONFIGURED[1]
    for name in ("other", "hidden", "org/big-1"):
        message = f"The model '{name}' does not exist or you do not have access to it."
        response = await client.get(f"/v1/models/{name}")
        refusal(response, 404, message, code="model_not_found", param="model")


async def test_the_default_adds_what_it_lists_each_once(start: Start) -> None:
    client = await start('default = "left"')
    assert ok(await client.get("/v1/models"))["data"] == [
        *CONFIGURED,
        entry("other", 12, "somebody"),
    ]
    assert ok(await client.get("/v1/models/other"))["created"] == 12
    assert (await client.get("/v1/models/hidden")).status_code == 404


async def test_each_server_gets_its_own_key_and_headers(
    start: Start, left: ModelsServer, right: ModelsServer
) -> None:
    client = await start()
    ok(await client.get("/v1/models"))
    ((_, of_left),) = left.requests
    assert of_left["authorization"] == "Bearer left-secret"
    assert of_left["x-team"] == "a"
    ((_, of_right),) = right.requests
    assert not {"authorization", "x-team"} & set(of_right)


async def test_a_server_that_does_not_answer_is_left_out(
    start: Start, right: ModelsServer, caplog: pytest.LogCaptureFixture
) -> None:
    right.status = 500
    client = await start('default = "right"')
    big = entry("big", 0, "right")
    assert ok(await client.get("/v1/models"))["data"] == [*CONFIGURED[:2], big]
    assert "the model server right gives no list of models" in caplog.text
    assert ok(await client.get("/v1/models/big")) == big
    # It may be one of the server's that is silent.
    refusal(await client.get("/v1/models/hidden"), 503, AWAY, type_="server_error")


async def test_when_nothing_can_be_said_it_is_not_said(start: Start, left: ModelsServer) -> None:
    left.status = 500
    client = await start('default = "left"', models="")
    refusal(await client.get("/v1/models"), 503, AWAY, type_="server_error")


async def test_a_server_that_only_has_no_models_is_no_outage(
    start: Start, left: ModelsServer
) -> None:
    left.offer()
    client = await start('default = "left"', models="")
    assert ok(await client.get("/v1/models"))["data"] == []


async def test_of_many_who_ask_at_once_one_goes_there(
    start: Start, left: ModelsServer, right: ModelsServer
) -> None:
    client = await start()
    await asyncio.gather(*(client.get("/v1/models") for _ in range(20)))
    assert len(left.requests) == len(right.requests) == 1


async def test_a_list_is_asked_for_again_when_it_is_old(
    start: Start, left: ModelsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "FRESH_SECONDS", 0)
    client = await start('default = "left"', models="")
    assert len(ok(await client.get("/v1/models"))["data"]) == 2
    left.offer({"id": "new"})
    assert [each["id"] for each in ok(await client.get("/v1/models"))["data"]] == ["new"]


@pytest.fixture
async def silent() -> AsyncIterator[ScriptedServer]:
    """A server that takes a request and never answers it."""
    server = ScriptedServer()

    async def wait(_: Request) -> Reply:
        await asyncio.Event().wait()
        return Reply()

    server.script = wait
    await server.start()
    yield server
    await server.stop()


async def test_a_silent_server_is_not_waited_for_long(
    start: Start, silent: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_SECONDS", 0.05)
    client = await start(right=silent.url)
    found = ok(await client.get("/v1/models"))["data"]
    assert found == [*CONFIGURED[:2], entry("big", 0, "right")]
    assert len(silent.requests) == 1
