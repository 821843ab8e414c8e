"""The completion windows that a batch may ask for: words, ranges of durations, or any duration.

Promises: what nobody can read, what is shorter than 10 seconds or longer than 365 days is refused at
start, with a sentence.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta

from api.grammar import listed
from models.lines import MAX_ECHO

ANY = "any"
_SHORTEST, _LONGEST = "10s", "365d"
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhd])", re.ASCII)


def parse_duration(text: str) -> timedelta:
    """Read `30s`, `15m`, `24h` or `7d`.

    Raises:
        ValueError: it is something else.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        message = f"'{text}' is not a duration such as 30s, 15m, 24h or 7d"
        raise ValueError(message)
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _parse_window(text: str) -> timedelta:
    window = parse_duration(text)
    if window < parse_duration(_SHORTEST):
        message = f"'{text}' is too short for a completion window: the shortest is {_SHORTEST}"
        raise ValueError(message)
    if window > parse_duration(_LONGEST):
        message = f"'{text}' is too long for a completion window: the longest is {_LONGEST}"
        raise ValueError(message)
    return window


class Windows(Mapping[str, timedelta]):
    """The windows by the word for each; it knows also the words that lie in one of its ranges.

    `24h,7d` allows two words, `24h,10s-30d` those and every duration from ten seconds to thirty days,
    `any` every duration from the shortest to the longest that there can be.
    """

    def __init__(self, words: list[str]) -> None:
        """Read them.

        Raises:
            ValueError: there is none, or one cannot be.
        """
        self._words: dict[str, timedelta] = {}
        self._ranges: dict[tuple[str, str], tuple[timedelta, timedelta]] = {}
        for word in words:
            low, is_range, high = f"{_SHORTEST}-{_LONGEST}".partition("-")
            if word != ANY:
                low, is_range, high = (part.strip() for part in word.partition("-"))
            if not is_range:
                self._words[word] = _parse_window(word)
            elif (shortest := _parse_window(low)) <= (longest := _parse_window(high)):
                self._ranges[low, high] = shortest, longest
            else:
                message = f"'{word}' is no range: {low} is longer than {high}"
                raise ValueError(message)
        if not words:
            message = "name at least one window, such as 24h"
            raise ValueError(message)

    def __getitem__(self, word: str) -> timedelta:
        """How long this window is; a `KeyError` if a batch may not ask for it."""
        if word in self._words:
            return self._words[word]
        if _DURATION.fullmatch(word):
            window = parse_duration(word)
            if any(low <= window <= high for low, high in self._ranges.values()):
                return window
        raise KeyError(word)

    def __iter__(self) -> Iterator[str]:
        """The words that are allowed by themselves."""
        return iter(self._words)

    def __len__(self) -> int:
        """How many words are allowed by themselves."""
        return len(self._words)

    def refusal_of(self, word: str) -> str:
        """The wording for a window that is not allowed."""
        ranges = [f"any duration from '{low}' to '{high}'" for low, high in self._ranges]
        allowed = [listed(list(self))] * bool(self._words) + ranges
        return f"Invalid value: '{word[:MAX_ECHO]}'. Supported values are: {' and '.join(allowed)}."
