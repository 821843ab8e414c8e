"""A file of requests judged as the server would, on this side.

Promises: the rules, the words and their order are the server's: the same code reads and judges the
lines (`models.reading`, `models.input_check`), and looks at an upload's first line.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from api.services.first_line import FirstLine
from cli.client.hints import hint_for
from cli.client.source import open_source
from models.errors import FileTooLarge, NotJsonLines
from models.input_check import FindModelFault, InputCheck, InputLimits
from models.lines import Endpoint, LineChecker, LineError
from models.reading import LineReader, LineTooLong, PlacedLine

_PIECE_BYTES = 256 * 1024
_LINES_SEARCHED = 100


class Fault(NamedTuple):
    """What is wrong, and what to do about it."""

    error: LineError
    hint: str | None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the check of a file found."""

    endpoint: Endpoint
    model: str | None
    lines: int
    size_bytes: int
    prompt_tokens: int
    """By the server's approximation: one for every four bytes of a body."""

    faults: list[Fault]
    upload_refusal: str | None
    """Why the server would not even take the file, if so."""

    is_cut: bool
    """Whether reading stopped before the end of the file, because enough is wrong."""

    @property
    def is_good(self) -> bool:
        """Whether a batch of this file would run."""
        return not self.faults and self.upload_refusal is None


def judge(
    source: Path,
    *,
    endpoint: Endpoint | None,
    limits: InputLimits,
    max_file_bytes: int,
    find_model_fault: FindModelFault = lambda _: None,
) -> Judged:
    """Check a whole file. An endpoint that is not named is that of its first good line."""
    size = source.stat().st_size
    checker = LineChecker(endpoint or first_endpoint(source))
    check = InputCheck(checker, limits, find_model_fault)
    hints: dict[int | None, str | None] = {}

    def take(lines: list[PlacedLine]) -> None:
        for line_no, _, raw in lines:
            fault = check.take(line_no, raw)
            if fault is not None and len(hints) < limits.errors:
                hints[line_no] = hint_for(fault, raw)

    first_line, reader = FirstLine(), LineReader(max_line_bytes=limits.line_bytes)
    is_cut = False
    try:
        with open_source(source) as file:
            while piece := file.read(_PIECE_BYTES):
                first_line.feed(piece)
                for lines in reader.feed(piece):
                    take(lines)
                if check.is_settled:
                    is_cut = True
                    break
            else:
                first_line.end()
                for lines in reader.end():
                    take(lines)
    except LineTooLong as error:
        check.take_too_long(error.line_no)
        is_cut = True
    return Judged(
        endpoint=checker.endpoint,
        model=checker.model,
        lines=check.total,
        size_bytes=size,
        prompt_tokens=checker.prompt_tokens,
        faults=[
            Fault(each, hints.get(each.line) or hint_for(each, None)) for each in check.errors()
        ],
        upload_refusal=_upload_refusal(size, max_file_bytes, first_line),
        is_cut=is_cut,
    )


def _upload_refusal(size: int, max_file_bytes: int, first_line: FirstLine) -> str | None:
    if size > max_file_bytes:
        return (
            f"{FileTooLarge(max_file_bytes)} It has {size:,} bytes and may have {max_file_bytes:,}."
        )
    return str(NotJsonLines()) if first_line.is_json_object is False else None


def first_endpoint(source: Path) -> Endpoint:
    """The endpoint of the first line that names one, not far into the file."""
    with open_source(source) as file:
        for _ in range(_LINES_SEARCHED):
            try:
                return Endpoint(json.loads(file.readline(_PIECE_BYTES))["url"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    return Endpoint.CHAT_COMPLETIONS
