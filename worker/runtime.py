"""One per process: the event loop in its own thread, and what lives on it.

A Celery task, in whatever thread or child process it runs, submits a coroutine here and waits. One
loop for the life of the process, because the database pool and the HTTP connections belong to it.

Promises: started on first use, so that it is right after a fork; `drain` asks everything to end and
cancels nothing.
"""

import asyncio
import gc
import os
import secrets
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

import uvloop

from models.chunk_cache import ChunkCache
from models.database import Database
from models.lines import Endpoint
from models.metrics_folder import named_folder
from models.receiver import Receiver
from models.settings import WebhookSettings
from models.tracing import start_tracing, stop_tracing
from models.upstreams import Upstreams
from worker.flow.exchange import Exchange
from worker.outbox import Outbox
from worker.queue import Doorbell
from worker.retry import Neighbours
from worker.router import Router
from worker.settings import (
    ControlSettings,
    NotifySettings,
    RunSettings,
    ValidateSettings,
    WorkerSettings,
)

if TYPE_CHECKING:
    from worker.dispatch import Dispatcher

Answer = TypeVar("Answer")


@dataclass(slots=True)
class Runtime:
    """What every stage is given."""

    owner: str
    """The name under which this process holds leases; new with every start."""

    database: Database
    doorbell: Doorbell
    router: Router
    validate_settings: ValidateSettings
    run_settings: RunSettings
    control_settings: ControlSettings
    neighbours: dict[tuple[Endpoint, str | None], Neighbours] = field(
        default_factory=lambda: defaultdict(Neighbours)
    )
    """By endpoint and model: behind one address, one model may be down and another well."""

    webhook_settings: WebhookSettings = field(default_factory=WebhookSettings)
    notify_settings: NotifySettings = field(default_factory=NotifySettings)
    receiver: Receiver = field(init=False)
    outbox: Outbox = field(default_factory=Outbox)
    exchange: Exchange | None = None
    """Where processes agree on how much each may ask of a model server; null for a process alone."""

    dispatcher: "Dispatcher | None" = field(init=False, default=None)
    """Of a run process: made on first use, by `worker.dispatch`."""

    chunk_cache: ChunkCache = field(default_factory=ChunkCache)
    """For the readers of scattered lines: `read_places`."""

    draining: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.receiver = Receiver(self.webhook_settings)

    @classmethod
    def from_environment(cls) -> Self:
        """The runtime of this process's settings. Opens no connection."""
        settings = WorkerSettings()
        upstreams = settings.upstream.upstreams()
        owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        return cls(
            owner=owner,
            database=Database.connect(settings.database, role="worker"),
            doorbell=Doorbell(settings.broker.redis_url.get_secret_value()),
            router=Router.connect(upstreams),
            exchange=Exchange(settings.broker.redis_url.get_secret_value(), owner),
            validate_settings=settings.validate,
            run_settings=settings.run,
            control_settings=settings.control,
            webhook_settings=settings.webhook,
            notify_settings=settings.notify,
            neighbours=NeighboursByModel(settings.run, upstreams),
        )

    def clock(self) -> float:
        """Monotonic seconds, for measuring how long something has lasted."""
        return asyncio.get_running_loop().time()

    async def ring(self, bell: Callable[..., Answer], *args: int | str) -> Answer:
        """Use the doorbell, which blocks, without holding up the loop."""
        return await asyncio.to_thread(bell, *args)

    async def aclose(self) -> None:
        """Let the calls and webhooks in flight end, and close every connection."""
        self.draining.set()
        if self.dispatcher is not None:
            await self.dispatcher.aclose()
        await self.outbox.drain(seconds=self.webhook_settings.webhook_timeout_seconds)
        await self.router.aclose()
        await self.database.dispose()
        self.doorbell.close()


class NeighboursByModel(dict[tuple[Endpoint, str | None], Neighbours]):
    """Evidence that stays fresh for as long as a line may take to use up its tries by timing out."""

    def __init__(self, run: RunSettings, upstreams: Upstreams) -> None:
        super().__init__()
        self._run = run
        self._upstreams = upstreams

    def __missing__(self, key: tuple[Endpoint, str | None]) -> Neighbours:
        timeout_seconds = self._upstreams.call_timeout_seconds(key[1])
        recent_seconds = max(600.0, (self._run.line_max_tries + 1) * timeout_seconds)
        self[key] = Neighbours(recent_seconds=recent_seconds)
        return self[key]


class LoopThread:
    """An event loop in a thread of its own, and the runtime on it."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
        self._thread.start()
        start_tracing()
        try:
            self.runtime = self.run(_make_runtime())
        except BaseException:
            self._end()
            raise
        self._telling = self._tell_metrics()
        self._standing = self._tell_standing()
        _collect_garbage_seldom()

    def run(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        """Run a coroutine on the loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def drain(self) -> None:
        """Ask everything that runs here to come to its end. Safe in a signal handler's thread."""
        self._loop.call_soon_threadsafe(self.runtime.draining.set)

    def stop(self) -> None:
        """Close the connections and end the loop."""
        self.run(self.runtime.aclose())
        self._standing.cancel()
        if self._telling is not None:
            self._telling.cancel()
        stop_tracing()
        self._end()

    def _tell_metrics(self) -> "Future[None] | None":
        folder = named_folder()
        if folder is None:
            return None
        # Imported here: it needs the lanes' code, which needs this module.
        from worker.metrics import keep_telling  # noqa: PLC0415

        return asyncio.run_coroutine_threadsafe(keep_telling(self.runtime, folder), self._loop)

    def _tell_standing(self) -> "Future[None]":
        # For the same reason.
        from worker.standing import keep_standing  # noqa: PLC0415

        return asyncio.run_coroutine_threadsafe(keep_standing(self.runtime), self._loop)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)


async def _make_runtime() -> Runtime:
    return Runtime.from_environment()


def _collect_garbage_seldom() -> None:
    """A call makes hundreds of short-lived objects and no cycles: looking for some took 6 % of the time.

    What was made by starting up stays, and need not be looked at again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


_starting = threading.Lock()
_started: dict[int, LoopThread] = {}
"""By process id: a child that was forked from a process with a loop needs one of its own."""

_is_draining = threading.Event()


def loop_thread() -> LoopThread:
    """The loop of this process, started on first use."""
    with _starting:
        if os.getpid() not in _started:
            _started[os.getpid()] = LoopThread()
        loop = _started[os.getpid()]
    # Asked after it was put where `drain_process` finds it, so that one of the two sees the other.
    if _is_draining.is_set():
        loop.drain()
    return loop


def drain_process() -> None:
    """Ask everything that runs in this process, now or later, to come to its end."""
    _is_draining.set()
    loop = _started.get(os.getpid())
    if loop is not None:
        loop.drain()


def stop_process() -> None:
    """Close what has been opened in this process."""
    loop = _started.pop(os.getpid(), None)
    if loop is not None:
        loop.stop()
