"""How a batch's progress is shown: a bar on a terminal, calm lines where there is none.

Promises: everything goes to standard error, so that standard output holds the result alone; one bar
for each batch, with its name before it where there are several.
"""

import time
from types import TracebackType
from typing import Any, Protocol, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from cli.client.pace import Pace, Sight
from cli.console import is_terminal
from cli.tables import show_duration

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

    def show_batch(
        self, batch: dict[str, Any], progress: dict[str, Any] | None = None, name: str = ""
    ) -> None:
        """Show where the batch is; `progress` is what the server tells beside it, if it does."""


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

    def show_batch(
        self, batch: dict[str, Any], progress: dict[str, Any] | None = None, name: str = ""
    ) -> None:
        """Show nothing."""


class _Followed:
    """What is remembered of one batch between two looks."""

    def __init__(self) -> None:
        self.pace = Pace()
        self.shown = ""
        self.shown_at = 0.0
        self.task: TaskID | None = None


class _Follows(Silence):
    def __init__(self) -> None:
        self._followed: dict[str, _Followed] = {}

    def _see(
        self, batch: dict[str, Any], progress: dict[str, Any] | None
    ) -> tuple[_Followed, Sight]:
        followed = self._followed.setdefault(str(batch.get("id")), _Followed())
        return followed, followed.pace.see(batch, progress, now=time.monotonic())


class Lines(_Follows):
    """A line now and then, for logs and pipes."""

    def __init__(self, *, every_seconds: float = _LINE_EVERY_SECONDS) -> None:
        super().__init__()
        self._every_seconds = every_seconds

    def show_batch(
        self, batch: dict[str, Any], progress: dict[str, Any] | None = None, name: str = ""
    ) -> None:
        """Say each new state once, and the counts every few seconds."""
        followed, sight = self._see(batch, progress)
        now = time.monotonic()
        start = f"{name}: " if name else ""
        state = _state(sight)
        if state != followed.shown:
            followed.shown, followed.shown_at = state, now
            if sight.status in _WAITING or sight.is_paused:
                self.say(f"{start}{state} …")
            return
        if sight.status == "in_progress" and now - followed.shown_at >= self._every_seconds:
            followed.shown_at = now
            left = _left(sight)
            words = f"{sight.done:,} of {sight.total:,} done, {_details(sight, always_failed=True)}"
            self.say(f"{start}{words}{left and f', about {left} left'}")


class Bar(_Follows):
    """A live bar for each batch, with counts, rates and time left."""

    def __init__(self) -> None:
        super().__init__()
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[words]}", markup=False),
            console=Console(stderr=True),
            expand=True,
        )

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

    def show_batch(
        self, batch: dict[str, Any], progress: dict[str, Any] | None = None, name: str = ""
    ) -> None:
        """Move the bar."""
        followed, sight = self._see(batch, progress)
        if followed.task is None:
            followed.task = self._progress.add_task("", total=None, words="")
        left = _left(sight)
        words = [f"{sight.done:,}/{sight.total:,}", _details(sight), left and f"{left} left"]
        self._progress.update(
            followed.task,
            description=f"{name}  {_state(sight)}" if name else _state(sight),
            total=sight.total or None,
            completed=sight.done,
            words=", ".join(each for each in words if each) if sight.total else "",
        )


def _state(sight: Sight) -> str:
    if sight.is_paused and sight.status == "in_progress":
        return "Paused"
    return _WAITING.get(sight.status, sight.status.replace("_", " ").capitalize())


def _details(sight: Sight, *, always_failed: bool = False) -> str:
    """Failures, retries and rates, those that are known."""
    parts = []
    if sight.failed or always_failed:
        parts.append(f"{sight.failed:,} failed")
    if sight.retries:
        parts.append(f"{sight.retries:,} {'retry' if sight.retries == 1 else 'retries'}")
    if sight.lines_per_second:
        parts.append(f"{_rate(sight.lines_per_second)} lines/s")
    if sight.tokens_per_second:
        parts.append(f"{_rate(sight.tokens_per_second)} tokens/s")
    return ", ".join(parts)


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:,.2g}"


def _left(sight: Sight) -> str:
    return "" if sight.seconds_left is None else show_duration(sight.seconds_left)


def choose_progress(*, wanted: bool) -> ShowsProgress:
    """A bar for a person, lines for a log, silence if that is the wish."""
    if not wanted:
        return Silence()
    return Bar() if is_terminal() else Lines()
