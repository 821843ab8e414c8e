"""The life cycle: its table, its drawing, and what the statuses promise."""

import itertools
import re

import pytest

from models import lifecycle
from models.batch import Batch
from models.lifecycle import ALLOWED, FINAL, BatchStatus, sources_of, timestamp_for

EDGES = {
    ("validating", "in_progress"),
    ("validating", "failed"),
    ("validating", "cancelling"),
    ("in_progress", "finalizing"),
    ("in_progress", "cancelling"),
    ("finalizing", "completed"),
    ("finalizing", "expired"),
    ("cancelling", "cancelled"),
}


@pytest.mark.parametrize(("source", "target"), list(itertools.product(BatchStatus, repeat=2)))
def test_only_these_moves_exist(source: BatchStatus, target: BatchStatus) -> None:
    allowed = (source.value, target.value) in EDGES
    assert (target in ALLOWED[source]) is allowed
    assert (source in sources_of(target)) is allowed


def test_every_status_has_a_row() -> None:
    assert set(ALLOWED) == set(BatchStatus)


def test_final_means_no_way_on() -> None:
    assert {"failed", "completed", "expired", "cancelled"} == FINAL
    assert not any(status in FINAL for status in BatchStatus if ALLOWED[status])


def test_every_status_is_reached_from_the_first() -> None:
    reached = {BatchStatus.VALIDATING}
    for _ in BatchStatus:
        reached |= {target for source in reached for target in ALLOWED[source]}
    assert reached == set(BatchStatus)


@pytest.mark.parametrize("status", list(BatchStatus))
def test_the_timestamp_of_a_status_is_a_column(status: BatchStatus) -> None:
    assert timestamp_for(status) in Batch.__table__.columns


def test_the_drawing_is_the_table() -> None:
    drawing = (lifecycle.__doc__ or "").split("\n\n")[1]
    assert _arrows(drawing) == EDGES


def test_each_arrow_has_a_letter_of_its_own() -> None:
    drawing = (lifecycle.__doc__ or "").split("\n\n")[1]
    letters = re.findall(r"(?<!\w)[a-z](?!\w)", drawing)
    assert sorted(letters) == list("abcdefghijklmnopqrstuvwxyz"[: len(EDGES)])


_UP, _DOWN, _LEFT, _RIGHT = (-1, 0), (1, 0), (0, -1), (0, 1)
_HEADS = {"▶": _RIGHT, "▼": _DOWN, "▲": _UP}
# Where a line goes on that is followed against its direction, by the corner and the way into it.
_TURNS = {("└", _LEFT): _UP, ("┘", _DOWN): _LEFT, ("┐", _UP): _LEFT, ("┌", _LEFT): _DOWN}


def _arrows(drawing: str) -> set[tuple[str, str]]:
    """Read a drawing made of words, lines and arrow heads."""
    rows = drawing.split("\n")

    def at(row: int, column: int) -> str:
        inside = 0 <= row < len(rows) and 0 <= column < len(rows[row])
        return rows[row][column] if inside else " "

    def word_at(row: int, column: int) -> str:
        words = re.finditer(r"\w{2,}", rows[row]) if 0 <= row < len(rows) else []
        return next((m[0] for m in words if m.start() <= column < m.end()), "")

    def word_from(row: int, column: int, step: tuple[int, int]) -> str:
        # Horizontally there is a blank between a word and its line.
        return word_at(row, column) or word_at(row + step[0], column + step[1])

    found = set()
    for row, column in itertools.product(range(len(rows)), range(max(map(len, rows)))):
        if (ahead := _HEADS.get(at(row, column))) is None:
            continue
        target = word_from(row + ahead[0], column + ahead[1], ahead)
        step = (-ahead[0], -ahead[1])
        y, x = row + step[0], column + step[1]
        while not (source := word_at(y, x)) and at(y, x) != " ":
            step = _TURNS.get((at(y, x), step), step)
            y, x = y + step[0], x + step[1]
        found.add((source or word_from(y, x, step), target))
    return found
