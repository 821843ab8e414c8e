"""The hours in which a model server may be called, as its wall clock tells them. Pure.

Promises: a time is within the hours exactly if a clock on the wall shows it to be, so an hour that the
change to summer time leaves out is left out here, and one that comes twice counts twice. A range over
midnight belongs to the day on which it begins.
"""

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Self
from zoneinfo import ZoneInfo, available_timezones

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_EVERY_DAY = frozenset(range(7))
_RANGE = re.compile(r"(?:(\S+)\s+)?(\d\d):(\d\d)\s*-\s*(\d\d):(\d\d)")
_DAY_SECONDS = 24 * 3600
# A range of one day a week may fall into the hour that a change of the clock leaves out.
_DAYS_AHEAD = 15


def find_time_zone(name: str) -> ZoneInfo:
    """The zone of an IANA name.

    Raises:
        ValueError: there is none of that name.
    """
    try:
        return ZoneInfo(name)
    # A name that is a folder, or leads out of the folder of zones, or cannot be a path.
    except (KeyError, ValueError, OSError):
        nearest = difflib.get_close_matches(name, available_timezones(), n=1)
        end = f"; did you mean '{nearest[0]}'?" if nearest else ", such as 'Europe/Berlin'"
        message = f"there is no time zone '{name[:64]}'{end}"
        raise ValueError(message) from None


@dataclass(frozen=True, slots=True)
class _Range:
    """On which days it begins, and when; it may end on the next day, over 24 hours."""

    days: frozenset[int]
    start_seconds: int
    end_seconds: int


@dataclass(frozen=True, slots=True)
class ActiveHours:
    """Ranges of the week in one time zone."""

    texts: tuple[str, ...]
    zone: ZoneInfo
    ranges: tuple[_Range, ...]

    @classmethod
    def parse(cls, texts: Iterable[str], zone: str = "UTC") -> Self:
        """Read ranges such as `22:00-06:00` or `mon-fri 19:00-07:00`; a text may have several, by `;`.

        Raises:
            ValueError: one is none, there is none at all, or there is no such time zone.
        """
        found = tuple(part.strip() for text in texts for part in text.split(";") if part.strip())
        if not found:
            message = (
                "it must have one range at least, such as '22:00-06:00'; leave it out for always"
            )
            raise ValueError(message)
        return cls(found, find_time_zone(zone), tuple(map(_parse_range, found)))

    def __str__(self) -> str:
        return f"{'; '.join(self.texts)} ({self.zone.key})"

    def is_open(self, at: datetime) -> bool:
        """Whether this moment is within the hours. It must have a time zone, any."""
        local = _aware(at).astimezone(self.zone)
        seconds = local.hour * 3600 + local.minute * 60 + local.second + local.microsecond / 1e6
        today, yesterday = local.weekday(), (local.weekday() - 1) % 7
        return any(
            (today in each.days and each.start_seconds <= seconds < each.end_seconds)
            or (yesterday in each.days and seconds + _DAY_SECONDS < each.end_seconds)
            for each in self.ranges
        )

    def seconds_until_open(self, at: datetime) -> float:
        """Zero if it is open."""
        return self._seconds_until(at, is_open=True)

    def seconds_until_close(self, at: datetime) -> float:
        """Zero if it is not open; infinity if it never closes."""
        return self._seconds_until(at, is_open=False)

    def _seconds_until(self, at: datetime, *, is_open: bool) -> float:
        if self.is_open(at) == is_open:
            return 0.0
        now = at.astimezone(UTC)
        for moment in sorted(set(self._edges(now))):
            if moment > now and self.is_open(moment) == is_open:
                return (moment - now).total_seconds()
        return math.inf

    def _edges(self, now: datetime) -> Iterator[datetime]:
        """Every moment of the coming days at which it may open or close."""
        today = now.astimezone(self.zone).date()
        for day in (today + timedelta(days) for days in range(-1, _DAYS_AHEAD)):
            for each in self.ranges:
                if day.weekday() in each.days:
                    yield from self._moments(day, each.start_seconds)
                    yield from self._moments(day, each.end_seconds)

    def _moments(self, day: date, seconds: int) -> Iterator[datetime]:
        """When the clock on the wall shows this: once as a rule.

        If the clock is changed there, it shows it twice or not at all, and the change itself is an edge.
        """
        days, rest = divmod(seconds, _DAY_SECONDS)
        midnight = datetime.combine(day + timedelta(days), datetime.min.time(), self.zone)
        shown = midnight + timedelta(seconds=rest)
        early, late = sorted(shown.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
        yield early
        if late != early:
            yield late
            yield self._change_between(early, late)

    def _change_between(self, early: datetime, late: datetime) -> datetime:
        """The moment at which the clock is changed, to the second."""
        before = early - timedelta(seconds=1)
        offset = before.astimezone(self.zone).utcoffset()
        low, high = 0, round((late - before).total_seconds())
        while high - low > 1:
            middle = (low + high) // 2
            moment = (before + timedelta(seconds=middle)).astimezone(self.zone)
            low, high = (middle, high) if moment.utcoffset() == offset else (low, middle)
        return before + timedelta(seconds=high)


def _aware(at: datetime) -> datetime:
    if at.tzinfo is None:
        message = "a moment needs a time zone"
        raise ValueError(message)
    return at


def _parse_range(text: str) -> _Range:
    found = _RANGE.fullmatch(text)
    if found is None:
        message = (
            f"'{text[:64]}' must be a range such as '22:00-06:00', 'mon-fri 19:00-07:00' or"
            " 'sat,sun 00:00-24:00'"
        )
        raise ValueError(message)
    days, *numbers = found.groups()
    start, end = (_parse_time(text, *numbers[index : index + 2]) for index in (0, 2))
    if start == _DAY_SECONDS:
        message = f"'{text}' must begin before 24:00"
        raise ValueError(message)
    if start == end:
        message = f"'{text}' has no length; a whole day is 00:00-24:00"
        raise ValueError(message)
    return _Range(
        _EVERY_DAY if days is None else _parse_days(text, days),
        start,
        end if end > start else end + _DAY_SECONDS,
    )


def _parse_time(text: str, hours: str, minutes: str) -> int:
    seconds = int(hours) * 3600 + int(minutes) * 60
    if int(minutes) > 59 or seconds > _DAY_SECONDS:
        message = f"'{text}' has no time '{hours}:{minutes}' on a clock; there are 00:00 to 24:00"
        raise ValueError(message)
    return seconds


def _parse_days(text: str, days: str) -> frozenset[int]:
    found: set[int] = set()
    for part in days.lower().split(","):
        first, _, last = part.partition("-")
        for name in (first, last or first):
            if name not in _DAYS:
                message = f"'{text[:64]}' has no day '{name}'; there are {', '.join(_DAYS)}"
                raise ValueError(message)
        start, end = _DAYS.index(first), _DAYS.index(last or first)
        # From Friday to Monday is a range, too.
        found.update((start + step) % 7 for step in range((end - start) % 7 + 1))
    return frozenset(found)
