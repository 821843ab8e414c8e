"""uvicorn's reading of HTTP, with limits: on the size of a request's head, and on a client's time.

Promises: what is no HTTP, too long a head or too late a one is answered with the envelope and the end of
its connection, and nothing of it is repeated or logged; if an answer had begun already, the connection
just ends. A client that takes nothing of its answer for as long as one may be silent is cut off.
"""

import asyncio
import logging
import socket
import sys
import uuid
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from api.errors import envelope
from api.settings import ApiSettings

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
"""Most bytes in a row of which nothing can be handed on: a head, the trailers, the sizes of chunks."""

_UNSENT_BYTES = 64 * 1024
_NO_HTTP = "We could not read your request: it is not valid HTTP."
_LONG_HEAD = f"The request's head is longer than {MAX_HEAD_BYTES} bytes."


def _keep_little_unsent(transport: asyncio.Transport) -> None:
    """Let the kernel take little ahead, so that what a slow client takes shows here, and soon."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    # uvloop's sockets have no such method.
    with socket.fromfd(connection.fileno(), connection.family, connection.type) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)


class HttpProtocol(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        app: Any = self.config.app
        settings: ApiSettings = app.state.settings
        self._silence_seconds = settings.client_silence_seconds
        self.url = b""
        self._unread_bytes = 0
        self._unsent_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's
        """Wait for a request's head, for a while."""
        super().connection_made(transport)
        _keep_little_unsent(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        for timer in (self._head_timer, self._answer_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless that leads nowhere."""
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            is_url = 2 * len(self.url) > MAX_HEAD_BYTES
            self._refuse(
                HTTPStatus.REQUEST_URI_TOO_LONG
                if is_url
                else HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                _LONG_HEAD,
            )

    def on_message_begin(self) -> None:
        """A head begins, on a connection that may have been used before."""
        super().on_message_begin()
        if self._head_timer is None:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._unread_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """More of the body is there."""
        self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        self._unread_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """See to it that the rest of an answer is taken."""
        super().on_response_complete()
        self._watch_answer()

    def pause_writing(self) -> None:
        """The client is slower than its answer."""
        super().pause_writing()
        self._watch_answer()

    def resume_writing(self) -> None:
        """The client has taken most of what it was sent."""
        super().resume_writing()
        self._unsent_bytes = sys.maxsize

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be parsed, and hang up."""
        del msg
        self._refuse(HTTPStatus.BAD_REQUEST, _NO_HTTP)

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self._silence_seconds, self._miss_head)

    def _miss_head(self) -> None:
        self._head_timer = None
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            # A head that came early, behind a request that is still being answered.
            self._wait_for_head()
        elif self._unread_bytes:
            seconds = f"{self._silence_seconds:g}"
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT, f"The request's head did not arrive within {seconds} s."
            )
        else:
            self.transport.close()

    def _watch_answer(self) -> None:
        if self._answer_timer is None and (unsent_bytes := self.transport.get_write_buffer_size()):
            self._unsent_bytes = unsent_bytes
            self._look_again()

    def _look_again(self) -> None:
        self._answer_timer = self.loop.call_later(self._silence_seconds, self._look_for_progress)

    def _look_for_progress(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._answer_timer = None
        if left >= self._unsent_bytes:
            log.info("a client that took nothing of its answer was cut off")
            self.transport.abort()
        elif left:
            self._unsent_bytes = left
            self._look_again()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer a request that nobody will see, and hang up."""
        # It is of the request before this one, or of none yet.
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()
            return
        answer = envelope(status, message)
        headers = {
            "content-type": "application/json",
            "content-length": str(len(answer.body)),
            "connection": "close",
            "x-request-id": f"req_{uuid.uuid4().hex}",
            "openai-version": "2020-10-01",
            "openai-processing-ms": "0",
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        status_line = f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        self.transport.write(f"{status_line}{head}\r\n".encode() + answer.body)
        self.transport.close()
