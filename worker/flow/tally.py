"""What a run process counts of each model's calls, for `worker.metrics` to tell. Pure.

At every call there is time for a few additions and no more: no lock, no label, no function of a library.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Protocol

from models.metrics import SLOW_SECONDS
from models.upstreams import Upstreams


class _Usage(Protocol):
    @property
    def input_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...


class _Recorded(Protocol):
    @property
    def succeeded(self) -> bool: ...
    @property
    def usage(self) -> _Usage: ...


class CallTally:
    """Counts since the process began."""

    __slots__ = (
        "buckets",
        "cached_tokens",
        "ends",
        "failed",
        "input_tokens",
        "output_tokens",
        "retries",
        "seconds",
        "succeeded",
    )

    def __init__(self) -> None:
        self.ends: dict[int | str, int] = {}
        """Calls by how they ended: the answer's status, or the code of why there is none."""

        self.buckets = [0] * (len(SLOW_SECONDS) + 1)
        """Calls that succeeded, by how long they took: up to each of `SLOW_SECONDS`, and longer."""

        self.seconds = 0.0
        self.retries = 0
        self.succeeded = self.failed = 0
        self.input_tokens = self.cached_tokens = self.output_tokens = 0

    def ended(self, how: int | str) -> None:
        """A call has ended."""
        try:
            self.ends[how] += 1
        except KeyError:
            self.ends[how] = 1

    def took(self, seconds: float) -> None:
        """A call that succeeded took so long."""
        self.buckets[bisect_left(SLOW_SECONDS, seconds)] += 1
        self.seconds += seconds

    def recorded(self, rows: Sequence[_Recorded]) -> None:
        """Results have become durable."""
        succeeded = sum(row.succeeded for row in rows)
        self.succeeded += succeeded
        self.failed += len(rows) - succeeded
        for row in rows:
            usage = row.usage
            self.input_tokens += usage.input_tokens
            self.cached_tokens += usage.cached_tokens
            self.output_tokens += usage.output_tokens


class Tallies:
    """One tally for each model that the settings name at a server, and one for each server's others.

    Lines may name any model where a server takes every one: such a name is a client's word, and there may
    be any number of them. So they share one tally, under no name.
    """

    def __init__(self, upstreams: Upstreams | None = None) -> None:
        routes = {} if upstreams is None else upstreams.routes
        self._named = {(each.server.name, each.model or name) for name, each in routes.items()}
        self._tallies: dict[tuple[str, str], CallTally] = {}

    def label_of(self, server: str, model: str) -> tuple[str, str]:
        """The server's name, and the model's if the settings have it."""
        return (server, model if (server, model) in self._named else "")

    def of(self, server: str, model: str) -> CallTally:
        """Where the calls of this model at this server are counted."""
        return self._tallies.setdefault(self.label_of(server, model), CallTally())

    @property
    def by_label(self) -> Mapping[tuple[str, str], CallTally]:
        """All of them, by server and model."""
        return self._tallies
