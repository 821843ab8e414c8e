"""The simulated server in a thread of its own.

For synchronous tests, and for commands that need one beside them.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import uvloop

from cli.simulator.record import Call, Stats
from cli.simulator.server import SimulatedServer
from cli.simulator.settings import SimulatorSettings

JOIN_SECONDS = 10

T = TypeVar("T")


class ThreadedServer:
    """A `SimulatedServer` with a loop and a thread; every method may be called from any thread."""

    def __init__(self, settings: SimulatorSettings) -> None:
        """Start the thread; the server itself starts with `start`."""
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="simulated-server", daemon=True
        )
        self._thread.start()
        self._server = SimulatedServer(settings)

    @property
    def settings(self) -> SimulatorSettings:
        """The live settings; a change takes effect with the next call."""
        return self._server.settings

    @property
    def url(self) -> str:
        """The base URL to give to a client; it ends in `/v1`."""
        return self._server.url

    @property
    def origin(self) -> str:
        """Scheme, host and port: where `/stats` and `/health` are."""
        return self._server.origin

    def start(self) -> None:
        """Listen; after a `stop`, on the same port again."""
        self._run(self._server.start())

    def stop(self) -> None:
        """Stop listening and cut every connection. Counts are kept."""
        self._run(self._server.stop())

    def stats(self) -> Stats:
        """What has been counted so far."""
        return self._run(_now(self._server.stats))

    def reset_stats(self) -> Stats:
        """Count anew; calls in service and in the queue remain, and are counted when they end."""
        return self._run(_now(self._server.reset_stats))

    def calls(self) -> list[Call]:
        """The latest calls, oldest first; as many as `settings.remember` allows."""
        return self._run(_now(self._server.calls))

    def close(self) -> None:
        """Stop the server and end the thread."""
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(JOIN_SECONDS)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(JOIN_SECONDS)


@contextmanager
def simulated_server(
    settings: SimulatorSettings | None = None, **options: Any
) -> Iterator[ThreadedServer]:
    """A running server for the length of a `with` block.

    Options are fields of `SimulatorSettings`.
    """
    hosted = ThreadedServer(replace(settings or SimulatorSettings(), **options))
    try:
        hosted.start()
        yield hosted
    finally:
        hosted.close()


async def _now(read: Callable[[], T]) -> T:
    """Read on the loop's own thread, where nothing changes meanwhile."""
    return read()
