"""What a scenario is run with, and what it is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import Measure


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where a scenario may write, and how much of its full size it is to run."""

    folder: Path
    """Empty at the start, removed afterwards."""
    scale: float = 1.0
    """Below 1 to try things out; the page is written at 1 only."""
    workers: int = 2
    """Run workers, where a scenario does not say otherwise."""

    def lines(self, full: int, *, least: int = 20) -> int:
        """So many lines at full size."""
        return max(least, round(full * self.scale))

    def seconds(self, full: float) -> float:
        """So long at full size."""
        return max(3.0, full * self.scale)


class Scenario(NamedTuple):
    """A subject of the page."""

    title: str
    about: str
    """What is measured and how, in one paragraph of Markdown."""
    measure: Callable[[Plan], list[Measure]]
