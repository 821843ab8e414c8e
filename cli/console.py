"""How the command speaks: one sentence for a mistake, with what to do next.

A `CommandError` ends the command with its message and its exit status; it never shows a traceback.
Results go to standard output; everything said along the way goes to standard error.
"""

import sys
import threading
from collections.abc import Iterator
from enum import IntEnum
from typing import Self

import typer
from pydantic import ValidationError

_NAME_WIDTH = 8


class ExitStatus(IntEnum):
    """What the end of any command means for scripts; `docs/cli.md` has them as a table."""

    meaning: str

    OK = 0, "All is well. Of a batch: every request succeeded."
    FAILED = 1, "Something failed; the message says what, and what to do next."
    USAGE = 2, "The command line or a setting is wrong; nothing was done."
    SOME_FAILED = 3, "The batch completed, but some of its requests failed."
    BATCH_FAILED = (
        4,
        "The file fails its check (`run`, `watch`, `validate`, `estimate`); nothing was run.",
    )
    EXPIRED = 5, "The batch expired before all of its requests were run."
    CANCELLED = 6, "The batch was cancelled."
    INTERRUPTED = 130, "Stopped by Ctrl-C; a batch that was created goes on."

    def __new__(cls, number: int, meaning: str) -> Self:
        """Make a number that also says what it means."""
        status = int.__new__(cls, number)
        status._value_ = number
        status.meaning = meaning
        return status


class CommandError(Exception):
    """The command cannot go on; the message says why and what to do next."""

    def __init__(self, message: str, *, status: ExitStatus = ExitStatus.FAILED) -> None:
        super().__init__(message)
        self.status = status


class UsageError(CommandError):
    """Something given on the command line or in the environment is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=ExitStatus.USAGE)


class Terminal:
    """What `up` and its kin show. Lines of a child stay in its log file unless they matter."""

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose
        # A progress bar may be drawing from another thread.
        self._lock = threading.Lock()

    def say(self, text: str = "") -> None:
        """Tell the person something about the run itself."""
        self._write(text)

    def show_line(self, name: str, line: str) -> None:
        """Show one line of a child's output, with the child's name before it."""
        self._write(f"{name:<{_NAME_WIDTH}} | {line}")

    def show(self, text: str) -> None:
        """Print a result, to standard output."""
        self._write(text, is_result=True)

    def _write(self, text: str, *, is_result: bool = False) -> None:
        with self._lock:
            try:
                typer.echo(text, err=not is_result)
            except OSError:
                # The terminal is gone (closed window, broken pipe). The children's fate does not
                # depend on somebody reading; a hang-up arrives as a signal of its own.
                return


def explain_settings(error: ValidationError, *, prefix: str = "OVERNIGHT_") -> Iterator[str]:
    """One sentence for each setting that is missing or wrong, by its environment variable."""
    for problem in error.errors(include_url=False, include_input=False):
        reason = problem["msg"].removeprefix("Value error, ")
        reason = reason if reason.endswith((".", "?", ".)")) else f"{reason}."
        if not problem["loc"]:
            yield reason
            continue
        name = prefix + "_".join(str(part) for part in problem["loc"]).upper()
        yield f"{name} is not set." if problem["type"] == "missing" else f"{name}: {reason}"


def is_terminal() -> bool:
    """Whether somebody is watching: standard error is a terminal."""
    return sys.stderr.isatty()
