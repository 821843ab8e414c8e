"""The simulated server: who is let in, how long it takes, what goes wrong, what is counted.

All of it runs on one event loop without a single coroutine a call. Settings are read anew for each
call, so a test may change them while the server runs.
"""

import asyncio
import math
import random
import time
from collections import deque

from cli.simulator import refusal
from cli.simulator.answer import Answer
from cli.simulator.connection import Connection, Exchange
from cli.simulator.desk import Closed, Desk, check_entry
from cli.simulator.endpoints import ENDPOINTS, answer_call, has_marker
from cli.simulator.prefixes import Prefixes
from cli.simulator.rates import Rates, estimate_tokens
from cli.simulator.record import CUT_BY_SERVER, LEFT_BY_CLIENT, Call, Record, Stats
from cli.simulator.refusal import Refusal
from cli.simulator.settings import SimulatorSettings
from cli.simulator.text import filler
from cli.simulator.videos import Videos

# A worker opens hundreds of connections at once; the default of 100 would make some wait a second.
BACKLOG = 4_096

_TOO_MANY = refusal.failure(429).body


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
        self._desk = Desk(self._record, self._videos, self._random)
        self._prefixes = Prefixes()
        self._rates = Rates(time.monotonic)
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

    def reset_stats(self) -> Stats:
        """Count anew; calls in service and in the queue remain, and are counted when they end."""
        return self._record.reset()

    def calls(self) -> list[Call]:
        """The latest calls, oldest first; as many as `settings.remember` allows."""
        return list(self._record.latest)

    def receive(self, exchange: Exchange) -> None:
        """Answer at once what needs no service; let the rest in, or not."""
        settings = self.settings
        try:
            reply = self._at_the_door(exchange)
        except Closed:
            exchange.connection.abort()
            return
        except Refusal as refused:
            self._send(exchange, refused.status, refused.body)
            return
        if reply is not None:
            self._send(exchange, 200, reply.body, reply.headers)
            return
        # Whoever waits is first, also for a slot that has just become free.
        must_wait = bool(self._queue) or (settings.capacity is not None and self._is_full())
        if must_wait and settings.over == "refuse":
            self._record.refused += 1
            self._send(exchange, 429, _TOO_MANY, self._retry_headers(settings.retry_after))
            return
        if settings.requests_per_minute or settings.tokens_per_minute:
            wait = self._charge(exchange)
            if wait:
                self._record.rate_limited += 1
                self._send(exchange, 429, _TOO_MANY, self._retry_headers(wait))
                return
        if must_wait:
            self._queue.append(exchange)
            self._record.enqueue()
        else:
            self._begin(exchange)

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
        is_cut = self._is_stopping or self._is_closing
        self._record.count(exchange, CUT_BY_SERVER if is_cut else LEFT_BY_CLIENT)

    @property
    def _is_closing(self) -> bool:
        return self.settings.outage and self.settings.down_mode == "close"

    def _at_the_door(self, exchange: Exchange) -> Answer | None:
        """The answer to what is not a model call; None for a model call; or a refusal."""
        settings = self.settings
        if exchange.method == "POST" and exchange.path in ENDPOINTS:
            exchange.is_call = True
            if settings.outage or settings.api_key is not None:
                check_entry(exchange, settings)
            return None
        reply = self._desk.answer(exchange, settings)
        if exchange.path == "/control":
            if self._is_closing:
                for connection in self.connections - {exchange.connection}:
                    connection.abort()
            self._let_in()  # The capacity may have grown.
        return reply

    def _is_full(self) -> bool:
        capacity = self.settings.capacity
        return capacity is not None and self._record.in_flight >= capacity

    def _charge(self, exchange: Exchange) -> float:
        """Take the call's share of the limits a minute, or say how long it has to wait for it."""
        settings = self.settings
        estimate = estimate_tokens(exchange.body)
        wait = self._rates.admit(settings.requests_per_minute, settings.tokens_per_minute, estimate)
        if not wait and settings.tokens_per_minute:
            exchange.tokens_charged = estimate
        return wait

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
        if exchange.tokens_charged:
            self._rates.settle(said.prompt_tokens + said.tokens - exchange.tokens_charged)
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
        if said.is_prefix_hit is not None:
            seconds += self._count_prefix(is_hit=said.is_prefix_hit)
        answer = said if status == 200 else Answer(refusal.failure(status).body)
        if seconds > 0:
            loop = asyncio.get_running_loop()
            exchange.timer = loop.call_later(seconds, self._end, exchange, status, answer, cut)
        else:
            self._end(exchange, status, answer, cut)

    def _read(self, exchange: Exchange) -> Answer:
        if has_marker(self.settings.bad_request_marker, exchange.body):
            raise refusal.failure(400)
        return answer_call(
            exchange.path, exchange.body, self.settings, self._videos, self._prefixes
        )

    def _service_seconds(self, tokens: int) -> float:
        settings = self.settings
        seconds = settings.latency
        if settings.latency_sigma:
            seconds *= math.exp(settings.latency_sigma * self._random.gauss(0.0, 1.0))
        seconds += settings.token_latency * tokens
        if settings.load_latency:
            seconds *= 1 + settings.load_latency * (self._record.in_flight - 1)
        return seconds

    def _count_prefix(self, *, is_hit: bool) -> float:
        """Count it; the further seconds that it takes."""
        if is_hit:
            self._record.prefix_hits += 1
            return 0.0
        self._record.prefix_misses += 1
        return self.settings.prefix_miss_latency

    def _end(self, exchange: Exchange, status: int, answer: Answer, cut: bool = False) -> None:
        # Before the answer is written: its reader may send the next call at once, and finds a slot.
        self._record.in_flight -= 1
        headers = answer.headers
        if status == 429:  # as asked for by option
            headers = self._retry_headers(self.settings.retry_after)
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
        self._record.count(exchange, CUT_BY_SERVER if cut else status)
        settings = self.settings
        if (settings.requests_per_minute or settings.tokens_per_minute) and exchange.is_call:
            headers += self._rates.headers(settings.requests_per_minute, settings.tokens_per_minute)
        exchange.connection.respond(exchange, status, body, headers, cut=cut)

    def _retry_headers(self, seconds: float | None) -> bytes:
        """Whole seconds for the standard header, exact milliseconds for OpenAI's own."""
        if seconds is None or self.settings.retry_after is None:
            return b""
        return b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (
            math.ceil(seconds),
            math.ceil(seconds * 1000),
        )
