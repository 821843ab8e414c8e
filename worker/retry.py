"""Whether and when a line is tried again. Pure: nothing here sleeps, calls or stores.

A transient failure is retried until the window closes, so that an outage of the model server fails
nothing. The exception is a line that itself is the cause: it is given up after `max_tries` failures
that are *charged* to it, and a failure is charged only when there is evidence that the server was
well: see `Neighbours`.
"""

import random
from dataclasses import dataclass
from enum import Enum, auto


class Blame(Enum):
    """What a failed try says about its cause."""

    BUSY = auto()
    """The server asks for patience (429, or 503 with `Retry-After`). Never the line's fault."""

    AWAY = auto()
    """The server, or what stands before it, could not be reached (refused, 502, 503)."""

    OWN = auto()
    """The server was seen to be well: whatever it is, it is between this line and the server."""

    UNCLEAR = auto()
    """A 500, a time-out (or a gateway's 504), a cut or broken answer: the line's doing, or the server's."""


@dataclass(slots=True)
class Neighbours:
    """What the other lines for the same model, in this process, say about the server's health.

    A failure is charged to its line
    - if another line has succeeded since this try began: the server was well; or
    - if the cause is unclear, the server has been well lately, and hardly any line has had its
      *first* try fail since. In an outage many first tries fail in a row; at the tail of a batch only
      the few lines that are at fault themselves are still being tried.
    """

    recent_seconds: float = 600.0
    few: int = 3
    successes: int = 0
    _last_success: float = float("-inf")
    _first_tries_failed: int = 0

    def succeeded(self, now: float) -> None:
        """A line got its answer. `now` is monotonic, in seconds."""
        self.successes += 1
        self._last_success = now
        self._first_tries_failed = 0

    def first_try_failed(self) -> None:
        """A line that had not been tried before has failed."""
        self._first_tries_failed += 1

    def charge(self, blame: Blame, *, successes_before: int, now: float) -> bool:
        """Whether this failure is the line's own; `successes_before` is from when the try began."""
        if blame is Blame.BUSY:
            return False
        if blame is Blame.OWN:
            return True
        if self.successes > successes_before:
            return True
        return (
            blame is Blame.UNCLEAR
            and now - self._last_success < self.recent_seconds
            and self._first_tries_failed <= self.few
        )


def backoff_seconds(
    failures: int, *, base_seconds: float, cap_seconds: float, retry_after_seconds: float | None
) -> float:
    """How long to wait after the n-th failure in a row: doubling, capped, with jitter.

    Never less than the server asked for; jitter only adds to that, lest all lines return at once.
    """
    spread = random.random()  # jitter, not a secret
    if retry_after_seconds is not None:
        return retry_after_seconds * (1 + 0.1 * spread)
    ceiling = min(cap_seconds, base_seconds * 2 ** min(failures - 1, 30))
    return float(ceiling * (0.5 + 0.5 * spread))
