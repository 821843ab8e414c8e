"""Limits a minute, as OpenAI's API keeps them: what is left and when it is whole again, in headers.

A bucket begins full and is refilled evenly, so that over t seconds at most limit * (1 + t / 60) pass.
"""

import math
from collections.abc import Callable


class Bucket:
    """What one limit has left. The limit is given with each question, for it may change."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Full."""
        self._clock = clock
        self._spent = 0.0
        self._at = clock()

    def wait_seconds(self, limit: int, amount: int) -> float:
        """How long until so much may be taken; 0: now.

        More than the whole limit may be taken when the bucket is full, or it could never be.
        """
        missing = self._spent_by_now(limit) + min(amount, limit) - limit
        return missing * 60 / limit if missing > 1e-9 else 0.0  # what rounding leaves is no wait

    def take(self, amount: int) -> None:
        """Take it, into debt if need be; less than zero gives back."""
        self._spent = max(0.0, self._spent + amount)

    def headers(self, limit: int, kind: bytes) -> bytes:
        """The three header lines that say how things stand."""
        spent = self._spent_by_now(limit)
        return (
            b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\n"
            b"x-ratelimit-reset-%b: %b\r\n"
            % (kind, limit, kind, max(0, limit - math.ceil(spent)), kind, _duration(spent, limit))
        )

    def _spent_by_now(self, limit: int) -> float:
        now = self._clock()
        self._spent = max(0.0, self._spent - (now - self._at) * limit / 60)
        self._at = now
        return self._spent


class Rates:
    """Both limits of a server: requests and tokens, a minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Nothing has been asked yet."""
        self._requests = Bucket(clock)
        self._tokens = Bucket(clock)

    def admit(self, requests: int | None, tokens: int | None, estimate: int) -> float:
        """Take a call's share, or say how many seconds it has to wait for both; 0: it is let in."""
        wait = self._requests.wait_seconds(requests, 1) if requests else 0.0
        if tokens:
            wait = max(wait, self._tokens.wait_seconds(tokens, estimate))
        if not wait and requests:
            self._requests.take(1)
        if not wait and tokens:
            self._tokens.take(estimate)
        return wait

    def settle(self, tokens: int) -> None:
        """A call has taken so many more than its estimate, or fewer."""
        self._tokens.take(tokens)

    def headers(self, requests: int | None, tokens: int | None) -> bytes:
        """The header lines of the limits that there are."""
        return (self._requests.headers(requests, b"requests") if requests else b"") + (
            self._tokens.headers(tokens, b"tokens") if tokens else b""
        )


def estimate_tokens(body: bytes) -> int:
    """What a call is charged before it is read: a token for every four bytes."""
    return max(1, len(body) // 4)


def _duration(spent: float, limit: int) -> bytes:
    """Until the bucket is full, in OpenAI's way: `6m0s`, `1.5s`, `20ms`."""
    milliseconds = math.ceil(spent * 60_000 / limit)
    if milliseconds < 1_000:
        return b"%dms" % milliseconds
    minutes, rest = divmod(milliseconds, 60_000)
    seconds = f"{rest / 1000:g}s".encode()
    return b"%dm%b" % (minutes, seconds) if minutes else seconds
