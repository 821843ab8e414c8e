"""A lane: the lines of one process for one model at one model server, and when the next may go.

It knows what a call's end says of the server: the gates count it, the breaker opens and closes, a refusal
pauses everybody, and the latencies tell from when on a call hangs. Whose line goes next is the fair queue's
to say.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from models.hours import ActiveHours
from worker.flow.breaker import MOST_PROBE_SECONDS, Breaker
from worker.flow.fair_queue import FairQueue, Queued, Turn
from worker.flow.gate import Gate
from worker.flow.hinted_rate import HintedRate
from worker.flow.latency import Latencies
from worker.flow.rate_headers import RateHint
from worker.flow.tally import CallTally
from worker.retry import Blame, backoff_seconds
from worker.settings import RunSettings

log = logging.getLogger(__name__)

_REPORT_SECONDS = 10.0

MOST_PAUSE_SECONDS = 3600.0
"""However long a server asks for: it may be wrong, and a window is not longer than days."""


@dataclass(frozen=True, slots=True)
class LaneKey:
    """A model server's name, and the model's name there (empty if lines name none)."""

    server: str
    model: str

    def __str__(self) -> str:
        """The lane's name in logs and in Redis."""
        return f"{self.server}/{self.model}" if self.model else self.server


class Source(Queued, Protocol):
    """What a lane's lines come from: a claimed shard."""

    @property
    def shard(self) -> Turn:
        """Whose turn it decides."""

    @property
    def unstarted(self) -> int:
        """Lines that no call was begun for."""

    @property
    def waiting(self) -> int:
        """Lines that would be called if there were room."""

    @property
    def has_fresh(self) -> bool:
        """Whether a line is ready that was never tried."""

    def start_next(self, *, fresh_first: bool) -> None:
        """Begin a call: of a line that was tried before, if there is one, or else of a fresh one."""


