"""A gate: a limit that every process shares, seen from one of them.

Each lane has one of its own, for its model at its server; a server with limits of its own has another,
which all its lanes pass. Nothing here waits: calls are counted, refusals cut the share at once, and the
rest is agreed upon by `worker.flow.lanes` about ten times a second.
"""

from collections.abc import Callable
from dataclasses import replace

from worker.flow.exchange import Grant, Limits, Report

LAPSED_SECONDS = 2.0
"""A share that was not agreed upon for so long may have been given to others (a frozen process)."""

_GOOD_SECONDS = 1.0
_MOMENT_SECONDS = 0.25
_PROBES = 3
_MARGIN = 0.9
"""A refusal that leaves so much of what is known to be good in flight says that one call was too many."""


class Gate:
    """One process's part in a limit. Times are the clock's: monotonic, in seconds."""

    def __init__(self, name: str, limits: Limits, clock: Callable[[], float]) -> None:
        self.name = name
        self.limits = limits
        self.cap = 0
        """This process's share of the calls in flight; 0 until it has been agreed upon."""

        self.limit = 0
        """The calls in flight that all processes may have together."""

        self.in_flight = 0
        self.processes = 1
        self.paused_until = 0.0
        self.agreed_at: float | None = None
        self.shut_until = float("-inf")
        """Until then lines for it are best left to others: it has no share, and nobody to ask for one."""

        self._clock = clock
        self._requests = self._tokens = 0
        # Since the last exchange:
        self._cut = self._succeeded = self._refused = self._failed = 0
        self._latency_seconds = self._slot_seconds = self._limited_seconds = 0.0
        self._counted_at = clock()
        self._has_news_of_pause = False
        # Calls in flight that the server is known to take: it refused none for a second.
        self._good = 0
        self._level = 0
        self._level_since = self._counted_at
        self._refused_at = float("-inf")
        self._burst = 0
        self._ramp_from: float | None = None

    def has_room(self, now: float) -> bool:
        """Whether a call may be begun now."""
        return (
            self.in_flight < self.cap
            and now >= self.paused_until
            and self.agreed_at is not None
            and now - self.agreed_at < LAPSED_SECONDS
            and self._has_permits()
            and (self._ramp_from is None or self.in_flight < self._ramp(now))
        )

    @property
    def is_agreed(self) -> bool:
        """Whether this process knows its share."""
        return self.agreed_at is not None and self._clock() - self.agreed_at < LAPSED_SECONDS

    def started(self, tokens: int) -> None:
        """A call is begun, of about so many tokens."""
        self._count()
        self.in_flight += 1
        if self.limits.requests_per_minute is not None:
            self._requests -= 1
        if self.limits.tokens_per_minute is not None:
            self._tokens -= tokens

    def ended(self, *, tokens_left_over: int = 0) -> None:
        """A call has ended; so many tokens less (or, below zero, more) were used than was thought."""
        self._count()
        self.in_flight -= 1
        if self.limits.tokens_per_minute is not None:
            self._tokens += tokens_left_over

    def succeeded(self, latency_seconds: float) -> None:
        """The server answered a call."""
        self._succeeded += 1
        self._latency_seconds += latency_seconds

    def failed(self) -> None:
        """A call came to nothing: a time-out, a server error, a cut connection."""
        self._failed += 1

    def refused(self, retry_after_seconds: float | None, backoff_seconds: float) -> bool:
        """The server asked for patience; called after `ended`. Says whether everything pauses.

        The share is cut to what the server still has in hand. A few refusals at the edge of what is known
        to be good are a probe's, and say no more than that: the calls below it go on. Any other pauses
        the gate for as long as the server asks, or for `backoff_seconds`.
        """
        now = self._clock()
        self._refused += 1
        self._burst = self._burst + 1 if now - self._refused_at < _GOOD_SECONDS else 1
        self._refused_at = now
        is_at_the_edge = 0 < _MARGIN * self._good <= self.in_flight
        if self.in_flight < self.cap:
            left = max(1, self.in_flight)
            self._cut += self.cap - left
            self.cap = left
        if is_at_the_edge and self._burst <= max(_PROBES, self._good // 4):
            return False
        self._good = min(self._good, self.in_flight)
        self.pause_everywhere(retry_after_seconds or backoff_seconds)
        return True

    def note_refused(self) -> None:
        """A call was refused; whose limit it hit is not known, so this one stays as it is."""
        self._refused += 1

    def pause_everywhere(self, seconds: float) -> None:
        """Begin no call for so long, and tell the others."""
        self.pause(seconds)
        self._has_news_of_pause = True

    def pause(self, seconds: float) -> None:
        """Begin no call for so long."""
        until = self._clock() + seconds
        if until > self.paused_until + 0.05:
            self.paused_until = self._ramp_from = until

    def ramp(self) -> None:
        """Begin with a few calls only, twice as many every fiftieth of a second: it may be too early."""
        self._ramp_from = self._clock()

    def note_limited(self, seconds: float) -> None:
        """For so long lines waited for no other reason than the share."""
        self._limited_seconds += seconds

    @property
    def is_full(self) -> bool:
        """Whether the share is used up."""
        return self.in_flight >= self.cap

    def report(self, *, waiting: int, tokens_a_line: int) -> Report:
        """What to tell the others; `waiting` lines would go through if they could."""
        now = self._count()
        self._learn_good(now)
        wanted = min(waiting, max(1, self.cap))
        return Report(
            in_flight=self.in_flight,
            demand=self.in_flight + waiting,
            cut=self._cut,
            succeeded=self._succeeded,
            refused=self._refused,
            failed=self._failed,
            latency_seconds=self._latency_seconds,
            slot_seconds=self._slot_seconds,
            limited_seconds=self._limited_seconds,
            pause_seconds=max(0.0, self.paused_until - now) if self._has_news_of_pause else 0.0,
            requests=max(0, wanted - self._requests),
            tokens=max(0, wanted * tokens_a_line - max(0, self._tokens)),
            overdrawn_tokens=max(0, -self._tokens),
        )

    def last_report(self) -> Report:
        """The same, when nothing more is to come: permits that are left are given back."""
        report = self.report(waiting=0, tokens_a_line=0)
        return replace(
            report, requests=min(0, -self._requests), tokens=min(0, -max(0, self._tokens))
        )

    def agree(self, report: Report, grant: Grant) -> None:
        """Take what the others left, in answer to this report."""
        now = self._clock()
        self.agreed_at = now
        self._cut -= report.cut
        self._succeeded -= report.succeeded
        self._refused -= report.refused
        self._failed -= report.failed
        self._latency_seconds -= report.latency_seconds
        self._slot_seconds -= report.slot_seconds
        self._limited_seconds -= report.limited_seconds
        self.limit, self.processes = grant.limit, grant.processes
        # What was cut while the answer was on its way is not in it yet.
        self.cap = max(min(1, grant.cap), grant.cap - self._cut)
        self._requests += grant.requests
        self._tokens += grant.tokens + report.overdrawn_tokens
        if report.pause_seconds > 0:
            self._has_news_of_pause = False
        elif grant.pause_seconds > 0:
            self.pause(grant.pause_seconds)

    def _learn_good(self, now: float) -> None:
        """What was in flight for a moment, and not only begun, and was not refused, is good."""
        self._level = min(self._level, self.in_flight)
        if now - self._level_since > _MOMENT_SECONDS:
            if now - self._refused_at > _GOOD_SECONDS:
                self._good = max(self._good, self._level)
            self._level, self._level_since = self.in_flight, now

    def _has_permits(self) -> bool:
        return (self.limits.requests_per_minute is None or self._requests > 0) and (
            self.limits.tokens_per_minute is None or self._tokens > 0
        )

    def _ramp(self, now: float) -> int:
        assert self._ramp_from is not None  # noqa: S101  # asked by `has_room`
        steps = int((now - self._ramp_from) / 0.02)
        if steps >= 12:  # 4,096: beyond any share that could be hurt
            self._ramp_from = None
        return 1 << min(steps, 12)

    def _count(self) -> float:
        now = self._clock()
        self._slot_seconds += self.in_flight * (now - self._counted_at)
        self._counted_at = now
        return now
