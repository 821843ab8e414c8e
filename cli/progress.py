"""How a batch's progress is shown: a bar on a terminal, calm lines where there is none.

Promises: everything goes to standard error, so that standard output holds the result alone.
"""

import time
from types import TracebackType
from typing import Any, Protocol, Self

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from cli.console import is_terminal

_LINE_EVERY_SECONDS = 5.0
_WAITING = {
    "validating": "Checking the file",
    "finalizing": "Writing the results",
    "cancelling": "Cancelling",
}


class ShowsProgress(Protocol):
    """What a batch's run reports to."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def say(self, text: str) -> None:
        """Show a line of text."""

    def show_batch(self, batch: dict[str, Any]) -> None:
        """Show where the batch is."""


class Silence:
    """Shows nothing but what is said."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return

    def say(self, text: str) -> None:
        """Show a line of text."""
        typer.echo(text, err=True)

    def show_batch(self, batch: dict[str, Any]) -> None:
        """Show nothing."""


class Lines(Silence):
    """A line now and then, for logs and pipes."""

    def __init__(self, *, every_seconds: float = _LINE_EVERY_SECONDS) -> None:
        self._every_seconds = every_seconds
        self._status = ""
        self._shown_at = 0.0
        self._running_since = 0.0
        self._done_before = 0

    def show_batch(self, batch: dict[str, Any]) -> None:
        """Say each new status once, and the counts every few seconds."""
        status, now = str(batch["status"]), time.monotonic()
        total, completed, failed = counts(batch)
        done = completed + failed
        if status != self._status:
            self._status = status
            if status in _WAITING:
                self.say(f"{_WAITING[status]} …")
            elif status == "in_progress":
                self._running_since, self._done_before = now, done
                self._shown_at = now
        if status != "in_progress" or now - self._shown_at < self._every_seconds:
            return
        self._shown_at = now
        seconds = now - self._running_since
        rate = (done - self._done_before) / seconds if seconds else 0
        # The first few say nothing about the rest.
        knows = rate > 0 and done * 50 >= total
        left = f", about {(total - done) / rate:,.0f} s left" if knows else ""
        self.say(f"{done:,} of {total:,} done, {failed:,} failed, {rate:,.0f}/s{left}")


class Bar(Silence):
    """A live bar with counts, rate and time left."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
            speed_estimate_period=15,
            expand=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Show a line of text above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def show_batch(self, batch: dict[str, Any]) -> None:
        """Move the bar."""
        status = str(batch["status"])
        total, completed, failed = counts(batch)
        if self._task is None:
            self._task = self._progress.add_task(status, total=None, counts="")
        task = next(task for task in self._progress.tasks if task.id == self._task)
        rate = f", {task.speed:,.0f}/s" if task.speed and not task.finished else ""
        shown = f"{completed + failed:,} of {total:,}" if total else ""
        self._progress.update(
            self._task,
            description=_WAITING.get(status, status.replace("_", " ").capitalize()),
            total=total or None,
            completed=completed + failed,
            counts=shown + (f", {failed:,} failed" if failed else "") + (rate if total else ""),
        )


def choose_progress(*, wanted: bool) -> ShowsProgress:
    """A bar for a person, lines for a log, silence if that is the wish."""
    if not wanted:
        return Silence()
    return Bar() if is_terminal() else Lines()


def counts(batch: dict[str, Any]) -> tuple[int, int, int]:
    """Total, completed and failed; a server may leave any of them out."""
    found = batch.get("request_counts") or {}
    return (
        int(found.get("total") or 0),
        int(found.get("completed") or 0),
        int(found.get("failed") or 0),
    )
