"""The API on a real port: what clients see when it answers before they have finished sending."""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.factories import input_file
from tests.fixtures.client import AppFactory, LiveApi, serve

LIMIT = 1_000_000
TOO_LARGE = 30_000_000


@pytest.fixture(params=["httptools", "h11"])
def small_api(request: pytest.FixtureRequest, make_app: AppFactory) -> Iterator[LiveApi]:
    """An API that takes only small files, on either of uvicorn's HTTP implementations."""
    app = make_app(max_file_bytes=LIMIT, max_other_file_bytes=LIMIT)
    with serve(app, http=request.param) as live:
        yield live


def pieces(count: int = 100, size: int = 100_000) -> Iterator[bytes]:
    for _ in range(count):
        yield b"x" * size


FORM = {"content-type": "multipart/form-data; boundary=b"}
HEAD = (
    b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
)


def chunked_form() -> Iterator[bytes]:
    yield HEAD
    yield from pieces()
    yield b"\r\n--b--\r\n"


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_file_that_is_too_large(small_api: LiveApi, connection: str) -> None:
    headers = {"authorization": f"Bearer {small_api.api_key}", "connection": connection}
    with httpx.Client(base_url=small_api.base_url, headers=headers, trust_env=False) as client:
        files = {"file": ("x", b"x" * TOO_LARGE)}
        announced = client.post("/files", data={"purpose": "fine-tune"}, files=files)
        streamed = client.post("/files", content=chunked_form(), headers=FORM)
        for response in (announced, streamed):
            assert response.status_code == 400
            assert response.json()["error"]["message"] == "File is too large."
        assert client.get("/files").json()["data"] == []


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_large_upload_with_a_wrong_key(small_api: LiveApi, connection: str) -> None:
    headers = {"authorization": "Bearer wrong", "connection": connection}
    with httpx.Client(base_url=small_api.base_url, headers=headers, trust_env=False) as client:
        for _ in range(2):
            response = client.post("/files", content=chunked_form(), headers=FORM)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"


def converse(live: LiveApi, *sends: bytes) -> bytes:
    """Send these bytes on a connection of one's own, and return all that comes back."""
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for data in sends:
            connection.sendall(data)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return answer


def request_head(live: LiveApi, *headers: str) -> bytes:
    lines = [
        "POST /v1/files HTTP/1.1",
        "host: overnight",
        f"authorization: Bearer {live.api_key}",
        f"content-type: {FORM['content-type']}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def test_who_asks_before_sending_is_not_told_to_go_on(small_api: LiveApi) -> None:
    head = request_head(small_api, f"content-length: {TOO_LARGE}", "expect: 100-continue")
    answer = converse(small_api, head)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answer
    assert b"File is too large." in answer


def test_who_asks_before_sending_and_may(small_api: LiveApi) -> None:
    body = HEAD + b"content" + b"\r\n--b--\r\n"
    headers = (f"content-length: {len(body)}", "expect: 100-continue", "connection: close")
    answer = converse(small_api, request_head(small_api, *headers), body)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")


def test_who_reads_only_after_sending_everything(small_api: LiveApi) -> None:
    headers = (f"content-length: {TOO_LARGE}", "connection: close")
    answer = converse(small_api, request_head(small_api, *headers), b"x" * TOO_LARGE)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"File is too large." in answer


def test_a_connection_can_be_used_again_after_a_refusal(small_api: LiveApi) -> None:
    body = HEAD.replace(b"fine-tune", b"nonsense") + b"x" * 500_000 + b"\r\n--b--\r\n"
    first = request_head(small_api, f"content-length: {len(body)}") + body
    second = b"GET /healthz HTTP/1.1\r\nhost: overnight\r\nconnection: close\r\n\r\n"
    answer = converse(small_api, first, second)
    assert answer.count(b"HTTP/1.1 ") == 2
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b'{"status":"ok"}')


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")


def curl(live: LiveApi, path: str, *options: str) -> Any:
    """Call the API as people do from a shell; returns the JSON that it prints."""
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "60"]
    command += ["-H", f"Authorization: Bearer {live.api_key}", *options, live.base_url + path]
    done = subprocess.run(command, capture_output=True, check=True)
    return json.loads(done.stdout)


@needs_curl
@pytest.mark.parametrize(
    "options", [[], ["-H", "Transfer-Encoding: chunked"], ["--http1.0"], ["-H", "Expect:"]]
)
def test_curl_uploads(live_api: LiveApi, tmp_path: Path, options: list[str]) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(input_file(10_000))
    form = ["-F", "purpose=batch", "-F", f"file=@{path}"]
    file = curl(live_api, "/files", *form, *options)
    assert (file["bytes"], file["filename"]) == (path.stat().st_size, "in.jsonl")
    got = tmp_path / "out.jsonl"
    headers = ["-H", f"Authorization: Bearer {live_api.api_key}"]
    url = f"{live_api.base_url}/files/{file['id']}/content"
    command = ["curl", "-sf", "--noproxy", "*", *headers, "-o", str(got), url]
    subprocess.run(command, check=True)
    assert got.read_bytes() == path.read_bytes()


@needs_curl
def test_curl_goes_on_where_a_download_stopped(live_api: LiveApi, tmp_path: Path) -> None:
    content = input_file(10_000)
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    file = curl(live_api, "/files", "-F", "purpose=batch", "-F", f"file=@{path}")
    path.write_bytes(content[:300_001])
    headers = ["-H", f"Authorization: Bearer {live_api.api_key}"]
    url = f"{live_api.base_url}/files/{file['id']}/content"
    command = ["curl", "-sf", "--noproxy", "*", *headers, "-C", "-", "-o", str(path), url]
    subprocess.run(command, check=True)
    assert path.read_bytes() == content


@needs_curl
@pytest.mark.parametrize(
    "options", [[], ["-H", "Transfer-Encoding: chunked"], ["--http1.0"], ["-H", "Expect:"]]
)
def test_curl_is_told_why(small_api: LiveApi, tmp_path: Path, options: list[str]) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * TOO_LARGE)
    form = ["-F", "purpose=vision", "-F", f"file=@{path}"]
    answer = curl(small_api, "/files", *form, *options)
    assert answer["error"]["message"] == "File is too large."


@needs_curl
def test_curl_creates_shows_and_cancels(live_api: LiveApi) -> None:
    body = {
        "input_file_id": "file-x",
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
    }
    # -d without a type says application/x-www-form-urlencoded.
    batch = curl(live_api, "/batches", "-d", json.dumps(body))
    assert curl(live_api, f"/batches/{batch['id']}") == batch
    cancelled = curl(live_api, f"/batches/{batch['id']}/cancel", "-X", "POST")
    assert cancelled["status"] == "cancelling"
    assert [one["id"] for one in curl(live_api, "/batches")["data"]] == [batch["id"]]
