"""The circuit breaker of a lane: an outage is asked after by one call at a time. Pure.

Promises: while it is open no call is begun but a probe, the first after `base_seconds` and then ever more
seldom, but never more than `cap_seconds` apart; the first call that the server answers closes it. Nobody's
tries are used up by an outage: whether a failed try is charged is `worker.retry`'s to say.
"""

from dataclasses import dataclass

from worker.retry import Blame

MOST_PROBE_SECONDS = 5.0

_AWAY_IN_A_ROW = 3
"""A server that cannot be reached is told from one that hiccups by so many failures in a row."""

_FIRST_TRIES_IN_A_ROW = 10
"""Failures of unclear cause count only if they are first tries: at the tail of a batch only the lines that
are at fault themselves are still being tried, again and again."""


@dataclass(slots=True)
class Breaker:
    """Open or closed; times are monotonic, in seconds."""

    base_seconds: float = 0.5
    cap_seconds: float = MOST_PROBE_SECONDS
    opened_at: float | None = None
    _away: int = 0
    _first_tries: int = 0
    _wait_seconds: float = 0.0
    _probe_at: float = 0.0
    _is_probing: bool = False

    @property
    def is_open(self) -> bool:
        """Whether the server is taken to be down."""
        return self.opened_at is not None

    def may_start(self, now: float) -> bool:
        """Whether a call may be begun: any while it is closed, else a probe that is due."""
        return self.opened_at is None or now >= self._probe_at

    @property
    def probe_at(self) -> float:
        """When the next probe is due."""
        return self._probe_at

    def started(self, now: float) -> None:
        """A call was begun. One that hangs keeps the next probe for no longer than `cap_seconds`."""
        if self.opened_at is not None:
            self._is_probing = True
            self._probe_at = now + self.cap_seconds

    def answered(self, began_at: float) -> bool:
        """The server answered a call, be it by a refusal; say whether that closed the breaker.

        An answer to a call that was begun before it opened does not.
        """
        was_open = self.opened_at is not None
        if self.opened_at is not None and began_at <= self.opened_at:
            return False
        self._away = self._first_tries = 0
        self.opened_at, self._is_probing = None, False
        return was_open

    def failed(self, blame: Blame, now: float, *, is_first_try: bool) -> bool:
        """A call failed; say whether that opened the breaker."""
        if self.opened_at is not None:
            # Of the calls that were in flight when it opened, each may be taken for the probe: the
            # next one is then a little later than it might be.
            if self._is_probing:
                self._is_probing = False
                self._wait_seconds = min(self.cap_seconds, 1.6 * self._wait_seconds)
                self._probe_at = now + self._wait_seconds
            return False
        self._away += blame is Blame.AWAY
        self._first_tries += is_first_try
        if self._away < _AWAY_IN_A_ROW and self._first_tries < _FIRST_TRIES_IN_A_ROW:
            return False
        self.opened_at, self._is_probing = now, False
        self._wait_seconds = self.base_seconds
        self._probe_at = now + self._wait_seconds
        return True

    def dropped(self, now: float) -> None:
        """A call ended without saying anything about the server: it was stopped from here."""
        if self._is_probing:
            self._is_probing = False
            self._probe_at = now + self._wait_seconds