class Lane:
    """What may be begun. Times are the clock's: monotonic, in seconds."""

    def __init__(
        self,
        key: LaneKey,
        gates: Sequence[Gate],
        *,
        settings: RunSettings,
        clock: Callable[[], float],
        hours: ActiveHours | None = None,
        pause_server: Callable[[float], None] = lambda _: None,
        tally: CallTally | None = None,
    ) -> None:
        """`gates` has the lane's own first; `pause_server` is for its server's other lanes, too."""
        self.key = key
        self.tally = CallTally() if tally is None else tally
        self.own, *self._shared = gates
        self.gates = tuple(gates)
        self.queue: FairQueue[Source] = FairQueue()
        self.names: set[str | None] = set()
        """By which batches know the model."""

        self.breaker = Breaker(
            base_seconds=settings.retry_base_seconds,
            cap_seconds=min(settings.retry_cap_seconds, MOST_PROBE_SECONDS),
        )
        self.latencies = Latencies()
        self.used_at = clock()
        self._settings = settings
        self.clock = clock
        self._hours = hours
        self._pause_server = pause_server
        self._refusals = 0
        self._report_at = float("-inf")
        self._fails_since: float | None = None
        self._closed_report_at = float("-inf")
        self._hinted = HintedRate()
        self._mean_tokens = 0.0
        self._starts = 0
        self._starts_a_second = 0.0
        self._counted_at = clock()

    @property
    def in_flight(self) -> int:
        """Calls of this process."""
        return self.own.in_flight

    @property
    def is_in_use(self) -> bool:
        """Whether it has calls in flight or a shard, whose lines may all be backing off."""
        return self.in_flight > 0 or len(self.queue) > 0

    @property
    def unstarted(self) -> int:
        """Lines at hand that no call was begun for."""
        return sum(source.unstarted for source in self.queue)

    @property
    def waiting(self) -> int:
        """Lines at hand that would be called if there were room."""
        return sum(source.waiting for source in self.queue)

    @property
    def starts_a_second(self) -> float:
        """Calls begun lately, a second."""
        return self._starts_a_second

    def may_start(self) -> bool:
        """Whether a call may be begun now, as far as the server is concerned."""
        now = self.clock()
        return (
            self.own.has_room(now)
            and all(gate.has_room(now) for gate in self._shared)
            and self.breaker.may_start(now)
            and self._hinted.has_room(now, processes=self.own.processes)
            and self.is_open_by_hours()
        )

    def is_open_by_hours(self) -> bool:
        """Whether the server may be called at this time of the day."""
        return self._hours is None or self._hours.is_open(datetime.now(UTC))

    def say_closed(self) -> None:
        """Tell, once an hour at most, that lines wait for the server's active hours."""
        now = self.clock()
        if self._hours is None or now < self._closed_report_at:
            return
        self._closed_report_at = now + 3600
        seconds = self._hours.seconds_until_open(datetime.now(UTC))
        log.warning(
            "lines wait for the model server %s until its active hours begin (%s), in %.0f minutes",
            self.key.server,
            self._hours,
            seconds / 60,
        )

    @property
    def is_shut(self) -> bool:
        """Whether other processes may call what this one may not, as far as it can find out."""
        return any(gate.shut_until > self.clock() for gate in self.gates)

    @property
    def is_blocked(self) -> bool:
        """Whether it makes no sense to claim more lines for it just now."""
        now = self.clock()
        # Who wants nothing has no share; that is no reason not to begin to want.
        is_in_want = self.waiting > 0
        return (
            any(
                gate.paused_until > now + 1.0 or (is_in_want and gate.is_agreed and not gate.cap)
                for gate in self.gates
            )
            # Fresh lines to ask after the server with are always of use: those at hand may be at fault.
            or (self.breaker.is_open and self.unstarted > 0)
            or self.is_shut
            or not self.is_open_by_hours()
        )

    @property
    def is_limited(self) -> bool:
        """Whether only the shares in the limits keep waiting lines back."""
        return any(gate.is_full for gate in self.gates) and not self.is_blocked

    def next_source(self) -> Source | None:
        """Whose line goes next. An outage is asked after with fresh lines, for others may be at fault."""
        if self.breaker.is_open:
            for source in self.queue:
                if source.has_fresh:
                    return source
        return self.queue.next()

    def tokens_of(self, body_bytes: int) -> int:
        """About how many tokens a call will use: its prompt's, and an answer like those before."""
        return body_bytes // 4 + int(self._mean_tokens)

    @property
    def tokens_a_line(self) -> int:
        """About how many a usual line uses."""
        return max(1, int(self._mean_tokens)) + 100

    def started(self, tokens: int) -> None:
        """A call is begun."""
        self._starts += 1
        self._hinted.started(tokens)
        self.used_at = self.clock()
        self.breaker.started(self.used_at)
        for gate in self.gates:
            gate.started(tokens)

    def answered(
        self,
        seconds: float,
        *,
        is_success: bool,
        tokens: int,
        used: int,
        answer_tokens: int,
        hint: RateHint | None,
    ) -> None:
        """A call got its final answer after so many seconds; `tokens` is what it was thought to use.

        A 4xx says that the server is well, and nothing of how fast it is.
        """
        self._refusals = 0
        for gate in self.gates:
            # What an answer leaves unsaid is taken to be as it was thought.
            gate.ended(tokens_left_over=tokens - used if used else 0)
            if is_success:
                gate.succeeded(seconds)
        if is_success:
            self._mean_tokens += 0.05 * (answer_tokens - self._mean_tokens)
            self.latencies.add(seconds)
        now = self.clock()
        self._hinted.take(hint, now)
        if self.breaker.answered(now - seconds):
            self._reopen(now)

    def refused(
        self,
        retry_after_seconds: float | None,
        *,
        seconds: float,
        is_of_server: bool,
        tokens: int,
        hint: RateHint | None,
    ) -> None:
        """The server asked for patience: for this model (429), or for itself (503 with `Retry-After`).

        It took so many seconds to say so.
        """
        if retry_after_seconds is not None:
            retry_after_seconds = min(retry_after_seconds, MOST_PAUSE_SECONDS)
        for gate in self.gates:
            gate.ended(tokens_left_over=tokens)
        now = self.clock()
        if self.breaker.answered(now - seconds):
            self._reopen(now)
        self._hinted.take(hint, now)
        was_paused = self.own.paused_until > self.clock()
        backoff = backoff_seconds(
            self._refusals + 1,
            base_seconds=self._settings.retry_base_seconds,
            cap_seconds=self._settings.retry_cap_seconds,
            retry_after_seconds=None,
        )
        # Those that were in flight when the pause began add nothing to it.
        wait_seconds = 0.0 if was_paused else backoff
        if self.own.refused(retry_after_seconds, wait_seconds) and not was_paused:
            self._refusals += 1
            log.info(
                "the model server %s asks for patience: no call for %.1f s, then %s in flight",
                self.key.server,
                self.own.paused_until - self.clock(),
                self.own.cap,
            )
            if is_of_server:
                self._pause_server(self.own.paused_until - self.clock())
        for gate in self._shared:
            gate.note_refused()

    def failed(self, blame: Blame, reason: str, *, tokens: int, is_first_try: bool) -> None:
        """A call came to nothing; the reason is for the log."""
        for gate in self.gates:
            gate.ended(tokens_left_over=tokens)
            gate.failed()
        now = self.clock()
        if self.breaker.failed(blame, now, is_first_try=is_first_try) and now > self._report_at:
            self._report_at = now + _REPORT_SECONDS
            self._fails_since = now
            log.warning(
                "the model server %s fails (%s): one call at a time asks whether it is back",
                self.key.server,
                reason,
            )

    def dropped(self, *, tokens: int) -> None:
        """A call was stopped from here; that says nothing of the server."""
        for gate in self.gates:
            gate.ended(tokens_left_over=tokens)
        self.breaker.dropped(self.clock())

    def hang_seconds(self) -> float | None:
        """From when on a call that is tried for the first time hangs; null if nobody can tell."""
        if not self._settings.hang_seconds:
            return None
        return self.latencies.hang_seconds(
            least_seconds=self._settings.hang_seconds, factor=self._settings.hang_factor
        )

    def tick(self) -> None:
        """Take the measure of the last moment; called about ten times a second."""
        now = self.clock()
        seconds = now - self._counted_at
        if seconds <= 0:
            return
        weight = min(1.0, seconds)
        self._starts_a_second += weight * (self._starts / seconds - self._starts_a_second)
        self._starts, self._counted_at = 0, now
        if self.waiting and self.is_limited:
            for gate in self.gates:
                if gate.is_full:
                    gate.note_limited(seconds)

    def _reopen(self, now: float) -> None:
        if self._fails_since is not None:
            seconds = now - self._fails_since
            log.warning("the model server %s answers again, after %.0f s", self.key.server, seconds)
            self._fails_since = None
        for gate in self.gates:
            gate.ramp()
