"""What a model server says of its rate limits, in the `x-ratelimit-…` headers of an answer. Pure.

Promises: whatever the headers hold, nothing is raised; what cannot be read is left out. A hint is advice
of one moment: other callers may use the same limits.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

_NUMBER = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,18})?")
_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,12})?)(ms|us|µs|ns|d|h|m|s)")
_UNIT_SECONDS = {
    "d": 86400.0,
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "ns": 1e-9,
}
_LONGEST_TEXT = 64
_FIRST_EPOCH_SECONDS = 1e9
"""A larger number is no wait but a moment, since 1970: in seconds, or in milliseconds from 1e12 on."""

_FIRST_EPOCH_MS = 1e12
_LONGEST_WAIT_SECONDS = 31 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RateHint:
    """How much may be asked until the limits are whole again, and how fast they refill.

    Of a limit whose rate cannot be told nothing is said at all, so that nobody waits for it in vain.
    """

    requests_remaining: int | None = None
    """Calls that may be started now; null if nothing is said."""

    requests_per_second: float = 0.0
    """At which rate further ones are let through; more than zero if it is said what remains."""

    requests_reset_seconds: float = 0.0
    """From now until the limit is whole again."""

    tokens_remaining: int | None = None
    tokens_per_second: float = 0.0
    tokens_reset_seconds: float = 0.0


def read_rate_headers(
    headers: Mapping[str, str], *, now: datetime | None = None
) -> RateHint | None:
    """The hint of an answer's headers, if they hold one. They are asked for by names in lower case."""
    requests = _read_limit(headers, "requests", now)
    tokens = _read_limit(headers, "tokens", now)
    if requests is None and tokens is None:
        return None
    requests = requests or _NOT_SAID
    tokens = tokens or _NOT_SAID
    return RateHint(
        requests_remaining=requests.remaining,
        requests_per_second=requests.per_second,
        requests_reset_seconds=requests.reset_seconds,
        tokens_remaining=tokens.remaining,
        tokens_per_second=tokens.per_second,
        tokens_reset_seconds=tokens.reset_seconds,
    )


class _Limit(NamedTuple):
    remaining: int | None = None
    per_second: float = 0.0
    reset_seconds: float = 0.0


_NOT_SAID = _Limit()


def _read_limit(headers: Mapping[str, str], kind: str, now: datetime | None) -> _Limit | None:
    remaining = _read_count(headers.get(f"x-ratelimit-remaining-{kind}"))
    if remaining is None:
        return None
    limit = _read_count(headers.get(f"x-ratelimit-limit-{kind}"))
    reset = read_wait(headers.get(f"x-ratelimit-reset-{kind}"), now=now)
    # A limit that is whole does not refill, so that it does not show the rate at which it would.
    if limit is None or not reset or limit <= remaining:
        return None
    return _Limit(int(remaining), (limit - remaining) / reset, reset)


def _read_count(text: str | None) -> float | None:
    if text is None or len(text) > _LONGEST_TEXT:
        return None
    text = text.strip()
    if text.startswith("-") and _NUMBER.fullmatch(text[1:]):
        # Some count on below zero.
        return 0.0
    return float(text) if _NUMBER.fullmatch(text) else None


def read_wait(text: str | None, *, now: datetime | None = None) -> float | None:
    """Seconds from `now` (the clock's, if it is not given), of `1s`, `6m0s`, `120ms`, `1.5` or a moment.

    A moment is written as ISO 8601 does, or in seconds or milliseconds since 1970; a past one is no wait.
    """
    if text is None or len(text) > _LONGEST_TEXT:
        return None
    text = text.strip()
    if _NUMBER.fullmatch(text):
        seconds = float(text)
        if seconds >= _FIRST_EPOCH_SECONDS:
            seconds = seconds / 1000 if seconds >= _FIRST_EPOCH_MS else seconds
            seconds -= _moment(now).timestamp()
    else:
        found = _sum_of_parts(text)
        seconds = _seconds_to(text, _moment(now)) if found is None else found
    if not math.isfinite(seconds) or seconds > _LONGEST_WAIT_SECONDS:
        return None
    return max(0.0, seconds)


def _moment(now: datetime | None) -> datetime:
    return datetime.now(UTC) if now is None else now


def _sum_of_parts(text: str) -> float | None:
    """The seconds of `1h2m3.5s`; null if it is not of that form."""
    seconds, place = 0.0, 0
    while found := _PART.match(text, place):
        seconds += float(found[1]) * _UNIT_SECONDS[found[2]]
        place = found.end()
    return seconds if place == len(text) and place else None


def _seconds_to(text: str, now: datetime) -> float:
    """The seconds until a moment in ISO 8601, which is in UTC unless it says otherwise; or NaN."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return (moment - now).total_seconds()
    except (ValueError, OverflowError):
        return math.nan
