"""What a process may do at a gate without agreeing with the others: when Redis is away, or there is none.

Promises: never more calls in flight than the share that it had when it last agreed, and the same part of
the calls and tokens a minute; within that it adapts to the server alone. A share of none stays none where
the limit is a fixed one; one that is only sought gets one call, lest nothing move.
"""

from worker.flow.controller import Controller, Interval
from worker.flow.exchange import Grant, Limits, Report, Totals

_BURST_SECONDS = 2.0


class _Bucket:
    """Permits that come at a rate, and are kept for a moment only."""

    def __init__(self, per_minute: float | None) -> None:
        self._per_second = None if per_minute is None else per_minute / 60
        self._left = 0.0

    def take(self, wanted: int, seconds: float, overdrawn: int = 0) -> int:
        """As many as there are of those wanted, after so many more seconds."""
        if self._per_second is None:
            return wanted
        most = max(1.0, self._per_second * _BURST_SECONDS)
        self._left = min(most, self._left + seconds * self._per_second) - overdrawn
        taken = max(0, min(wanted, int(self._left)))
        self._left -= taken
        return taken


class LocalShare:
    """A part of a gate's limits, for one process."""

    def __init__(self, limits: Limits, *, cap: int | None, processes: int) -> None:
        """`cap` is the share when it last agreed with others; null if there are none."""
        self._fixed = (
            limits.fixed if cap is None or limits.fixed is None else min(cap, limits.fixed)
        )
        most = limits.most if cap is None else max(1, cap)
        start = limits.start if cap is None else most
        self._limit = min(start, most)
        self._controller = Controller(most=most, start=self._limit)
        self._requests = _Bucket(_part(limits.requests_per_minute, processes))
        self._tokens = _Bucket(_part(limits.tokens_per_minute, processes))
        self._totals = _NOTHING
        self._asked_at: float | None = None

    def exchange(self, report: Report, *, now: float, waiting: int | None = None) -> Grant:
        """The same as `Exchange.exchange`, at once; `now` is monotonic, in seconds."""
        seconds = 0.0 if self._asked_at is None else now - self._asked_at
        self._asked_at = now
        if self._fixed is None:
            self._limit = max(1, self._limit - report.cut)
            self._totals = _add(self._totals, report, seconds, limit=self._limit)
            if self._totals.seconds >= self._controller.interval_seconds:
                self._controller.step(interval_of(self._totals, waiting=waiting))
                self._limit = self._controller.limit
                self._totals = _NOTHING
        limit = self._limit if self._fixed is None else self._fixed
        return Grant(
            cap=limit,
            limit=limit,
            processes=1,
            pause_seconds=report.pause_seconds,
            requests=self._requests.take(report.requests, seconds),
            tokens=self._tokens.take(report.tokens, seconds, overdrawn=report.overdrawn_tokens),
        )


def interval_of(totals: Totals, *, waiting: int | None) -> Interval:
    """What was reported since the last step, as the controller takes it."""
    return Interval(
        seconds=totals.seconds,
        limit=totals.limit,
        cut=totals.cut,
        in_flight=totals.slot_seconds / totals.seconds if totals.seconds else 0.0,
        succeeded=totals.succeeded,
        refused=totals.refused,
        failed=totals.failed,
        latency_seconds=totals.latency_seconds,
        is_limited=totals.limited_seconds > 0.5 * totals.seconds,
        waiting=waiting,
    )


_NOTHING = Totals(
    seconds=0.0,
    limit=0,
    cut=0,
    succeeded=0,
    refused=0,
    failed=0,
    latency_seconds=0.0,
    slot_seconds=0.0,
    limited_seconds=0.0,
)


def _add(totals: Totals, report: Report, seconds: float, *, limit: int) -> Totals:
    return Totals(
        seconds=totals.seconds + seconds,
        limit=limit,
        cut=totals.cut + report.cut,
        succeeded=totals.succeeded + report.succeeded,
        refused=totals.refused + report.refused,
        failed=totals.failed + report.failed,
        latency_seconds=totals.latency_seconds + report.latency_seconds,
        slot_seconds=totals.slot_seconds + report.slot_seconds,
        limited_seconds=totals.limited_seconds + report.limited_seconds,
    )


def _part(per_minute: float | None, processes: int) -> float | None:
    return None if per_minute is None else per_minute / max(1, processes)
