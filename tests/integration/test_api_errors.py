"""Failures of every kind: the envelope, the stamps, and nothing that is nobody's business."""

import logging
from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import exc as sql

from api import errors as api_errors
from api.services import batches
from models import errors
from tests.answers import ok, refusal
from tests.factories import input_file
from tests.fixtures.client import AppFactory, ClientFactory
from tests.fixtures.database import Postgres

SERVER_ERROR = "The server had an error while processing your request. Sorry about that!"
AWAY = "The database is not available right now. Please try again shortly."
BODY = {"input_file_id": "file-x", "endpoint": "/v1/responses", "completion_window": "24h"}


def leaves(kind: type[Exception]) -> Iterator[type[Exception]]:
    below = kind.__subclasses__()
    if not below:
        yield kind
    for child in below:
        yield from leaves(child)


def test_every_domain_error_has_its_row() -> None:
    for kind in leaves(errors.OvernightError):
        assert any(parent in api_errors.SHAPES for parent in kind.__mro__), kind


def test_the_table_speaks_only_of_errors_that_exist() -> None:
    domain = set(leaves(errors.OvernightError)) | {errors.InputUnreadable}
    of_requests = {api_errors.Unauthorized, api_errors.ForeignPage}
    assert set(api_errors.SHAPES) - of_requests <= domain


@pytest.mark.parametrize("path", ["/v1/nowhere", "/nowhere", "/v1", "/v1/files/", "/v1//files"])
async def test_an_unknown_url(api_client: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        message = (
            f"Unknown request URL: {method} {path}. Please check the URL for typos, or see the docs"
            " at https://platform.openai.com/docs/api-reference/."
        )
        refusal(await api_client.request(method, path), 404, message, code="unknown_url")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/files"),
        ("DELETE", "/v1/batches/batch_x"),
        ("OPTIONS", "/v1/batches"),
        ("POST", "/v1/models"),
        ("GET", "/v1/batches/batch_x/cancel"),
        ("POST", "/healthz"),
    ],
)
async def test_a_known_url_with_another_method(
    api_client: httpx.AsyncClient, method: str, path: str
) -> None:
    response = await api_client.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_url")


async def test_a_head_of_nothing(api_client: httpx.AsyncClient) -> None:
    response = await api_client.head("/v1/nowhere")
    assert response.status_code == 404
    assert response.headers["x-request-id"]


async def test_a_very_long_url_is_not_repeated_whole(api_client: httpx.AsyncClient) -> None:
    response = await api_client.get("/v1/" + "x" * 10_000)
    assert response.status_code == 404
    assert len(response.content) < 1000


