"""A model of run processes in front of one model server, in virtual time: what the controller is tried on.

Events are kept in a heap and no clock runs, so a minute of 300 calls a second takes a tenth of one.
Processes have shares of the limit and exchange every 0.1 s, as the real ones do. A refused call is
answered at once: its process cuts its cap to what it still has in flight, and pauses for the server's
Retry-After unless it only tried for more than was accepted before.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from worker.flow.controller import Controller, Interval


@dataclass
class Server:
    """A model server with `slots`; above them it refuses, or lets calls wait in the order they came."""

    slots: int = 64
    refuses: bool = False
    seconds: Callable[[random.Random, int], float] = lambda _chance, _busy: 0.2
    retry_after_seconds: float = 1.0
    publishes: bool = False
    dead: bool = False
    answers: float = 1.0  # the share of calls that do not end in a 500
    times_out_seconds: float = math.inf


Change = Callable[[Server], None]


@dataclass
class Process:
    """What one run process has of the lane."""

    cap: int = 0
    in_flight: int = 0
    accepted: float = math.inf  # how many at once the server has taken before
    paused_until: float = 0.0


@dataclass
class Seen:
    """What came of a run."""

    seconds: float = 0.0
    started: int = 0
    refused: int = 0
    failed: int = 0
    limits: list[tuple[float, int]] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    interactive: list[float] = field(default_factory=list)

    def rate(self, since: float, until: float) -> float:
        """Lines a second that succeeded in a stretch of the run."""
        return sum(since <= at < until for at in self.ended) / (until - since)

    def limit_at(self, at: float) -> int:
        """The limit in force at a time."""
        return next(limit for since, limit in reversed(self.limits) if since <= at)

    def highest(self, since: float) -> int:
        """The highest limit after a time."""
        return max(limit for at, limit in self.limits if at >= since)

    def lowest(self, since: float) -> int:
        """The lowest limit after a time."""
        return min(limit for at, limit in self.limits if at >= since)

    def percentile(self, share: float) -> float:
        """Latency of the interactive calls."""
        return sorted(self.interactive)[int(share * len(self.interactive))]


class Model:
    """`lines` of a batch, called by `processes` on `server`, with open-loop traffic beside them."""

    def __init__(
        self,
        server: Server,
        *,
        lines: int = 20_000,
        processes: int = 1,
        interactive: float = 0.0,
        seed: int = 1,
        controller: Controller | None = None,
        until: float = math.inf,
        tick_seconds: float = 0.1,
        changes: tuple[tuple[float, Change], ...] = (),
        arrivals: tuple[tuple[float, int], ...] = (),
    ) -> None:
        self.server = server
        self.lines = lines
        self.processes = [Process() for _ in range(processes)]
        self.interactive = interactive
        self.chance = random.Random(seed)
        self.controller = controller or Controller(most=4096)
        self.until = until
        self.tick_seconds = tick_seconds
        self.seen = Seen()
        self.now = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._queue: deque[tuple[Process | None, float]] = deque()
        self._busy = 0
        self._breaker_until = 0.0
        self._failures = 0
        self._limit = self.controller.limit
        self._clear()
        for at, change in changes:
            self._at(at, partial(change, server))
        for at, more in arrivals:
            self._at(at, partial(self._arrive, more))

    def run(self) -> Seen:
        """Run until every line has its answer, or the time is up."""
        self._at(0.0, self._tick)
        if self.interactive:
            self._at(0.0, self._interact)
        while self._events:
            self.now, _, happen = heapq.heappop(self._events)
            if self.now > self.until or self._is_over():
                break
            happen()
        self.seen.seconds = min(self.now, self.until)
        return self.seen

    def _is_over(self) -> bool:
        return self.until == math.inf and not self.lines and not self._in_flight

    @property
    def _in_flight(self) -> int:
        return sum(process.in_flight for process in self.processes)

    def _at(self, at: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at, next(self._order), happen))

    def _arrive(self, more: int) -> None:
        self.lines += more

    # the processes

    def _clear(self) -> None:
        self._since = self._counted = self.now
        self._slot_seconds = self._limited_seconds = self._latency = 0.0
        self._succeeded = self._refused = self._failed = self._cut = 0

    def _count(self) -> None:
        self._slot_seconds += self._in_flight * (self.now - self._counted)
        self._counted = self.now

    def _tick(self) -> None:
        """Exchange: the totals go up, the shares come down."""
        self._count()
        if self.lines and self.now and any(p.in_flight >= p.cap for p in self.processes):
            self._limited_seconds += self.tick_seconds
        if self.now - self._since >= self.controller.interval_seconds - 1e-9:
            self._step()
        self._share()
        self._start()
        self._at(self.now + self.tick_seconds, self._tick)

    def _step(self) -> None:
        seconds = self.now - self._since
        interval = Interval(
            seconds=seconds,
            limit=self._limit,
            cut=self._cut,
            in_flight=self._slot_seconds / seconds,
            succeeded=self._succeeded,
            refused=self._refused,
            failed=self._failed,
            latency_seconds=self._latency,
            is_limited=self._limited_seconds > seconds / 2,
            waiting=len(self._queue) if self.server.publishes else None,
        )
        # Whichever process is next goes on from what the last one left.
        self.controller = Controller.load(self.controller.dump(), most=4096)
        self.controller.step(interval)
        self._limit = self.controller.limit
        self.seen.limits.append((self.now, self._limit))
        self._clear()

    def _share(self) -> None:
        """Nobody gets more than what the others really gave back."""
        fair, more = divmod(self._limit, len(self.processes))
        for number, process in enumerate(self.processes):
            process.cap = min(process.cap, fair + (number < more))
        for number, process in enumerate(self.processes):
            others = sum(max(p.cap, p.in_flight) for p in self.processes if p is not process)
            process.cap = max(process.cap, min(fair + (number < more), self._limit - others))

    def _start(self) -> None:
        if self.now < self._breaker_until:
            return
        going = True
        while going:
            going = False
            for process in self.processes:
                if (
                    self.lines
                    and self.now >= process.paused_until
                    and process.in_flight < process.cap
                ):
                    going = self._call(process) or going

    def _call(self, process: Process) -> bool:
        """Whether it was taken. A breaker that is open lets one call try."""
        if self._failures >= 20 and self._in_flight:
            return False
        if self.server.refuses and self._busy >= self.server.slots:
            self._refuse(process)
            return False
        self._count()
        process.in_flight += 1
        self.lines -= 1
        self.seen.started += 1
        self._offer(process)
        return True

    def _refuse(self, process: Process) -> None:
        self.seen.refused += 1
        self._refused += 1
        cap = max(process.in_flight, 1)
        self._cut += process.cap - cap
        self._limit = max(1, self._limit - (process.cap - cap))
        process.cap = cap
        if process.in_flight < 0.9 * process.accepted:
            for each in self.processes:
                each.paused_until = self.now + self.server.retry_after_seconds
                each.accepted = each.in_flight
        self.seen.limits.append((self.now, self._limit))

    # the server

    def _offer(self, process: Process | None) -> None:
        if self._busy < self.server.slots:
            self._serve(process, self.now)
        else:
            self._queue.append((process, self.now))

    def _serve(self, process: Process | None, started: float) -> None:
        self._busy += 1
        seconds = self.server.seconds(self.chance, self._busy) if not self.server.dead else 0.01
        self._at(self.now + seconds, lambda: self._answer(process, started))

    def _answer(self, process: Process | None, started: float) -> None:
        self._busy -= 1
        while self._queue and self._busy < self.server.slots:
            self._serve(*self._queue.popleft())
        latency = self.now - started
        if process is None:
            self.seen.interactive.append(latency)
            return
        self._count()
        process.in_flight -= 1
        if (
            self.server.dead
            or latency > self.server.times_out_seconds
            or (self.server.answers < 1 and self.chance.random() > self.server.answers)
        ):
            self._fail()
        else:
            self._failures = 0
            self._succeeded += 1
            self._latency += latency
            self.seen.ended.append(self.now)
        self._start()

    def _fail(self) -> None:
        """The line waits for its next try; after 20 failures in a row nothing is called for a second."""
        self.seen.failed += 1
        self._failed += 1
        self.lines += 1
        self._failures += 1
        if self._failures >= 20:
            self._breaker_until = self.now + 1.0

    def _interact(self) -> None:
        self._offer(None)
        self._at(self.now + self.chance.expovariate(self.interactive), self._interact)
