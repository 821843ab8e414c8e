"""Clients that stall or trickle: they hold up nobody, and are cut off with nothing left behind."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import func, select
from uvicorn.server import ServerState

from api.content import let_go_while_stalled
from api.protocol import MAX_HEAD_BYTES, HttpProtocol
from models import File, FileChunk
from models.database import Database
from tests.answers import ok, refusal
from tests.factories import make_file
from tests.fixtures.client import AUTHORIZATION, AppFactory, LiveApi, serve
from tests.fixtures.runtime import wait_until

MIB = 1024 * 1024
FORM = {"content-type": "multipart/form-data; boundary=b"}
PURPOSE = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nvision\r\n'
FILE = b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
HEAD = f"host: overnight\r\nauthorization: {AUTHORIZATION['authorization']}\r\n"
UPLOAD = (
    f"POST /v1/files HTTP/1.1\r\n{HEAD}content-type: {FORM['content-type']}\r\n"
    f"content-length: 1000000\r\n\r\n"
).encode() + (PURPOSE + FILE)
SECONDS = 30


def connect(live: LiveApi) -> socket.socket:
    """A connection whose client takes little at a time."""
    host, port = live.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.settimeout(SECONDS)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    return connection


def begin(live: LiveApi, stack: ExitStack, sent: bytes) -> socket.socket:
    """Send this on a connection of one's own, and no more."""
    connection = stack.enter_context(connect(live))
    connection.sendall(sent)
    return connection


def answer_of(connection: socket.socket) -> tuple[int, str]:
    """The status and the message that come back before the connection ends."""
    received = b""
    while data := connection.recv(65536):
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["message"]


def download(file: File) -> bytes:
    return f"GET /v1/files/{file.id}/content HTTP/1.1\r\n{HEAD}\r\n".encode()


async def uploads_under_way(database: Database) -> int:
    async with database.begin() as session:
        return await session.scalar(select(func.count()).where(File.status == "uploading")) or 0


async def large_file(database: Database) -> File:
    """More than all buffers between two processes hold; next to nothing in the database."""
    return await make_file(database, bytes(48 * MIB), purpose="vision")


@pytest.fixture
def live(make_app: AppFactory) -> Iterator[LiveApi]:
    with serve(make_app()) as served:
        yield served


@pytest.fixture
def impatient(make_app: AppFactory) -> Iterator[LiveApi]:
    with serve(make_app(client_silence_seconds=0.3)) as served:
        yield served


async def test_clients_that_stall_hold_no_connection_to_the_database(
    live: LiveApi, database: Database
) -> None:
    pool_size = live.app.state.database._engine.pool.size()
    file = await large_file(database)
    with ExitStack() as stack:
        for _ in range(pool_size + 1):
            begin(live, stack, b"GET /v1/files HTTP/1.1\r\nhost")
            begin(live, stack, UPLOAD)
            begin(live, stack, download(file)).recv(1)
        await wait_until(lambda: _are(database, pool_size + 1))
        async with httpx.AsyncClient(headers=AUTHORIZATION, trust_env=False) as client:
            listed = ok(await client.get(f"{live.base_url}/files", timeout=SECONDS))
            assert [each["id"] for each in listed["data"]] == [file.id]
            small = {"file": ("x", b"content")}
            ok(await client.post(f"{live.base_url}/files", data={"purpose": "vision"}, files=small))
            assert live.app.state.database._engine.pool.checkedout() == 0
        assert await uploads_under_way(database) == pool_size + 1


async def _are(database: Database, count: int) -> bool:
    return await uploads_under_way(database) == count


async def test_an_upload_that_stalls_leaves_nothing(impatient: LiveApi, database: Database) -> None:
    with ExitStack() as stack:
        answer = answer_of(begin(impatient, stack, UPLOAD))
    assert answer == (408, "The request's body did not arrive: 0.3 s of silence.")
    async with database.begin() as session:
        assert await session.scalar(select(func.count()).select_from(File)) == 0
        assert await session.scalar(select(func.count()).select_from(FileChunk)) == 0


