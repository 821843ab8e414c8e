"""HTTP/1.1 for the simulated server: bytes in, exchanges out, bytes back, one connection at a time.

Requests that arrive while an earlier one of the same connection is unanswered wait, so pipelined
answers keep their order. A protocol class on httptools rather than a framework: the server shares a
small machine with what is measured.
"""

import asyncio
import time
from collections import deque
from http import HTTPStatus
from typing import Protocol, cast

import httptools

MOST_BODY_BYTES = 64 * 1024 * 1024
MOST_WAITING = 64

_HEARD = frozenset({b"authorization", b"expect", b"idempotency-key", b"x-traffic"})
_HEADS = {
    status.value: (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nserver: overnight-simulated\r\n"
    ).encode()
    for status in HTTPStatus
    if status >= 200
}


class BodyTooLarge(Exception):
    """The request's body is above `MOST_BODY_BYTES`."""


class Exchange:
    """One request, and what becomes of it."""

    __slots__ = (
        "arrived",
        "authorization",
        "body",
        "connection",
        "headers",
        "is_admitted",
        "is_call",
        "is_interactive",
        "keep_alive",
        "key",
        "method",
        "path",
        "timer",
        "tokens_charged",
    )

    def __init__(self, connection: "Connection") -> None:
        """Start empty; the parser fills it in."""
        self.connection = connection
        self.arrived = 0.0
        self.method = ""
        self.path = ""
        self.key: str | None = None
        self.authorization: bytes | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.keep_alive = True
        self.is_admitted = False
        self.is_call = False
        self.is_interactive = False
        self.tokens_charged = 0
        self.timer: asyncio.TimerHandle | None = None


class Service(Protocol):
    """What answers exchanges."""

    connections: "set[Connection]"

    @property
    def keeps_headers(self) -> bool:
        """Whether anybody will look at the headers."""

    def receive(self, exchange: Exchange) -> None:
        """Answer the exchange, now or later, with `exchange.connection.respond`."""

    def abandon(self, exchange: Exchange) -> None:
        """The client has left before the answer."""


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, service: Service) -> None:
        """Parse for this service."""
        self.gone = asyncio.Event()
        self._service = service
        self._keeps_headers = service.keeps_headers
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._incoming = Exchange(self)
        self._url = b""
        self._pieces: list[bytes] = []
        self._size = 0
        self._current: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._is_advancing = False
        self._can_write = True
        self._can_read = True
        self._answered = 0

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the server's connections."""
        self._transport = cast("asyncio.Transport", transport)
        self._service.connections.add(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Give up what is unanswered."""
        self._transport = None
        self._service.connections.discard(self)
        self._waiting.clear()
        exchange, self._current = self._current, None
        if exchange is not None:
            self._service.abandon(exchange)
        self.gone.set()

    def data_received(self, data: bytes) -> None:
        """Parse; whole requests go to the service from within."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            # Anything else raised from within is a mistake in this program, and must be seen.
            if not isinstance(error.__context__, BodyTooLarge):
                raise
            self._refuse_request(413)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse_request(400)

    def pause_writing(self) -> None:
        """The client reads too slowly: answer no more for now."""
        self._can_write = False

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._can_write = True
        self._advance()

    # From the parser.

    def on_message_begin(self) -> None:
        """A new request."""
        self._incoming = Exchange(self)
        self._url = b""
        self._pieces = []
        self._size = 0

    def on_url(self, url: bytes) -> None:
        """Take the target, or a piece of it."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the few headers that matter."""
        name = name.lower()
        if name in _HEARD:
            if name == b"idempotency-key":
                self._incoming.key = value.decode("latin-1")
            elif name == b"authorization":
                self._incoming.authorization = value
            elif name == b"x-traffic":
                self._incoming.is_interactive = value.lower() == b"interactive"
            elif value.lower() == b"100-continue" and self._transport is not None:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._keeps_headers:
            self._incoming.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        """Collect the body."""
        self._size += len(body)
        if self._size > MOST_BODY_BYTES:
            raise BodyTooLarge
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """Hand the request over, or let it wait for the one before."""
        exchange = self._incoming
        exchange.arrived = time.time()
        exchange.method = self._parser.get_method().decode()
        exchange.path = self._url.partition(b"?")[0].decode("latin-1")
        exchange.keep_alive = self._parser.should_keep_alive()
        exchange.body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._waiting.append(exchange)
        self._advance()
        if len(self._waiting) > MOST_WAITING and self._can_read and self._transport is not None:
            self._can_read = False
            self._transport.pause_reading()

    # From the service.

    def respond(
        self,
        exchange: Exchange,
        status: int,
        body: bytes,
        headers: bytes = b"",
        *,
        cut: bool = False,
    ) -> None:
        """Send the answer; with `cut`, only half of its body, and close."""
        if self._current is not exchange or self._transport is None:
            return
        self._current = None
        self._answered += 1
        closing = b"" if exchange.keep_alive else b"connection: close\r\n"
        head = b"%b%bcontent-length: %d\r\nx-request-id: req_simulated_%x_%x\r\n%b%b\r\n" % (
            _HEADS.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status,
            b"" if headers.startswith(b"content-type:") else b"content-type: application/json\r\n",
            len(body),
            id(self),
            self._answered,
            headers,
            closing,
        )
        if cut:
            body = body[: len(body) // 2]
        elif exchange.method == "HEAD":
            body = b""
        self._transport.write(head + body)
        if cut or not exchange.keep_alive:
            self._waiting.clear()
            self._transport.close()
        else:
            self._advance()

    def abort(self) -> None:
        """Cut the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _advance(self) -> None:
        """Serve what waits, in order; a loop, so that a long pipeline does not nest."""
        if self._is_advancing:
            return
        self._is_advancing = True
        while self._waiting and self._current is None and self._can_write:
            self._current = self._waiting.popleft()
            self._service.receive(self._current)
        self._is_advancing = False
        if not self._can_read and not self._waiting and self._transport is not None:
            self._can_read = True
            self._transport.resume_reading()

    def _refuse_request(self, status: int) -> None:
        """What was sent cannot be read on: say so and close."""
        if self._transport is not None:
            self._transport.write(
                _HEADS[status] + b"connection: close\r\ncontent-length: 0\r\n\r\n"
            )
            self._transport.close()
