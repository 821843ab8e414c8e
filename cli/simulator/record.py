"""What the simulated server has seen: the counts, the latest calls, and the witness log on disk.

The log is the impartial witness of crash tests: it tells how often each line really reached a
model. It is written in batches, at most 50 ms after the call, and outlives a killed server but for
those 50 ms.
"""

import asyncio
import os
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path

from cli.simulator.connection import Exchange
from cli.simulator.latencies import Latencies, Traffic

FLUSH_SECONDS = 0.05

CUT_BY_SERVER = 0
LEFT_BY_CLIENT = 499

_UNCOUNTED = frozenset({"/stats", "/stats/reset", "/control"})
_COUNTED_APART = frozenset({"/health", "/metrics"})


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call to the simulated server, kept whole because `remember` asked for it."""

    arrived: float
    """Unix time."""
    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    status: int
    """As sent; 0 when the server cut the connection, 499 when the client left before the answer."""


@dataclass(frozen=True, kw_only=True)
class Stats:
    """The counts at one moment. A line is told by its `idempotency-key`, or else by its body."""

    calls: int
    """Calls to the model endpoints that have ended, however they ended."""
    by_endpoint: dict[str, dict[str, int]]
    """Ended calls of any kind: path, then status."""
    in_flight: int
    peak_in_flight: int
    queued: int
    peak_in_system: int
    """Most calls in service and in the queue together."""
    refused: int
    """Calls answered 429 because the server was full."""
    rate_limited: int
    """Calls answered 429 because of a limit a minute."""
    prefix_hits: int
    prefix_misses: int
    distinct_lines: int
    repeated_calls: int
    """Calls beyond the first for their line, deliberate retries included."""
    duplicates: int
    """Successful answers beyond the first for their line: work done twice."""
    interactive: Traffic
    """Calls to the model endpoints with the header `x-traffic: interactive`."""
    other: Traffic
    """All other calls to the model endpoints."""


@dataclass(kw_only=True)
class Record:
    """The running counts, and the log they are written to."""

    log: Path | None = None
    remember: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    queued: int = 0
    refused: int = 0
    rate_limited: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    latest: deque[Call] = field(init=False)
    _peak_with_queue: int = field(init=False, default=0)
    _interactive: Latencies = field(init=False, default_factory=Latencies)
    _other: Latencies = field(init=False, default_factory=Latencies)
    _counts: defaultdict[str, Counter[int]] = field(
        init=False, default_factory=lambda: defaultdict(Counter)
    )
    # By hash of the line's name: at a million lines the names themselves would weigh 100 MB.
    _is_answered: dict[int, bool] = field(init=False, default_factory=dict)
    _line_calls: int = field(init=False, default=0)
    _duplicates: int = field(init=False, default=0)
    _file: int | None = field(init=False, default=None)
    _unwritten: list[str] = field(init=False, default_factory=list)
    _flush: asyncio.TimerHandle | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Make room for the calls to remember."""
        self.latest = deque(maxlen=self.remember)

    def begin(self) -> None:
        """A call enters service."""
        self.in_flight += 1
        # Not `max`, which takes three times as long: this is part of every call.
        if self.in_flight > self.peak_in_flight:  # noqa: PLR1730
            self.peak_in_flight = self.in_flight

    def enqueue(self) -> None:
        """A call enters the queue."""
        self.queued += 1
        self._peak_with_queue = max(self._peak_with_queue, self.in_flight + self.queued)

    def count(self, exchange: Exchange, status: int) -> None:
        """A call of any kind has ended."""
        path = exchange.path
        if exchange.is_call:
            self._count_line(exchange, status)
            self._counts[path][status] += 1
        elif path in _UNCOUNTED:
            return
        elif path in _COUNTED_APART:
            self._counts[path][status] += 1
        elif path.startswith("/v1/models"):
            self._counts["/v1/models"][status] += 1
        elif path.startswith("/v1/videos/"):
            self._counts["/v1/videos/{id}"][status] += 1
        else:
            self._counts["other"][status] += 1
        if self.remember:
            self._keep(exchange, status)

    def _keep(self, exchange: Exchange, status: int) -> None:
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in exchange.headers
        }
        self.latest.append(
            Call(
                arrived=exchange.arrived,
                method=exchange.method,
                path=exchange.path,
                headers=headers,
                body=exchange.body,
                status=status,
            )
        )

    def _count_line(self, exchange: Exchange, status: int) -> None:
        """A call to a model endpoint has ended."""
        key, arrived = exchange.key, exchange.arrived
        line = hash(exchange.body if key is None else key)
        self._line_calls += 1
        if 200 <= status < 300:
            if self._is_answered.get(line):
                self._duplicates += 1
            self._is_answered[line] = True
            traffic = self._interactive if exchange.is_interactive else self._other
            traffic.seconds.append(time.time() - arrived)
        else:
            self._is_answered.setdefault(line, False)
            if status == 429:  # too many requests
                traffic = self._interactive if exchange.is_interactive else self._other
                traffic.refused += 1
        if self.log is not None:
            name = "_".join(key.split()) if key else "-"
            self._unwritten.append(f"{arrived:.6f}\t{name}\t{status}\n")
            if self._flush is None:
                self._flush = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def reset(self) -> Stats:
        """Count anew. Calls in service and in the queue remain, and are counted when they end."""
        self.peak_in_flight = self.in_flight
        self._peak_with_queue = self.in_flight + self.queued
        self.refused = self.rate_limited = self.prefix_hits = self.prefix_misses = 0
        self._line_calls = self._duplicates = 0
        self._counts.clear()
        self._is_answered.clear()
        self._interactive = Latencies()
        self._other = Latencies()
        return self.stats()

    def flush(self) -> None:
        """Write what is waiting for the log."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if self._file is not None and self._unwritten:
            data = "".join(self._unwritten).encode()
            self._unwritten.clear()
            while data:
                data = data[os.write(self._file, data) :]

    def open(self) -> None:
        """Open the log, appending to what is there."""
        if self.log is not None and self._file is None:
            self._file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def close(self) -> None:
        """Write the rest and close the log."""
        self.flush()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def stats(self) -> Stats:
        """The counts as they are now."""
        return Stats(
            calls=self._line_calls,
            by_endpoint={
                place: {str(status): count for status, count in sorted(counts.items())}
                for place, counts in sorted(self._counts.items())
            },
            in_flight=self.in_flight,
            peak_in_flight=self.peak_in_flight,
            queued=self.queued,
            # With no queue, all that is in the system is in service.
            peak_in_system=max(self.peak_in_flight, self._peak_with_queue),
            refused=self.refused,
            rate_limited=self.rate_limited,
            prefix_hits=self.prefix_hits,
            prefix_misses=self.prefix_misses,
            distinct_lines=len(self._is_answered),
            repeated_calls=self._line_calls - len(self._is_answered),
            duplicates=self._duplicates,
            interactive=self._interactive.traffic(),
            other=self._other.traffic(),
        )
