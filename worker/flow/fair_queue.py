"""Whose line goes next in a lane of this process.

Promises: urgent shards first, by deadline; else projects share by weight, batches of one project take
turns line by line, and within a batch the first shard goes before the second, for neighbours share what a
server's prefix cache holds. Whoever has nothing ready is passed over and gains no claim on later. Pure: no
clock, no chance, no I/O.
"""

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Protocol, TypeVar


class Turn(Protocol):
    """What decides when a source's turn is: a claimed shard is one."""

    @property
    def project_pk(self) -> int:
        """Whose it is."""

    @property
    def weight(self) -> float:
        """The project's."""

    @property
    def batch_pk(self) -> int:
        """Which batch's it is."""

    @property
    def no(self) -> int:
        """Its place in the batch."""

    @property
    def is_urgent(self) -> bool:
        """Whether it goes before all that are not."""

    @property
    def expires_at(self) -> datetime:
        """The batch's deadline."""


class Queued(Protocol):
    """Something whose lines wait for their turn."""

    @property
    def shard(self) -> Turn:
        """The same as long as it is in a queue."""

    @property
    def is_ready(self) -> bool:
        """Whether it has a line that could go at once."""


SourceT = TypeVar("SourceT", bound=Queued)


@dataclass(slots=True)
class _Project(Generic[SourceT]):
    stride: float
    """What one line costs it: the less, the more weight it has."""

    spent: float
    batches: "OrderedDict[int, list[SourceT]]" = field(default_factory=OrderedDict)
    """In the order of their turns, each with its sources in the order of their numbers."""

    def next(self) -> SourceT | None:
        for batch_pk, sources in self.batches.items():
            for source in sources:
                if source.is_ready:
                    self.batches.move_to_end(batch_pk)
                    return source
        return None


class FairQueue(Generic[SourceT]):
    """Sources, and which of them goes next. A pick costs as much as there are batches, at worst."""

    def __init__(self) -> None:
        self._sources: dict[SourceT, None] = {}
        self._urgent: list[SourceT] = []
        self._projects: dict[int, _Project[SourceT]] = {}
        # What the project had spent that went last, before it went: newcomers begin here.
        self._level = 0.0
        # What projects that have left had spent beyond that: coming back does not wipe it out.
        self._debts: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[SourceT]:
        return iter(self._sources)

    def add(self, source: SourceT) -> None:
        """Let a source take part. It is not there yet."""
        self._sources[source] = None
        shard = source.shard
        if shard.is_urgent:
            insort(self._urgent, source, key=_urgency)
            return
        project = self._projects.get(shard.project_pk)
        if project is None:
            self._debts = {pk: debt for pk, debt in self._debts.items() if debt > self._level}
            spent = self._debts.pop(shard.project_pk, self._level)
            project = self._projects[shard.project_pk] = _Project(1 / shard.weight, spent)
        project.stride = 1 / shard.weight
        insort(project.batches.setdefault(shard.batch_pk, []), source, key=_number)

    def remove(self, source: SourceT) -> None:
        """Let a source take part no longer.

        Raises:
            KeyError: it does not.
        """
        del self._sources[source]
        shard = source.shard
        if shard.is_urgent:
            self._urgent.remove(source)
            return
        project = self._projects[shard.project_pk]
        sources = project.batches[shard.batch_pk]
        sources.remove(source)
        if not sources:
            del project.batches[shard.batch_pk]
        if not project.batches:
            del self._projects[shard.project_pk]
            self._debts[shard.project_pk] = project.spent

    def next(self) -> SourceT | None:
        """The source whose line is to go now, which counts as gone; none if no source is ready."""
        if len(self._sources) == 1:
            # It is asked for every call: mostly one big batch runs, and a shard of it after the other.
            (source,) = self._sources
            return source if source.is_ready else None
        for source in self._urgent:
            if source.is_ready:
                return source
        if len(self._projects) == 1:
            (project,) = self._projects.values()
            return project.next()
        passed_over: list[_Project[SourceT]] = []
        for _, project in sorted(self._projects.items(), key=_account):
            found = project.next()
            if found is not None:
                self._level = project.spent
                for other in passed_over:
                    other.spent = self._level
                project.spent += project.stride
                return found
            passed_over.append(project)
        return None


def _urgency(source: Queued) -> tuple[datetime, int, int]:
    return source.shard.expires_at, source.shard.batch_pk, source.shard.no


def _number(source: Queued) -> int:
    return source.shard.no


def _account(item: tuple[int, _Project[SourceT]]) -> tuple[float, int]:
    project_pk, project = item
    return project.spent, project_pk
