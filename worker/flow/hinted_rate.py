"""The rate that a server's own headers tell, and how much of it is left for this process."""

from worker.flow.rate_headers import RateHint

_VALID_SECONDS = 60.0


class HintedRate:
    """What the last hint left, less what was begun since. Times are the caller's clock, in seconds."""

    def __init__(self) -> None:
        self._hint: RateHint | None = None
        self._taken_at = 0.0
        # Begun since the hint, and their tokens.
        self._calls = self._tokens = 0

    def take(self, hint: RateHint | None, now: float) -> None:
        """Take in what an answer's headers said, if they said anything."""
        if hint is not None:
            self._hint, self._taken_at = hint, now
            self._calls = self._tokens = 0

    def started(self, tokens: int) -> None:
        """A call is begun that is thought to use so many tokens."""
        self._calls += 1
        self._tokens += tokens

    def has_room(self, now: float, *, processes: int) -> bool:
        """Whether one of so many processes, which share the rate alike, may begin a call."""
        seconds = now - self._taken_at
        if self._hint is None or seconds > _VALID_SECONDS:
            return True
        hint = self._hint
        if hint.requests_remaining is not None:
            left = hint.requests_remaining + seconds * (hint.requests_per_second or 0.0)
            # A part of a call is none: with nothing left it would be refused.
            if left / processes < self._calls + 1:
                return False
        if hint.tokens_remaining is not None:
            left = hint.tokens_remaining + seconds * (hint.tokens_per_second or 0.0)
            return left / processes > self._tokens
        return True
