"""The simulated server: who is let in, how long it takes, what goes wrong, what is counted.

All of it runs on one event loop without a single coroutine a call. Settings are read anew for each
call, so a test may change them while the server runs.
"""

import asyncio
import dataclasses
import math
import random
from collections import deque

import orjson

from cli.simulator import refusal
from cli.simulator.answer import Answer
from cli.simulator.connection import Connection, Exchange
from cli.simulator.endpoints import (
    ENDPOINTS,
    VIDEOS,
    answer_call,
    has_marker,
    list_models,
    one_model,
)
from cli.simulator.record import CUT_BY_SERVER, LEFT_BY_CLIENT, Call, Record, Stats
from cli.simulator.refusal import Refusal
from cli.simulator.settings import SimulatorSettings
from cli.simulator.text import filler
from cli.simulator.videos import Videos

# A worker opens hundreds of connections at once; the default of 100 would make some wait a second.
BACKLOG = 4_096


class SimulatedServer:
    """An OpenAI-compatible server on the running event loop."""

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        """Nothing listens before `start`."""
        self.settings = settings or SimulatorSettings()
        self.connections: set[Connection] = set()
        self._port = self.settings.port
        self._random = random.Random(self.settings.seed)
        self._record = Record(log=self.settings.log, remember=self.settings.remember)
        self._videos = Videos()
        self._queue: deque[Exchange] = deque()
        self._server: asyncio.Server | None = None
        self._is_stopping = False

    @property
    def origin(self) -> str:
        """Scheme, host and port: where `/stats` and `/health` are."""
        host = self.settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def url(self) -> str:
        """The base URL to give to a client; it ends in `/v1`."""
        return f"{self.origin}/v1"

    @property
    def keeps_headers(self) -> bool:
        """Whether anybody will look at the headers."""
        return self.settings.remember > 0

    async def start(self) -> None:
        """Listen. After a `stop`, on the same port again."""
        self._record.open()
        if self.settings.reply_bytes is not None:
            filler()  # Now, or the first call would wait for it.
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self), self.settings.host, self._port, backlog=BACKLOG
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut every connection, as a server does that dies. Counts are kept."""
        if self._server is None:
            return
        self._is_stopping = True
        self._server.close()
        leaving = list(self.connections)
        for connection in leaving:
            connection.abort()
        await self._server.wait_closed()
        for connection in leaving:
            await connection.gone.wait()
        self._server = None
        self._is_stopping = False
        self._record.close()

    def stats(self) -> Stats:
        """What has been counted so far."""
        return self._record.stats()

    def calls(self) -> list[Call]:
        """The latest calls, oldest first; as many as `settings.remember` allows."""
        return list(self._record.latest)

    def receive(self, exchange: Exchange) -> None:
        """Answer at once what needs no service; let the rest in, or not."""
        try:
            reply = self._at_the_door(exchange)
        except Refusal as refused:
            self._send(exchange, refused.status, refused.body)
            return
        if reply is not None:
            self._send(exchange, 200, reply.body, reply.headers)
        elif not self._is_full():
            self._begin(exchange)
        elif self.settings.over == "queue":
            self._queue.append(exchange)
            self._record.queued += 1
        else:
            self._record.refused += 1
            self._send(exchange, 429, refusal.failure(429).body, self._retry_headers())

    def abandon(self, exchange: Exchange) -> None:
        """Forget a call whose connection is gone."""
        if exchange.timer is not None:
            exchange.timer.cancel()
        if exchange.is_admitted:
            self._record.in_flight -= 1
            self._let_in()
        elif exchange in self._queue:
            self._queue.remove(exchange)
            self._record.queued -= 1
        self._count(exchange, CUT_BY_SERVER if self._is_stopping else LEFT_BY_CLIENT)

    def _at_the_door(self, exchange: Exchange) -> Answer | None:
        """The answer to what is not a model call; None for a model call; or a refusal."""
        settings = self.settings
        method, path = exchange.method, exchange.path
        if path == "/stats":
            return Answer(orjson.dumps(dataclasses.asdict(self.stats())))
        if settings.outage:
            raise refusal.failure(503)
        if path == "/health":
            return Answer(b'{"status":"ok"}')
        if not self._holds_key(exchange):
            raise Refusal(401, "Incorrect API key provided.", code="invalid_api_key")
        if method == "POST" and path in ENDPOINTS:
            return None
        if method == "GET" and path == "/v1/models":
            return list_models(settings)
        if method == "GET" and path.startswith("/v1/models/"):
            return one_model(path.removeprefix("/v1/models/"), settings)
        if method == "GET" and path.startswith(f"{VIDEOS}/"):
            return self._poll(path.removeprefix(f"{VIDEOS}/"))
        raise Refusal(404, f"Unknown request URL: {method} {path}.", code="unknown_url")

    def _poll(self, rest: str) -> Answer:
        settings = self.settings
        if settings.poll_error_rate and self._random.random() < settings.poll_error_rate:
            raise refusal.failure(settings.error_status)
        video_id, _, part = rest.partition("/")
        if part == "content":
            return self._videos.content(video_id)
        return self._videos.retrieve(rest)

    def _holds_key(self, exchange: Exchange) -> bool:
        key = self.settings.api_key
        return key is None or exchange.authorization == f"Bearer {key}".encode()

    def _is_full(self) -> bool:
        capacity = self.settings.capacity
        return capacity is not None and self._record.in_flight >= capacity

    def _begin(self, exchange: Exchange) -> None:
        """Take the call into service and decide how it will end, and when."""
        exchange.is_admitted = True
        self._record.begin()
        try:
            said = self._read(exchange)
        except Refusal as refused:
            self._end(exchange, refused.status, Answer(refused.body))
            return
        settings, dice = self.settings, self._random
        status, cut = 200, False
        if has_marker(settings.fail_marker, exchange.body):
            status = settings.fail_status
        elif settings.drop_rate and dice.random() < settings.drop_rate:
            cut = True
        elif settings.hang_rate and dice.random() < settings.hang_rate:
            return
        elif settings.error_rate and dice.random() < settings.error_rate:
            status = settings.error_status
        seconds = self._service_seconds(said.tokens)
        answer = said if status == 200 else Answer(refusal.failure(status).body)
        if seconds > 0:
            loop = asyncio.get_running_loop()
            exchange.timer = loop.call_later(seconds, self._end, exchange, status, answer, cut)
        else:
            self._end(exchange, status, answer, cut)

    def _read(self, exchange: Exchange) -> Answer:
        if has_marker(self.settings.bad_request_marker, exchange.body):
            raise refusal.failure(400)
        return answer_call(exchange.path, exchange.body, self.settings, self._videos)

    def _service_seconds(self, tokens: int) -> float:
        settings = self.settings
        seconds = settings.latency
        if settings.latency_sigma:
            seconds *= math.exp(settings.latency_sigma * self._random.gauss(0.0, 1.0))
        return seconds + settings.token_latency * tokens

    def _end(self, exchange: Exchange, status: int, answer: Answer, cut: bool = False) -> None:
        self._record.in_flight -= 1
        headers = self._retry_headers() if status == 429 else answer.headers
        self._send(exchange, status, answer.body, headers, cut=cut)
        self._let_in()

    def _let_in(self) -> None:
        # By the loop, not by a call: ends and beginnings in a full queue would nest without limit.
        if self._queue and not self._is_full():
            asyncio.get_running_loop().call_soon(self._begin_queued)

    def _begin_queued(self) -> None:
        while self._queue and not self._is_full():
            self._record.queued -= 1
            self._begin(self._queue.popleft())

    def _send(
        self,
        exchange: Exchange,
        status: int,
        body: bytes,
        headers: bytes = b"",
        *,
        cut: bool = False,
    ) -> None:
        self._count(exchange, CUT_BY_SERVER if cut else status)
        exchange.connection.respond(exchange, status, body, headers, cut=cut)

    def _count(self, exchange: Exchange, status: int) -> None:
        path, record = exchange.path, self._record
        if path == "/stats":
            return
        if exchange.method == "POST" and path in ENDPOINTS:
            record.count_line(exchange.arrived, exchange.key, exchange.body, status)
            record.count(path, status)
        elif path == "/health" or path.startswith("/v1/models"):
            record.count("/health" if path == "/health" else "/v1/models", status)
        elif path.startswith(f"{VIDEOS}/"):
            record.count(f"{VIDEOS}/{{id}}", status)
        else:
            record.count("other", status)
        if self.settings.remember:
            record.latest.append(
                Call(
                    arrived=exchange.arrived,
                    method=exchange.method,
                    path=path,
                    headers={
                        name.decode("latin-1"): value.decode("latin-1")
                        for name, value in exchange.headers
                    },
                    body=exchange.body,
                    status=status,
                )
            )

    def _retry_headers(self) -> bytes:
        """Whole seconds for the standard header, exact milliseconds for OpenAI's own."""
        seconds = self.settings.retry_after
        if seconds is None:
            return b""
        return b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (math.ceil(seconds), seconds * 1000)
