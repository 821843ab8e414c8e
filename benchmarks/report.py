"""Figures, what is asked of them, and the Markdown that shows them. Pure.

Whether a target is reached is computed from the figure, here and nowhere else. Of several runs the
median counts, and the worst where that is what is asked about; the table shows how far they lay apart.
"""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, Literal, NamedTuple, Self

REACHED, MISSED = "reached", "**not reached**"


class Target(NamedTuple):
    """What is asked of a figure."""

    sign: Literal["≥", "≤", "<"]
    limit: float

    def is_met(self, value: float) -> bool:
        """Whether a figure reaches it."""
        if self.sign == "≥":
            return value >= self.limit
        return value <= self.limit if self.sign == "≤" else value < self.limit


def at_least(limit: float) -> Target:
    """So much or more."""
    return Target("≥", limit)


def at_most(limit: float) -> Target:
    """So much or less."""
    return Target("≤", limit)


def below(limit: float) -> Target:
    """Less."""
    return Target("<", limit)


class Measure(NamedTuple):
    """One figure, how to show it, and what is asked of it."""

    name: str
    value: float | None
    """None: it could not be measured, and `reason` says why."""
    unit: str = ""
    digits: int = 1
    target: Target | None = None
    column: str = ""
    """Measures that share a name and differ in this make one row of a table."""
    is_worst: bool = False
    """Whether of several runs the largest value counts and not the median."""
    reason: str = ""


class Result(NamedTuple):
    """A measure over all its runs."""

    measure: Measure
    values: tuple[float, ...]

    @property
    def value(self) -> float | None:
        """The figure that counts."""
        if not self.values:
            return None
        return max(self.values) if self.measure.is_worst else median(self.values)

    @property
    def is_reached(self) -> bool | None:
        """None: nothing is asked of it, or it was not measured."""
        if self.measure.target is None or self.value is None:
            return None
        return self.measure.target.is_met(self.value)

    def as_json(self) -> dict[str, Any]:
        """To keep it."""
        return {"measure": list(self.measure), "values": list(self.values)}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Self:
        """As it was kept."""
        measure = Measure(*kept["measure"])
        target = Target(*measure.target) if measure.target else None
        return cls(measure._replace(target=target), tuple(kept["values"]))


def summarize(runs: Sequence[Sequence[Measure]]) -> list[Result]:
    """One result for each measure that appeared in any of the runs, in order of appearance."""
    found: dict[tuple[str, str], list[Measure]] = {}
    for run in runs:
        for measure in run:
            found.setdefault((measure.name, measure.column), []).append(measure)
    results = []
    for same in found.values():
        measured = [each for each in same if each.value is not None]
        values = tuple(each.value for each in measured if each.value is not None)
        results.append(Result((measured or same)[0], values))
    return results


def render_subject(title: str, about: str, results: Sequence[Result]) -> str:
    """A heading, a paragraph, and the tables."""
    parts = [f"## {title}", about]
    if listed := [each for each in results if not each.measure.column]:
        parts.append(_render_list(listed))
    tables: dict[tuple[str, ...], list[Result]] = {}
    crossed = [each for each in results if each.measure.column]
    for name in dict.fromkeys(each.measure.name for each in crossed):
        row = [each for each in crossed if each.measure.name == name]
        # Rows with the same columns make a table.
        tables.setdefault(tuple(each.measure.column for each in row), []).extend(row)
    parts += [_render_cross(table) for table in tables.values()]
    return "\n\n".join(parts)


def render_score(subjects: Iterable[tuple[str, Sequence[Result]]]) -> str:
    """How many targets are reached, and which are not."""
    judged = [
        (title, each)
        for title, results in subjects
        for each in results
        if each.measure.target is not None
    ]
    missed = [
        f"- {title}: {_named(each)}: {_show(each)} ({_asked(each)} was asked for)"
        for title, each in judged
        if not each.is_reached
    ]
    reached = len(judged) - len(missed)
    score = f"{reached} of the {len(judged)} targets below are reached"
    return "\n".join([f"{score}.", *([] if not missed else ["", "Not reached:", "", *missed])])


def _render_list(results: Sequence[Result]) -> str:
    rows = ["| measure | result | runs | asked for | |", "|---|---:|---:|---:|---|"]
    for each in results:
        mark = {True: REACHED, False: MISSED, None: ""}[each.is_reached]
        rows.append(
            f"| {each.measure.name} | {_show(each)} | {_spread(each)} | {_asked(each)} | {mark} |"
        )
    return "\n".join(rows)


def _render_cross(results: Sequence[Result]) -> str:
    cells: dict[str, list[str]] = {}
    for each in results:
        cells.setdefault(each.measure.name, []).append(_cell(each))
    columns = list(dict.fromkeys(each.measure.column for each in results))
    rows = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    rows += [f"| {name} | {' | '.join(row)} |" for name, row in cells.items()]
    return "\n".join(rows)


def _cell(each: Result) -> str:
    if each.measure.target is None:
        return _show(each)
    mark = {True: REACHED, False: MISSED, None: "?"}[each.is_reached]
    return f"{_show(each)} ({_asked(each)}: {mark})"


def _named(each: Result) -> str:
    return ", ".join(part for part in (each.measure.name, each.measure.column) if part)


def _show(each: Result) -> str:
    if each.value is None:
        return f"not measured: {each.measure.reason or 'no reason was given'}"
    return _number(each.value, each.measure)


def _spread(each: Result) -> str:
    if len(each.values) < 2:
        return ""
    digits = each.measure.digits
    return f"{min(each.values):,.{digits}f} to {max(each.values):,.{digits}f}"


def _asked(each: Result) -> str:
    target = each.measure.target
    if target is None:
        return ""
    return f"{target.sign} {f'{target.limit:,g} {each.measure.unit}'.strip()}"


def _number(value: float, measure: Measure) -> str:
    return f"{value:,.{measure.digits}f} {measure.unit}".strip()
