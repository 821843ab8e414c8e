"""What surrounds every request, as plain ASGI: nothing is buffered, and back-pressure stays as it is.

Promises: every answer has its `x-request-id`; no error leaves without the envelope; a client that is
still sending when its answer is ready can read that answer; a client that falls silent in
mid-request, or sends too slowly, is cut off. (`api.protocol` does so while it reads a head or an answer.)
"""

import asyncio
import logging
import math
import time
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.counting import count_request, route_of, traced_request
from api.errors import request_id_of, unexpected
from models.ids import ORGANIZATION_ID
from models.logline import bound_ids

log = logging.getLogger(__name__)

_CLIENT_REQUEST_ID = "x-client-request-id"
_MAX_NAME = 512

_LINGER_SECONDS = 30.0
_LINGER_SILENCE_SECONDS = 5.0


class Stamp:
    """Gives each request its id, each answer the headers that OpenAI's answers have, and counts both."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and stamp its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        echoed = _client_request_id(Headers(scope=scope))
        status = 0

        async def send_stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                nonlocal status
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-version"] = "2020-10-01"
                headers["openai-organization"] = ORGANIZATION_ID
                milliseconds = round((time.perf_counter() - began) * 1000)
                headers["openai-processing-ms"] = str(milliseconds)
                if echoed is not None:
                    headers[_CLIENT_REQUEST_ID] = echoed
            await send(message)

        try:
            with bound_ids(request=request_id), traced_request(scope) as traced:
                await self.app(scope, receive, send_stamped)
                traced.rename(f"{scope['method']} {route_of(scope)}")
                traced.tell_answer(status, "server_error" if status >= 500 else "")
        finally:
            count_request(scope, status, time.perf_counter() - began)


def _client_request_id(headers: Headers) -> str | None:
    """The client's own name for its request, if it is one that OpenAI would take: short and ASCII."""
    name = headers.get(_CLIENT_REQUEST_ID)
    is_fit = name is not None and len(name) <= _MAX_NAME and name.isascii() and name.isprintable()
    return name if is_fit else None


@dataclass(frozen=True, slots=True)
class Pace:
    """How slow a client may be with its request."""

    silence_seconds: float
    min_bytes_per_second: float

    def seconds_for(self, received_bytes: int) -> float:
        """How long it may take over so many bytes and what comes next."""
        if not self.min_bytes_per_second:
            return math.inf
        return self.silence_seconds + received_bytes / self.min_bytes_per_second


class Linger:
    """Reads on, for a while, what a client still sends after its answer.

    A server that closes a connection with unread bytes resets it, and the client may lose the answer
    that says why. So the answer goes out, the rest of the request is read and dropped, and only then
    does the answer end.
    """

    def __init__(self, app: ASGIApp, pace: Pace) -> None:
        self.app = app
        self.pace = pace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with its body watched."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _WatchedBody(Headers(scope=scope), receive, send, self.pace)
        await self.app(scope, body.receive, body.send)


class _WatchedBody:
    """Knows whether the client is still sending its request."""

    def __init__(self, headers: Headers, receive: Receive, send: Send, pace: Pace) -> None:
        self._receive, self._send = receive, send
        self._pace = pace
        self._received_bytes = 0
        self._waited_seconds = 0.0
        has_length = headers.get("content-length", "0") != "0"
        self._is_unread = has_length or "transfer-encoding" in headers
        # Such a client sends nothing before it is told to go on, and reading would tell it.
        self._asks_first = headers.get("expect", "").lower() == "100-continue"

    async def receive(self) -> Message:
        if not self._is_unread:
            return await self._receive()
        self._asks_first = False
        silence_seconds = self._pace.silence_seconds
        left_seconds = self._pace.seconds_for(self._received_bytes) - self._waited_seconds
        began = time.monotonic()
        try:
            message = await self._read(max(0, min(silence_seconds, left_seconds)))
        except TimeoutError:
            self._is_unread = False
            detail = f"The request's body did not arrive: {silence_seconds:g} s of silence."
            if left_seconds < silence_seconds:
                least = f"{self._pace.min_bytes_per_second:g}"
                detail = (
                    f"The request's body arrived too slowly: at less than {least} bytes a second."
                )
            raise HTTPException(408, detail, {"connection": "close"}) from None
        # Only waiting for the client counts, not what is done with what it sends.
        self._waited_seconds += time.monotonic() - began
        self._received_bytes += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        begins = message["type"] == "http.response.start"
        ends = not begins and not message.get("more_body", False)
        if self._is_unread and begins and self._asks_first:
            MutableHeaders(scope=message)["connection"] = "close"
        if self._is_unread and ends and not self._asks_first:
            await self._send({**message, "more_body": True})
            await self._drain()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self._send(message)

    async def _read(self, seconds: float) -> Message:
        async with asyncio.timeout(seconds):
            message = await self._receive()
        self._is_unread = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._is_unread:
                    await self._read(_LINGER_SILENCE_SECONDS)
        except TimeoutError:
            self._is_unread = False


class LastResort:
    """Answers what no handler foresaw, with the envelope, and logs it with the request's id."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and answer for it if that fails."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = False

        async def note_and_send(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, receive, note_and_send)
        except ClientDisconnect:
            log.info("the client went away (%s)", request_id_of(scope))
        except Exception as error:  # noqa: BLE001  # the last resort
            response = unexpected(error, scope)
            # Once bytes are out, only a broken connection tells the client that they are not all.
            if not began:
                await response(scope, receive, send)
