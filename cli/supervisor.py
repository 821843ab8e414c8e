"""Keep a handful of programs running, and stop them in order.

Promises: a program that dies is started again, later and later; one that keeps failing at its start
ends the whole with a `ChildGaveUp` that quotes its last words, one that refuses its settings with
what it says about them; one that is killed (for its memory, say) never does. Leaving the `async with`
block stops every program, stage by stage, each within its own grace period, and leaves no process behind.
"""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from cli.childlog import ChildLog, LogFile
from cli.console import CommandError, ExitStatus, Terminal, UsageError
from cli.program import Program, spawn

# A child that lived this long was well; its next death counts as the first again.
_SETTLED_SECONDS = 10.0
_DEATHS_BEFORE_GIVING_UP = 5
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 10.0
# After the hurry signal; then SIGKILL to the whole process group.
_HURRY_SECONDS = 5.0
# A grandchild may keep the pipe open after the child's end.
_LAST_WORDS_SECONDS = 0.5


class ChildGaveUp(CommandError):
    """A program does not stay alive; its last lines say why."""

    def __init__(self, name: str, ending: str, last_words: list[str], log: Path | None) -> None:
        quoted = "".join(f"\n    {line}" for line in last_words)
        where = f"\nIts whole log: {log}" if log else ""
        super().__init__(f"{name} does not stay up ({ending}). Its last words:{quoted}{where}")


class Child:
    """One program, and the process that runs it now."""

    def __init__(self, program: Program, log: ChildLog) -> None:
        self.program = program
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The process that runs the program now, if any does."""
        return self._process.pid if self._process else None

    async def run_once(self) -> int:
        """Start the process and wait for its end. Returns its status, negative for a signal."""
        process = self._process = spawn(self.program)
        self._ended.clear()
        self.log.begin()
        output = asyncio.create_task(self._read_output(process.stdout))
        try:
            await self._ended.wait()
        finally:
            await asyncio.wait([output], timeout=_LAST_WORDS_SECONDS)
            output.cancel()
            self.log.flush()
        return process.wait()

    async def keep_running(self, say: Callable[[str], None], log_path: Path | None) -> None:
        """Run it again and again until it is stopped; give up when it fails at its start."""
        deaths = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            status = await self.run_once()
            if self._stopping.is_set():
                return
            name, ending = self.program.name, _describe(status)
            settled = time.monotonic() - started >= _SETTLED_SECONDS
            deaths = 1 if settled else deaths + 1
            if status == ExitStatus.USAGE:
                # It will not go away by itself, and the child has said it in a sentence.
                raise UsageError("\n".join(self.log.recent()).removeprefix("overnight: "))
            # Killed, it may be well the next time: a worker finds out which line it is that it dies of.
            if deaths >= _DEATHS_BEFORE_GIVING_UP and status >= 0:
                raise ChildGaveUp(name, ending, self.log.recent(), log_path)
            pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(deaths - 1, 10), _LONGEST_PAUSE_SECONDS)
            say(f"{name} died ({ending}); starting it again.")
            try:
                await asyncio.wait_for(self._stopping.wait(), pause)
            except TimeoutError:
                continue

    async def stop(self, hurry: asyncio.Event) -> None:
        """Ask the process to end and wait for it; insist when its time, or patience, is over."""
        self._stopping.set()
        self.log.hush()
        if self._process is None or self._ended.is_set():
            return
        program = self.program
        if not hurry.is_set():
            self._signal(program.stop_signal)
            await _first_of(self._ended, hurry, seconds=program.stop_seconds)
        if not self._ended.is_set() and program.hurry_signal != signal.SIGKILL:
            self._signal(program.hurry_signal)
            await _first_of(self._ended, seconds=_HURRY_SECONDS)
        if not self._ended.is_set():
            self._kill_group()
            await self._ended.wait()

    def reap(self) -> None:
        """Some child of this process ended; see whether it was this one."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        # Looked at first without reaping: until then the process group's number cannot be reused.
        if not _has_ended(process):
            return
        self._kill_group()
        process.wait()
        self._ended.set()

    def _kill_group(self) -> None:
        """Leave nothing of it behind: its own children share its process group."""
        if self._process:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                # Gone already (macOS says "not permitted" for a group of zombies).
                return

    def _signal(self, number: signal.Signals) -> None:
        if self._process and not self._ended.is_set():
            self._process.send_signal(number)

    async def _read_output(self, pipe: IO[bytes] | None) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            while data := await reader.read(65536):
                self.log.feed(data)
        finally:
            transport.close()


class Supervisor:
    """Runs programs for as long as its `async with` block lasts.

    When a child gives up, the block is cancelled, everything is stopped, and `ChildGaveUp` is
    raised from the block. Set `hurry` to cut every grace period short.
    """

    def __init__(self, *, terminal: Terminal, logs: Path | None = None) -> None:
        self.hurry = asyncio.Event()
        self._terminal = terminal
        self._logs = logs
        self._children: list[Child] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._owner: asyncio.Task[object] | None = None
        self._failure: BaseException | None = None
        self._stopping = False

    async def __aenter__(self) -> Self:
        self._owner = asyncio.current_task()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop_whatever_comes()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        if self._failure is not None:
            if kind is asyncio.CancelledError and self._owner is not None:
                self._owner.uncancel()
            raise self._failure

    def start(self, program: Program) -> Child:
        """Start a program and keep it running."""
        child = self._add(program)
        task = asyncio.create_task(child.keep_running(self._terminal.say, self._log_path(program)))
        task.add_done_callback(self._notice_failure)
        self._tasks.append(task)
        return child

    async def run_to_end(self, program: Program) -> None:
        """Run a program that ends by itself; raise with its last words when it fails."""
        child = self._add(program)
        status = await child.run_once()
        child.log.close()
        self._children.remove(child)
        if status != 0:
            raise ChildGaveUp(
                program.name, _describe(status), child.log.recent(), self._log_path(program)
            )

    async def stop(self) -> None:
        """Stop every program, lowest stage first, and wait until all are gone."""
        self._stopping = True
        for stage in sorted({child.program.stage for child in self._children}):
            await asyncio.gather(
                *(
                    child.stop(self.hurry)
                    for child in self._children
                    if child.program.stage == stage
                )
            )
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for child in self._children:
            child.log.close()
        self._children.clear()

    async def _stop_whatever_comes(self) -> None:
        """Stop to the end; being cancelled meanwhile means only: hurry."""
        stopping = asyncio.create_task(self.stop())
        while not stopping.done():
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError:
                self.hurry.set()
        stopping.result()

    def _add(self, program: Program) -> Child:
        path = self._log_path(program)
        log = ChildLog(
            program.name,
            terminal=self._terminal,
            file=LogFile(path) if path else None,
            shows_warnings=program.shows_warnings,
        )
        child = Child(program, log)
        self._children.append(child)
        return child

    def _log_path(self, program: Program) -> Path | None:
        return self._logs / f"{program.name}.log" if self._logs else None

    def _reap(self) -> None:
        for child in self._children:
            child.reap()

    def _notice_failure(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or task.exception() is None or self._stopping:
            return
        if self._failure is None and self._owner is not None:
            self._failure = task.exception()
            self._owner.cancel()


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


async def _first_of(*events: asyncio.Event, seconds: float) -> None:
    """Wait until any of the events is set, but not longer than `seconds`."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
