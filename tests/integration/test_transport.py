"""The HTTP transport against a real server that misbehaves in every way there is."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest

from models.lines import Endpoint
from tests.fixtures.runtime import Reply, Request, ScriptedServer, upstream_settings_for, wait_until
from worker.retry import Blame
from worker.transport import AiohttpTransport
from worker.upstream import Upstream, Verdict

MOST_BYTES = 10_000


@pytest.fixture
async def transport() -> AsyncIterator[AiohttpTransport]:
    made = AiohttpTransport(total_seconds=5, connect_seconds=2, max_response_bytes=MOST_BYTES)
    yield made
    await made.aclose()


Post = Callable[[Reply], Awaitable[httpx.Response]]


@pytest.fixture
def post(transport: AiohttpTransport, scripted: ScriptedServer) -> Post:
    """Send a request that gets this reply."""

    async def send(reply: Reply) -> httpx.Response:
        scripted.replies.append(reply)
        request = httpx.Request("POST", f"{scripted.url}/embeddings", content=b'{"a": 1}')
        return await transport.handle_async_request(request)

    return send


async def test_a_request_and_its_answer(post: Post, scripted: ScriptedServer) -> None:
    response = await post(Reply(201, b'{"x": 1}', {"x-request-id": "req_1", "x-twice": "a"}))
    assert (response.status_code, response.content) == (201, b'{"x": 1}')
    assert response.headers["x-request-id"] == "req_1"
    [request] = scripted.requests
    assert (request.path, request.body) == ("/v1/embeddings", b'{"a": 1}')
    assert request.headers["host"] in scripted.url


async def test_a_redirect_is_not_followed_and_a_cookie_not_kept(
    post: Post, scripted: ScriptedServer
) -> None:
    response = await post(Reply(307, headers={"location": "/elsewhere", "set-cookie": "a=b"}))
    assert response.status_code == 307
    await post(Reply())
    assert [request.path for request in scripted.requests] == ["/v1/embeddings"] * 2
    assert "cookie" not in scripted.requests[1].headers


async def test_connections_are_used_again(post: Post, scripted: ScriptedServer) -> None:
    for _ in range(5):
        await post(Reply())
    assert scripted.accepted == 1


async def test_a_compressed_answer_is_decompressed(post: Post) -> None:
    body = b'{"x": "' + b"y" * 5000 + b'"}'
    response = await post(Reply(body=gzip.compress(body), headers={"content-encoding": "gzip"}))
    assert response.content == body


async def test_a_chunked_answer_is_put_together(post: Post) -> None:
    raw = (
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{"a\r\n5\r\n": 1}\r\n0\r\n\r\n'
    )
    assert (await post(Reply(raw=raw))).content == b'{"a": 1}'


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b"x" * (MOST_BYTES + 1)),
        Reply(
            raw=b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4e20\r\n" + b"x" * 20_000,
            closes=True,
        ),
        Reply(body=gzip.compress(b"x" * (MOST_BYTES + 1)), headers={"content-encoding": "gzip"}),
    ],
    ids=["declared", "chunked", "compressed"],
)
async def test_too_long_an_answer_is_given_up(post: Post, reply: Reply) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await post(reply)
    # And the connection that still carries it is not used for the next.
    assert (await post(Reply())).status_code == 200


async def test_an_answer_of_just_the_limit_is_read(post: Post) -> None:
    assert len((await post(Reply(body=b"x" * MOST_BYTES))).content) == MOST_BYTES


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HELLO\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        HEAD + b"no colon\r\n\r\n",
        HEAD + b"x:",
        HEAD + b"x: " + b"y" * 100_000 + b"\r\n\r\n",
        HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\nabc",
        HEAD + b"content-length: -2\r\n\r\nabc",
        HEAD + b"content-length: 10\r\n\r\nabc",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nabc",
        HEAD + b"content-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",
        HEAD + b"content-encoding: br\r\ncontent-length: 3\r\n\r\nabc",
        bytes.fromhex("1503010002022a"),
    ],
)
async def test_every_broken_answer_is_a_transport_error(post: Post, raw: bytes) -> None:
    with pytest.raises(httpx.TransportError):
        await post(Reply(raw=raw, closes=True))


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://127.0.0.1:1/v1", httpx.ConnectError),
        ("http://no-such-host.invalid/v1", httpx.ConnectError),
        ("http://127.0.0.1:99999/v1", httpx.UnsupportedProtocol),
        ("http://two..dots/v1", httpx.UnsupportedProtocol),
    ],
)
async def test_a_server_that_is_not_there(
    transport: AiohttpTransport, url: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await transport.handle_async_request(httpx.Request("POST", url, content=b""))


async def silence(_: Request) -> Reply:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_silent_server_is_given_up_in_time(scripted: ScriptedServer) -> None:
    scripted.script = silence
    upstream = Upstream.connect(upstream_settings_for(scripted.url, call_timeout_seconds=0.1))
    outcome = await upstream.send(Endpoint.EMBEDDINGS, b"{}", idempotency_key="k")
    assert (outcome.verdict, outcome.blame) == (Verdict.TRANSIENT, Blame.UNCLEAR)
    assert outcome.code == "upstream_timeout"
    await upstream.aclose()


async def test_a_cancelled_call_hangs_up(
    scripted: ScriptedServer, transport: AiohttpTransport
) -> None:
    scripted.script = silence
    request = httpx.Request("POST", f"{scripted.url}/embeddings", content=b"{}")
    call = asyncio.create_task(transport.handle_async_request(request))
    await wait_until(lambda: len(scripted.requests) == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await wait_until(lambda: scripted.connections == 0)


async def test_it_may_be_closed_before_it_was_used() -> None:
    transport = AiohttpTransport(total_seconds=1, connect_seconds=1, max_response_bytes=1)
    await transport.aclose()
