"""Where a child's output goes: all of it into its log file, what matters to the terminal.

Promises: a log file and its one predecessor never exceed twice `MAX_BYTES`; a full disk costs log
lines, never the child; a complaint that comes again and again is shown once a minute.
"""

import re
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO

from cli.console import Terminal

MAX_BYTES = 8 * 1024 * 1024
_MAX_LINE_BYTES = 64 * 1024
_KEPT_LINES = 12
_MOST_COMPLAINTS = 1000

# The first word of this kind in a line is its level; the text after it may say anything.
_LEVEL = re.compile(
    r"\b(DEBUG|INFO|LOG|NOTICE|WARNING|ERROR|CRITICAL|FATAL|PANIC)\b(?=[:/ \]\"])",
)
# What makes two lines of the same complaint different: times, process and task ids, counts.
_VARIABLE = re.compile(r"[0-9a-f]*[0-9][0-9a-f-]*")
_REPEAT_SECONDS = 60.0
_IMPORTANT = frozenset({"WARNING", "ERROR", "CRITICAL", "FATAL", "PANIC"})


class LogFile:
    """An append-only file that moves aside to `NAME.log.1` when it is full."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None

    def write(self, line: bytes) -> None:
        """Append one line; a disk that cannot take it is not the writer's trouble."""
        try:
            file = self._open()
            if file.tell() + len(line) > self._max_bytes:
                self.close()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                file = self._open()
            file.write(line + b"\n")
        except OSError:
            self.close()

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _open(self) -> BinaryIO:
        if self._file is None:
            # Unbuffered: the last words before a crash are the ones that matter.
            self._file = self._path.open("ab", buffering=0)
        return self._file


class ChildLog:
    """Cuts one child's output into lines and sends each where it belongs."""

    def __init__(
        self, name: str, *, terminal: Terminal, file: LogFile | None, shows_warnings: bool = True
    ) -> None:
        self._name = name
        self._terminal = terminal
        self._file = file
        self._shows_warnings = shows_warnings
        self._rest = b""
        self._recent: deque[str] = deque(maxlen=_KEPT_LINES)
        # Complaints, and when each was last shown.
        self._shown_at: dict[str, float] = {}

    def feed(self, data: bytes) -> None:
        """Take what the child wrote, in pieces of any size."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._rest) > _MAX_LINE_BYTES:
            self.flush()

    def flush(self) -> None:
        """The child ended, or never ends its line: take what there is as a line."""
        if self._rest:
            line, self._rest = self._rest, b""
            self._take(line)

    def begin(self) -> None:
        """A process starts: what an earlier one said last is no longer recent."""
        self._recent.clear()

    def recent(self) -> list[str]:
        """The last few lines of this process, for saying why it died."""
        return list(self._recent)

    def hush(self) -> None:
        """From now on the terminal stays calm: what a child says while it is stopped is no news."""
        self._shows_warnings = False

    def close(self) -> None:
        """Write the rest and close the file."""
        self.flush()
        if self._file is not None:
            self._file.close()

    def _take(self, line: bytes) -> None:
        line = line.rstrip(b"\r")
        if self._file is not None:
            self._file.write(line)
        text = line.decode(errors="replace")
        self._recent.append(text)
        level = _LEVEL.search(text[:120])
        # What follows without a level of its own, such as a traceback, is for the log file.
        matters = self._shows_warnings and level is not None and level[1] in _IMPORTANT
        if self._terminal.verbose or (matters and self._is_news(text)):
            self._terminal.show_line(self._name, text)

    def _is_news(self, text: str) -> bool:
        now = time.monotonic()
        complaint = _VARIABLE.sub("", text)
        if now - self._shown_at.get(complaint, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
            return False
        if len(self._shown_at) > _MOST_COMPLAINTS:
            self._shown_at.clear()
        self._shown_at[complaint] = now
        return True
