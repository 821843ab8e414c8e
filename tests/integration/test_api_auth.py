"""Keys: who gets in, in which words the others do not, and that nothing is read before."""

import re
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from tests.answers import ok, refusal
from tests.fixtures.client import API_KEY, OTHER_API_KEY, AppFactory, ClientFactory

MISSING = "Missing bearer or basic authentication in header"
INCORRECT = (
    "Incorrect API key provided: {}. You can find your API key at"
    " https://platform.openai.com/account/api-keys."
)

PROTECTED = [
    ("POST", "/v1/files"),
    ("GET", "/v1/files"),
    ("GET", "/v1/files/file_x"),
    ("DELETE", "/v1/files/file_x"),
    ("GET", "/v1/files/file_x/content"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/batches"),
    ("GET", "/v1/batches/batch_x"),
    ("POST", "/v1/batches/batch_x/cancel"),
    ("POST", "/v1/batches/batch_x/pause"),
    ("POST", "/v1/batches/batch_x/resume"),
    ("POST", "/v1/batches/batch_x/retry"),
    ("GET", "/v1/batches/batch_x/progress"),
    ("GET", "/v1/batches/batch_x/output"),
    ("GET", "/v1/batches/batch_x/errors"),
    ("GET", "/v1/events"),
    ("GET", "/v1/batches/batch_x/history"),
    ("GET", "/v1/batches/batch_x/failures"),
    ("GET", "/v1/batches/batch_x/lines/line_x"),
    ("GET", "/v1/workers"),
    ("POST", "/v1/uploads"),
    ("POST", "/v1/uploads/upload_x/parts"),
    ("POST", "/v1/uploads/upload_x/complete"),
    ("POST", "/v1/uploads/upload_x/cancel"),
    ("POST", "/v1/webhook_endpoints"),
    ("GET", "/v1/webhook_endpoints"),
    ("GET", "/v1/webhook_endpoints/webhook_endpoint_x"),
    ("POST", "/v1/webhook_endpoints/webhook_endpoint_x"),
    ("DELETE", "/v1/webhook_endpoints/webhook_endpoint_x"),
    ("POST", "/v1/webhook_endpoints/webhook_endpoint_x/rotate_secret"),
    ("POST", "/v1/webhook_endpoints/webhook_endpoint_x/test"),
    ("GET", "/v1/webhook_event_types"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/model_x"),
]


def test_the_list_of_protected_routes_is_whole(app: FastAPI) -> None:
    found = [
        (method.upper(), re.sub(r"{([a-z_]+?)(_id)?(:path)?}", r"\1_x", path), operation)
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    ]
    protected = {(method, path) for method, path, operation in found if "security" in operation}
    assert protected == set(PROTECTED)
    assert protected == {(method, path) for method, path, _ in found if path.startswith("/v1")}


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", API_KEY]
)
async def test_without_a_key(api_client: httpx.AsyncClient, authorization: str | None) -> None:
    del api_client.headers["authorization"]
    headers = {} if authorization is None else {"authorization": authorization}
    for method, path in PROTECTED:
        response = await api_client.request(method, path, headers=headers)
        refusal(response, 401, MISSING)
        assert response.headers["www-authenticate"].startswith("Bearer")


async def test_with_a_wrong_key(api_client: httpx.AsyncClient) -> None:
    headers = {"authorization": "Bearer sk-invalid-and-an-advantage"}
    for method, path in PROTECTED:
        response = await api_client.request(method, path, headers=headers)
        refusal(response, 401, INCORRECT.format("sk-inval****tage"), code="invalid_api_key")


@pytest.mark.parametrize(
    "key", [API_KEY[:-1], API_KEY + "x", API_KEY.upper(), f"{API_KEY},{OTHER_API_KEY}", "x" * 9000]
)
async def test_with_nearly_a_key(api_client: httpx.AsyncClient, key: str) -> None:
    response = await api_client.get("/v1/files", headers={"authorization": f"Bearer {key}"})
    assert response.status_code == 401
    assert key not in response.text


async def test_a_key_of_odd_bytes(api_client: httpx.AsyncClient) -> None:
    headers = [(b"authorization", b"Bearer \xff\xfe\xc3\xa9")]
    response = await api_client.get("/v1/files", headers=headers)
    refusal(response, 401, INCORRECT.format("****"), code="invalid_api_key")


@pytest.mark.parametrize(
    "authorization", [f"Bearer {API_KEY}", f"bearer {OTHER_API_KEY}", f"BEARER {API_KEY}"]
)
async def test_with_a_key(api_client: httpx.AsyncClient, authorization: str) -> None:
    ok(await api_client.get("/v1/files", headers={"authorization": authorization}))


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
async def test_the_key_is_judged_before_the_body(api_client: httpx.AsyncClient, path: str) -> None:
    del api_client.headers["authorization"]
    response = await api_client.post(path, content=b"{ no json, no form")
    refusal(response, 401, MISSING)


async def test_the_key_is_judged_before_the_query(api_client: httpx.AsyncClient) -> None:
    del api_client.headers["authorization"]
    refusal(await api_client.get("/v1/files?limit=x"), 401, MISSING)


async def test_the_rest_of_a_refused_body_is_read_and_dropped(
    api_client: httpx.AsyncClient,
) -> None:
    del api_client.headers["authorization"]
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(50):
            sent += 1
            yield b"x" * 1000

    refusal(await api_client.post("/v1/files", content=pieces()), 401, MISSING)
    assert sent == 50


async def test_unknown_routes_need_no_key(make_app: AppFactory, make_client: ClientFactory) -> None:
    client = await make_client(make_app())
    del client.headers["authorization"]
    assert (await client.get("/v1/nowhere")).status_code == 404