async def test_a_bug_is_told_to_us_and_not_to_the_client(
    api_client: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the house")

    monkeypatch.setattr(batches, "create", fail)
    response = await api_client.post("/v1/batches", json=BODY | {"metadata": {"k": "private"}})
    refusal(response, 500, SERVER_ERROR, type_="server_error")
    assert "secret" not in response.text
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert response.headers["x-request-id"] in record.getMessage()
    assert "POST /v1/batches" in record.getMessage()
    assert "RuntimeError at " in record.getMessage()
    assert "private" not in caplog.text
    assert "secret of the house" not in caplog.text


async def test_an_error_of_storage_is_not_explained(
    api_client: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise errors.InputUnreadable("file file-x has lost chunks")

    monkeypatch.setattr(batches, "get", fail)
    response = await api_client.get("/v1/batches/batch_x")
    refusal(response, 500, SERVER_ERROR, type_="server_error")
    assert "lost chunks" in caplog.text


EVERY_ROUTE = [
    ("GET", "/v1/files"),
    ("GET", "/v1/files/file-x"),
    ("DELETE", "/v1/files/file-x"),
    ("GET", "/v1/files/file-x/content"),
    ("GET", "/v1/batches"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/batches/batch_x"),
    ("POST", "/v1/batches/batch_x/cancel"),
]


async def test_a_database_that_is_away(
    api_client: httpx.AsyncClient,
    postgres: Postgres,
    database_name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ok(await api_client.get("/v1/files"))
    postgres.take_away(database_name)
    for method, path in EVERY_ROUTE:
        body = BODY if (method, path) == ("POST", "/v1/batches") else None
        response = await api_client.request(method, path, json=body)
        refusal(response, 503, AWAY, type_="server_error")
        assert response.headers["retry-after"] == "5"
    files = {"file": ("x", input_file())}
    response = await api_client.post("/v1/files", data={"purpose": "batch"}, files=files)
    refusal(response, 503, AWAY, type_="server_error")
    assert "Traceback" not in caplog.text
    postgres.give_back(database_name)
    ok(await api_client.get("/v1/files"))
    ok(await api_client.post("/v1/batches", json=BODY))


async def test_a_database_that_goes_away_in_mid_upload(
    api_client: httpx.AsyncClient, postgres: Postgres, database_name: str
) -> None:
    class Content:
        def __init__(self) -> None:
            self.left = 100

        def read(self, _: int = -1) -> bytes:
            self.left -= 1
            if self.left == 50:
                postgres.take_away(database_name)
            return b'{"a": 1}\n' * 10_000 if self.left else b""

    files = {"file": ("x", Content())}
    response = await api_client.post("/v1/files", data={"purpose": "batch"}, files=files)  # type: ignore[arg-type]  # all that httpx asks of a file
    refusal(response, 503, AWAY, type_="server_error")
    postgres.give_back(database_name)
    assert ok(await api_client.get("/v1/files"))["data"] == []


@pytest.mark.parametrize(
    ("sqlstate", "status"),
    [
        ("53100", 503),  # disk full
        ("53200", 503),  # out of memory
        ("53300", 503),  # too many connections
        ("57P01", 503),  # shutting down
        ("57014", 503),  # statement took too long
        ("55P03", 503),  # lock not available
        ("25006", 503),  # read only, a standby
        ("40001", 503),  # serialization
        ("58030", 503),  # input/output error
        ("P0001", 500),
        ("42703", 500),
    ],
)
async def test_what_the_database_says(
    api_client: httpx.AsyncClient,
    postgres: Postgres,
    database_name: str,
    sqlstate: str,
    status: int,
) -> None:
    postgres.execute(
        f"""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{sqlstate}'; END $$
        """,
        database=database_name,
    )
    for table in ("batches", "file_chunks"):
        postgres.execute(
            f"CREATE TRIGGER refuse BEFORE INSERT ON {table} EXECUTE FUNCTION refuse()",
            database=database_name,
        )
    files = {"file": ("x", input_file())}
    answers = [
        await api_client.post("/v1/batches", json=BODY),
        await api_client.post("/v1/files", data={"purpose": "batch"}, files=files),
    ]
    for response in answers:
        if status == 503:
            refusal(response, 503, AWAY, type_="server_error")
            assert response.headers["retry-after"] == "5"
        else:
            refusal(response, 500, SERVER_ERROR, type_="server_error")
    assert ok(await api_client.get("/v1/files"))["data"] == []


def test_a_pool_with_no_connection_left_is_an_outage() -> None:
    assert api_errors.is_outage(sql.TimeoutError("QueuePool limit reached"))
    assert not api_errors.is_outage(sql.NoResultFound())
    assert not api_errors.is_outage(ValueError())


async def test_requests_have_ids_of_their_own(api_client: httpx.AsyncClient) -> None:
    ids = {(await api_client.get("/healthz")).headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20


async def test_the_description_of_the_api(make_app: AppFactory, make_client: ClientFactory) -> None:
    client = await make_client(make_app())
    described = ok(await client.get("/openapi.json"))
    assert "422" not in str(described["paths"])
    create = described["paths"]["/v1/batches"]["post"]["requestBody"]
    properties = create["content"]["application/json"]["schema"]["properties"]
    assert set(properties) == {
        "input_file_id",
        "endpoint",
        "completion_window",
        "metadata",
        "output_expires_after",
    }
    upload = described["paths"]["/v1/files"]["post"]["requestBody"]
    assert set(upload["content"]) == {"multipart/form-data"}
    assert "$defs" not in str(described)
    assert (await client.get("/docs")).status_code == 200


async def test_the_clients_own_request_id_comes_back(api_client: httpx.AsyncClient) -> None:
    name = {"x-client-request-id": "job-7/attempt 2"}
    for path in ("/v1/files", "/v1/files/file-nothing", "/v1/nowhere"):
        answer = await api_client.get(path, headers=name)
        assert answer.headers["x-client-request-id"] == "job-7/attempt 2"
        assert answer.headers["x-request-id"] != "job-7/attempt 2"


@pytest.mark.parametrize("name", [b"x" * 513, b"caf\xc3\xa9", b"a\tb", b""])
async def test_a_request_id_that_is_not_fit_is_dropped(
    api_client: httpx.AsyncClient, name: bytes
) -> None:
    answer = await api_client.get("/v1/files", headers=[(b"x-client-request-id", name)])
    assert answer.status_code == 200
    assert not answer.headers.get("x-client-request-id")