async def test_an_upload_that_trickles(make_app: AppFactory, database: Database) -> None:
    app = make_app(client_silence_seconds=0.3, client_min_bytes_per_second=1e9)
    with serve(app) as live, ExitStack() as stack:
        connection = begin(live, stack, UPLOAD)
        connection.settimeout(0.05)
        received = b""
        while b"error" not in received:
            connection.sendall(b"x")
            try:
                received += connection.recv(65536)
            except TimeoutError:
                continue
    assert b"HTTP/1.1 408 " in received
    assert b"too slowly: at less than 1e+09 bytes a second." in received
    assert await uploads_under_way(database) == 0


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"GET /v1/fi", (408, "The request's head did not arrive within 0.3 s.")),
        (
            b"GET /v1/files HTTP/1.1\r\nx: " + b"x" * (MAX_HEAD_BYTES + 1),
            (431, f"The request's head is longer than {MAX_HEAD_BYTES} bytes."),
        ),
    ],
)
def test_a_head_that_does_not_end(
    impatient: LiveApi, sent: bytes, expected: tuple[int, str]
) -> None:
    with ExitStack() as stack:
        assert answer_of(begin(impatient, stack, sent)) == expected


def test_a_connection_without_a_request(impatient: LiveApi) -> None:
    with ExitStack() as stack:
        assert begin(impatient, stack, b"").recv(1) == b""


async def test_a_download_that_stalls_is_cut_off(
    impatient: LiveApi, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "api.protocol")
    file = await large_file(database)
    with ExitStack() as stack:
        connection = begin(impatient, stack, download(file))
        await wait_until(lambda: "took nothing of its answer" in caplog.text)
        # What was on its way still comes.
        received = 0
        while data := connection.recv(MIB):
            received += len(data)
    assert 0 < received < file.bytes
    await wait_until(lambda: impatient.app.state.database._engine.pool.checkedout() == 0)


class SlowTransport(asyncio.Transport):
    """A client that has taken so much of its answer at each look."""

    def __init__(self, unsent: list[int]) -> None:
        super().__init__()
        self.unsent = unsent
        self.is_aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unsent.pop(0)

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


@pytest.mark.parametrize(
    ("unsent", "is_cut_off"),
    [([9, 9], True), ([9, 8, 8], True), ([9, 8, 1, 0], False), ([0], False)],
)
async def test_a_slow_client_is_not_a_stalled_one(
    app: FastAPI, unsent: list[int], is_cut_off: bool
) -> None:
    timers: list[Callable[[], None]] = []

    class Loop:
        def call_later(self, _: float, callback: Callable[[], None]) -> None:
            timers.append(callback)

    config = uvicorn.Config(app, log_config=None)
    protocol = HttpProtocol(config=config, server_state=ServerState(), app_state={}, _loop=Loop())
    transport = SlowTransport(list(unsent))
    protocol.connection_made(transport)
    timers.clear()
    protocol.pause_writing()
    while timers:
        timers.pop()()
    assert (transport.is_aborted, transport.unsent) == (is_cut_off, [])


async def test_what_was_read_ahead_is_let_go_while_a_client_stalls() -> None:
    content, closed = bytes(range(100)), []

    async def read(start: int, stop: int) -> AsyncGenerator[bytes]:
        try:
            for position in range(start, stop, 7):
                yield content[position : min(position + 7, stop)]
        finally:
            closed.append(start)

    pieces = let_go_while_stalled(read, 3, 90, patience_seconds=0)
    received = await anext(pieces)

    async def is_closed() -> bool:
        return bool(closed)

    await wait_until(is_closed)
    assert closed == [3]
    received += b"".join([piece async for piece in pieces])
    assert received == content[3:90]


async def test_too_many_uploads_at_once(make_app: AppFactory, database: Database) -> None:
    with serve(make_app(max_uploads_at_once=2)) as live, ExitStack() as stack:
        begin(live, stack, UPLOAD)
        first = begin(live, stack, UPLOAD)
        await wait_until(lambda: _are(database, 2))
        async with httpx.AsyncClient(headers=AUTHORIZATION, trust_env=False) as client:
            form = {"data": {"purpose": "vision"}, "files": {"file": ("x", b"content")}}
            refused = await client.post(f"{live.base_url}/files", **form)  # type: ignore[arg-type]  # a form
            refusal(
                refused,
                429,
                "Rate limit reached for uploads: Limit 2 at once, Used 2, Requested 1. Please try again"
                " when one of them has ended.",
                type_="requests",
                code="rate_limit_exceeded",
            )
            assert refused.headers["retry-after"] == "1"
            # What may copy a whole file is one, too.
            complete = f"{live.base_url}/uploads/upload_none/complete"
            assert (await client.post(complete, json={"part_ids": ["p"]})).status_code == 429
            first.close()
            await wait_until(lambda: _are(database, 1))
            ok(await client.post(f"{live.base_url}/files", **form))  # type: ignore[arg-type]  # a form
