"""Ctrl-C and SIGTERM, for commands that have something to put away before they end.

Promises: the first signal cancels the block, which then winds down; a second one says "hurry". The
block's end is then no error: the program ends as it was asked to. A signal that was ignored when
the command was started (`nohup`, `&` in a script) stays ignored.
"""

import asyncio
import signal
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A Ctrl-C reaches every process of the terminal, and some wrappers (make, npm) pass it on once more.
_SAME_WISH_SECONDS = 0.5


class StopSignals:
    """Cancels its `async with` block on the first signal; swallows that cancellation at its end."""

    def __init__(self, on_first: Callable[[], None] | None = None) -> None:
        self.received: signal.Signals | None = None
        self._on_first = on_first
        self._hurry: asyncio.Event | None = None
        self._watched: list[signal.Signals] = []
        self._received_at = 0.0
        self._task: asyncio.Task[object] | None = None

    def hurries(self, event: asyncio.Event) -> None:
        """The event to set when a second signal comes."""
        self._hurry = event

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        self._watched = [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        for number in self._watched:
            loop.add_signal_handler(number, self._receive, number)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        loop = asyncio.get_running_loop()
        for number in self._watched:
            loop.remove_signal_handler(number)
        if self.received and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            return True
        return False

    def _receive(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = number, now
            if self._on_first:
                self._on_first()
            if self._task:
                self._task.cancel()
        elif now - self._received_at > _SAME_WISH_SECONDS and self._hurry:
            self._hurry.set()
