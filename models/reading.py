r"""Cutting a stream of bytes into the lines of a batch file. Pure.

Promises: `\r\n` ends a line like `\n`, the last line may lack its end, a byte-order mark is skipped;
blank lines are counted but not given; never more than one line and one piece are in memory.
"""

from collections.abc import Iterator
from typing import NamedTuple

from models.errors import InputUnreadable

_BOM = b"\xef\xbb\xbf"


class PlacedLine(NamedTuple):
    r"""A line of a file: its number (from 1), where it begins, its bytes without the `\n` at the end."""

    line_no: int
    offset: int
    raw: bytes


class LineTooLong(InputUnreadable):
    """A line is longer than the reader's limit; it carries the line's number."""

    def __init__(self, line_no: int) -> None:
        super().__init__(f"line {line_no} is too long")
        self.line_no = line_no


class LineReader:
    """Takes a file's bytes in pieces of any size; gives its lines, some at a time."""

    def __init__(self, *, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._rest = bytearray()
        self._offset, self._line_no = 0, 1

    def feed(self, piece: bytes) -> Iterator[list[PlacedLine]]:
        """Take more bytes; yield the lines that became whole, if there are any.

        Raises:
            LineTooLong: a line has more than `max_line_bytes` bytes. Those before it were given.
        """
        if self._offset == 0 and not self._rest and piece.startswith(_BOM):
            self._offset, piece = len(_BOM), piece[len(_BOM) :]
        if b"\n" not in piece:
            self._rest += piece
            if len(self._rest) > self._max_line_bytes:
                raise LineTooLong(self._line_no)
            return
        block = bytes(self._rest) + piece if self._rest else piece
        *whole, tail = block.split(b"\n")
        lines: list[PlacedLine] = []
        for raw in whole:
            if len(raw) > self._max_line_bytes:
                if lines:
                    yield lines
                raise LineTooLong(self._line_no)
            if raw and not raw.isspace():
                lines.append(PlacedLine(self._line_no, self._offset, raw))
            self._offset += len(raw) + 1
            self._line_no += 1
        self._rest = bytearray(tail)
        if lines:
            yield lines

    def end(self) -> Iterator[list[PlacedLine]]:
        """No more bytes will come: yield the last line, if it lacked its end.

        Raises:
            LineTooLong: it has more than `max_line_bytes` bytes.
        """
        if self._rest and not self._rest.isspace():
            if len(self._rest) > self._max_line_bytes:
                raise LineTooLong(self._line_no)
            yield [PlacedLine(self._line_no, self._offset, bytes(self._rest))]
            self._rest.clear()
