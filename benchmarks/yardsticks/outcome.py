"""What running an input through anything has cost."""

from typing import NamedTuple

from benchmarks.report import Measure


class Outcome(NamedTuple):
    """The same three figures for whatever is compared."""

    name: str
    lines_per_second: float
    """From create to completed, or from start to end."""
    cpu_ms_a_line: float
    """Of all its processes, the model server's not among them."""
    peak_mb: float
    """Of its largest process."""

    def measures(self) -> list[Measure]:
        """A row of a table."""
        return [
            Measure(self.name, self.lines_per_second, "", 0, column="lines/s"),
            Measure(self.name, self.cpu_ms_a_line, "", 2, column="CPU ms a line"),
            Measure(self.name, self.peak_mb, "", 0, column="peak MB", is_worst=True),
        ]
