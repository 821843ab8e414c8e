"""What a client sends comes back in no header, on no second line and in no other form than it had."""

import itertools
import json
import re
import socket
from http.client import HTTPResponse
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from models.database import Database
from tests.answers import ok
from tests.factories import input_file, make_batch, make_file
from tests.fixtures.client import API_KEY, LiveApi

EVIL = "x\r\nset-cookie: evil=1\r\n\r\n<script>"
ENCODED = "x%0d%0aset-cookie:%20evil=1%0d%0a%0d%0a%3Cscript%3E"
NAMES = [
    EVIL,
    "a\nb",
    "a\rb",
    'a"; filename="b',
    'a\\"b',
    "a;b=c",
    "\u2028\u0085\x1b[2K",
    "../../etc/passwd",
    "..\\..\\x",
    "\u202egnp.exe",
    "=cmd|' /C calc'!A0",
    "a" * 200,
    "%0d%0aset-cookie: evil=1",
]


def assert_clean(answer: httpx.Response) -> None:
    """Every header is one line, and none is the client's own."""
    assert "set-cookie" not in answer.headers
    for name, value in answer.headers.raw:
        assert re.fullmatch(rb"[a-z0-9-]+", name.lower())
        assert re.fullmatch(rb"[\x20-\x7e]*", value), name
    assert answer.headers["content-type"] in {"application/json", "application/octet-stream"}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/{}",
        "/v1/files/{}/content",
        "/v1/batches/{}",
        "/v1/models/{}",
        "/v1/uploads/{}/parts",
        "/v1/webhook_endpoints/{}",
        "/v1/batches?after={}",
        "/v1/batches?status={}",
        "/v1/batches?metadata[{}]=x",
        "/v1/files?purpose={}",
        "/v1/files?order={}",
        "/{}",
    ],
)
async def test_an_id_or_a_parameter(api_client: httpx.AsyncClient, path: str) -> None:
    answer = await api_client.get(path.format(ENCODED))
    assert_clean(answer)
    assert answer.status_code in {200, 400, 404}
    answer.json()


_DISPOSITION = re.compile(
    r"attachment; filename=\"([A-Za-z0-9._ -]*)\"(?:; filename\*=UTF-8''([A-Za-z0-9._~%-]*))?"
)


async def test_a_file_name_in_a_header(api_client: httpx.AsyncClient, database: Database) -> None:
    for filename in NAMES:
        file = await make_file(database, filename=filename)
        answer = await api_client.get(f"/v1/files/{file.id}/content")
        assert_clean(answer)
        told = _DISPOSITION.fullmatch(answer.headers["content-disposition"])
        assert told is not None, filename
        assert (told[1] if told[2] is None else unquote(told[2])) == filename
        assert ok(await api_client.get(f"/v1/files/{file.id}"))["filename"] == filename


async def test_a_file_name_in_a_form(api_client: httpx.AsyncClient) -> None:
    for header in (b"x\ny", b"x\ry", b'x"; filename="y', b"x%0D%0Ay", b'x\\"\\ry'):
        form = (
            b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            b'--b\r\ncontent-disposition: form-data; name="file"; filename="%b"\r\n\r\n%b\r\n--b--\r\n'
        ) % (header, input_file())
        kind = {"content-type": "multipart/form-data; boundary=b"}
        answer = await api_client.post("/v1/files", content=form, headers=kind)
        assert_clean(answer)
        assert answer.status_code in {200, 400}
        if answer.status_code == 200:
            content = await api_client.get(f"/v1/files/{answer.json()['id']}/content")
            assert_clean(content)
            assert content.content == input_file()


@pytest.mark.parametrize(
    "body",
    [
        {"endpoint": EVIL, "input_file_id": "file-x", "completion_window": "24h"},
        {"endpoint": "/v1/responses", "input_file_id": EVIL, "completion_window": "24h"},
        {"endpoint": "/v1/responses", "input_file_id": "file-x", "completion_window": EVIL},
        {
            "endpoint": "/v1/responses",
            "input_file_id": "file-x",
            "completion_window": "24h",
            "metadata": {EVIL[:64]: EVIL},
        },
        {EVIL: 1},
    ],
)
async def test_a_body(api_client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await api_client.post("/v1/batches", json=body)
    assert_clean(answer)
    assert answer.status_code in {200, 400}
    if "metadata" in body:
        assert ok(answer)["metadata"] == body["metadata"]


@pytest.mark.parametrize("url", ["https://a.example/" + EVIL, "https://a.example\r\n/", EVIL])
async def test_a_webhooks_url(api_client: httpx.AsyncClient, url: str) -> None:
    hook = {"name": EVIL, "url": url, "event_types": ["batch.completed"]}
    answer = await api_client.post("/v1/webhook_endpoints", json=hook)
    assert_clean(answer)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "url"


HEADERS = ["x-client-request-id", "idempotency-key", "x-request-id", "openai-organization"]


VALUES = [b"a\tb", b"a\x0bb", b"a\x7fb", b"a\x85b", b"a\xe2\x80\xa8b"]


def test_a_header_on_the_wire(live_api: LiveApi) -> None:
    """A line break cannot be in one; other control characters can."""
    for name, value in itertools.product(HEADERS, VALUES):
        _send_and_check(live_api, name, value)


def _send_and_check(live_api: LiveApi, name: str, value: bytes) -> None:
    host, _, port = live_api.url.removeprefix("http://").partition(":")
    head = [b"POST /v1/batches HTTP/1.1", b"host: x", b"content-length: 2", b"connection: close"]
    head += [b"authorization: Bearer " + API_KEY.encode(), name.encode() + b": " + value]
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"\r\n".join(head) + b"\r\n\r\n{}")
        answer = HTTPResponse(connection)
        answer.begin()
        body = answer.read()
    assert answer.status == 400
    assert set(json.loads(body)) == {"error"}
    for told, text in answer.headers.items():
        assert text.isprintable(), told
    if name == "x-request-id":
        assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.headers["openai-organization"] in {"org-overnight", None}


async def test_metadata_in_a_list(api_client: httpx.AsyncClient, database: Database) -> None:
    await make_batch(database, metadata_={"a": EVIL})
    answer = await api_client.get("/v1/batches")
    assert_clean(answer)
    assert answer.json()["data"][0]["metadata"] == {"a": EVIL}
