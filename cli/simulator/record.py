"""What the simulated server has seen: the counts, the latest calls, and the witness log on disk.

The log is the impartial witness of crash tests: it tells how often each line really reached a
model. It is written in batches, at most 50 ms after the call, and outlives a killed server but for
those 50 ms.
"""

import asyncio
import os
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path

FLUSH_SECONDS = 0.05

CUT_BY_SERVER = 0
LEFT_BY_CLIENT = 499


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
    refused: int
    """Calls answered 429 because the server was full."""
    distinct_lines: int
    repeated_calls: int
    """Calls beyond the first for their line, deliberate retries included."""
    duplicates: int
    """Successful answers beyond the first for their line: work done twice."""


@dataclass(kw_only=True)
class Record:
    """The running counts, and the log they are written to."""

    log: Path | None = None
    remember: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    queued: int = 0
    refused: int = 0
    latest: deque[Call] = field(init=False)
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
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def count(self, place: str, status: int) -> None:
        """A call of any kind has ended."""
        self._counts[place][status] += 1

    def count_line(self, arrived: float, key: str | None, body: bytes, status: int) -> None:
        """A call to a model endpoint has ended."""
        line = hash(key) if key is not None else hash(body)
        self._line_calls += 1
        was_answered = self._is_answered.get(line, False)
        is_success = 200 <= status < 300
        self._is_answered[line] = was_answered or is_success
        self._duplicates += was_answered and is_success
        if self.log is not None:
            name = "_".join(key.split()) if key else "-"
            self._unwritten.append(f"{arrived:.6f}\t{name}\t{status}\n")
            if self._flush is None:
                self._flush = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

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
            refused=self.refused,
            distinct_lines=len(self._is_answered),
            repeated_calls=self._line_calls - len(self._is_answered),
            duplicates=self._duplicates,
        )
