"""A case: one observation of a server from outside, that cites the fact of the contract it is about.

A case's number is that of its fact and a running one: `3.33.2` is the second case of fact 3.33.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.conformance.kit.subject import Subject

Check = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Case:
    """One observation; `run` raises `AssertionError` if the server answers otherwise."""

    number: str
    title: str
    facts: tuple[str, ...]
    check: Check
    arguments: Mapping[str, Any]

    def run(self, server: Subject) -> None:
        """Look.

        Raises:
            AssertionError: the server answers otherwise.
            NotApplicable: it cannot be seen at this server.
        """
        self.check(server, **self.arguments)


CASES: list[Case] = []
_counts: Counter[str] = Counter()


def case(
    fact: str, title: str, *, also: Sequence[str] = (), rows: Sequence[Mapping[str, Any]] = ({},)
) -> Callable[[Check], Check]:
    """Register a check as a case, or as one for each of the rows, which are its arguments."""

    def register(check: Check) -> Check:
        for row in rows:
            _counts[fact] += 1
            number = f"{fact}.{_counts[fact]}"
            CASES.append(Case(number, title.format(**row), (fact, *also), check, row))
        return check

    return register


def in_order() -> Iterator[Case]:
    """All cases, by number."""
    yield from sorted(CASES, key=lambda case: [int(part) for part in case.number.split(".")])
