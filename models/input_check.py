"""Judging a whole batch file: its lines one by one, and what holds for all of them together. Pure.

Promises: faults are listed in line order, at most so many; a limit of the whole file is told alone,
for whoever has too many lines has to cut the file first. The worker's validation and
`overnight validate` both stand on this, so they say the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from models.lines import LineChecker, LineError


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLimits:
    """What a batch file may hold."""

    lines: int
    embedding_inputs: int
    line_bytes: int
    errors: int
    """So many faults are listed."""


FindModelFault = Callable[[str | None], LineError | None]
"""What keeps lines of this model (null: they name none) from every model server, if anything does."""


class InputCheck:
    """Takes the lines of one file in order, and tells what is wrong with it."""

    def __init__(
        self, checker: LineChecker, limits: InputLimits, find_model_fault: FindModelFault
    ) -> None:
        self.total = 0
        self._checker = checker
        self._limits = limits
        self._find_model_fault = find_model_fault
        self._faults: list[LineError] = []
        self._first_good: list[int] = []

    def take(self, line_no: int, raw: bytes) -> LineError | None:
        """Judge the next line; what is wrong with it, if anything is."""
        self.total += 1
        fault = self._checker.check(raw, line_no) or self._model_fault(line_no)
        if fault is not None:
            self._faults.append(fault)
        elif self._checker.model is None and len(self._first_good) < self._limits.errors:
            self._first_good.append(line_no)
        return fault

    def take_too_long(self, line_no: int) -> None:
        """A line is longer than the limit; none after it can be read."""
        self._faults.append(_too_long(line_no, self._limits.line_bytes))

    @property
    def is_settled(self) -> bool:
        """Whether no further line can change what is wrong."""
        return self._limit_fault() is not None or len(self._faults) >= self._limits.errors

    def errors(self) -> list[LineError]:
        """What is wrong with the lines so far; empty if they can run."""
        over = self._limit_fault()
        if over is not None:
            return [over]
        if self._faults:
            return self._faults[: self._limits.errors]
        return self._faults_without_model() if self.total else [_EMPTY]

    def _limit_fault(self) -> LineError | None:
        if self.total > self._limits.lines:
            return _too_many_lines(self._limits.lines)
        if self._checker.embedding_inputs > self._limits.embedding_inputs:
            return _too_many_inputs(self._limits.embedding_inputs)
        return None

    def _model_fault(self, line_no: int) -> LineError | None:
        """A server is looked for with the model of the batch: each line names it, or none does."""
        if self._checker.model is None:
            return None
        found = self._find_model_fault(self._checker.model)
        return None if found is None else replace(found, line=line_no)

    def _faults_without_model(self) -> list[LineError]:
        """The faults of lines none of which names a model, if there is no server for such."""
        if self._checker.model is not None:
            return []
        found = self._find_model_fault(None)
        return [] if found is None else [replace(found, line=each) for each in self._first_good]


_EMPTY = LineError(
    "empty_file",
    "The input file is empty. Please ensure that the batch contains at least one request.",
)


def _too_many_lines(limit: int) -> LineError:
    message = (
        f"The input file contains too many requests. A batch can have at most {limit:,} requests."
    )
    return LineError("too_many_tasks", message)


def _too_many_inputs(limit: int) -> LineError:
    message = (
        f"The input file contains too many embedding inputs. A batch can have at most {limit:,}"
        " embedding inputs over all its requests."
    )
    return LineError("too_many_tasks", message)


def _too_long(line_no: int, limit: int) -> LineError:
    message = f"This line is too long. A request can have at most {limit:,} bytes."
    return LineError("line_too_long", message, None, line_no)
