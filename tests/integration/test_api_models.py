"""/v1/models: what the model server offers, in the contract's shape."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import zstandard

from api.services.models import MOST_BYTES
from tests.answers import ok, refusal
from tests.fixtures.client import API_KEY
from tests.fixtures.upstream import UPSTREAM_KEY, ModelsServer

AWAY = "The model server is not available right now. Please try again shortly."
MINI = {
    "id": "gpt-4o-mini",
    "object": "model",
    "created": 1686935002,
    "owned_by": "openai",
    "shutdown_date": None,
}


async def test_the_models(api_client: httpx.AsyncClient) -> None:
    listed = ok(await api_client.get("/v1/models"))
    assert listed["object"] == "list"
    assert listed["data"][0] == MINI
    assert listed["data"][1]["id"] == "meta-llama/Llama-3"


@pytest.mark.parametrize("model", ["gpt-4o-mini", "meta-llama/Llama-3", "meta-llama%2FLlama-3"])
async def test_one_model(api_client: httpx.AsyncClient, model: str) -> None:
    shown = ok(await api_client.get(f"/v1/models/{model}"))
    assert shown["id"] == model.replace("%2F", "/")
    assert list(shown) == list(MINI)


@pytest.mark.parametrize("model", ["unknown", "..%2Fsecrets", "a%00b", "%FF", "x" * 2000])
async def test_an_unknown_model(
    api_client: httpx.AsyncClient, models_server: ModelsServer, model: str
) -> None:
    url = httpx.URL("http://overnight").copy_with(raw_path=f"/v1/models/{model}".encode())
    response = await api_client.get(url)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert {path for path, _ in models_server.requests} <= {"/v1/models"}
    if model == "unknown":
        message = "The model 'unknown' does not exist or you do not have access to it."
        refusal(response, 404, message, code="model_not_found", param="model")


async def test_only_our_own_key_goes_there(
    api_client: httpx.AsyncClient, models_server: ModelsServer
) -> None:
    ok(await api_client.get("/v1/models", headers={"openai-organization": "org-secret"}))
    ((_, headers),) = models_server.requests
    assert headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert API_KEY not in str(headers)
    assert "org-secret" not in str(headers)


async def test_what_the_server_leaves_out_is_filled_in(
    api_client: httpx.AsyncClient, models_server: ModelsServer
) -> None:
    models_server.offer({"id": "bare", "permission": [], "created": 17.5, "owned_by": None})
    assert ok(await api_client.get("/v1/models"))["data"] == [
        {"id": "bare", "object": "model", "created": 17, "owned_by": "", "shutdown_date": None}
    ]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 302])
async def test_a_server_that_refuses(
    api_client: httpx.AsyncClient, models_server: ModelsServer, status: int
) -> None:
    models_server.status = status
    for path in ("/v1/models", "/v1/models/gpt-4o-mini"):
        response = await api_client.get(path)
        refusal(response, 503, AWAY, type_="server_error")
        assert response.headers["retry-after"].isdecimal()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"data": null}',
        b'{"data": [{}]}',
        b'{"data": [1]}',
        pytest.param(b'{"data": [{"id": ' + b"[" * 100_000, id="deep"),
        pytest.param(b'{"data": []}' + b" " * MOST_BYTES, id="long"),
    ],
)
async def test_a_server_that_talks_nonsense(
    api_client: httpx.AsyncClient, models_server: ModelsServer, body: bytes
) -> None:
    models_server.body = body
    refusal(await api_client.get("/v1/models"), 503, AWAY, type_="server_error")


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("zstd", zstandard.compress)]
)
async def test_a_server_that_sends_what_would_be_gigabytes(
    api_client: httpx.AsyncClient,
    models_server: ModelsServer,
    encoding: str,
    compress: Callable[[bytes], bytes],
) -> None:
    """Nothing is unpacked, whether it is too long or would have been a list."""
    models_server.headers["content-encoding"] = encoding
    models_server.body = compress(models_server.body)
    refusal(await api_client.get("/v1/models"), 503, AWAY, type_="server_error")


@pytest.mark.parametrize("created", [1e400, -1, 10**30, True, "soon", None])
async def test_a_server_with_odd_times(
    api_client: httpx.AsyncClient, models_server: ModelsServer, created: Any
) -> None:
    models_server.body = json.dumps({"data": [{"id": "m", "created": created}]}).encode()
    response = await api_client.get("/v1/models")
    assert response.status_code in {200, 503}


async def test_a_server_that_is_down(
    api_client: httpx.AsyncClient, models_server: ModelsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    del models_server

    async def refuse(*_: object, **__: object) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", refuse)
    refusal(await api_client.get("/v1/models"), 503, AWAY, type_="server_error")
