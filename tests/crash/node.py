"""All of Overnight in one small process: API, every stage and the sweep, without a broker.

For tests that start many and let them die. The code of API and workers is the real one; only the doorbell
is a stand-in, which rings in its own process and forgets: losing bells is what it may do.
"""

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from api.app import create_app
from api.protocol import HttpProtocol
from api.settings import ApiSettings
from models.database import Database
from models.settings import DatabaseSettings, UpstreamSettings, WebhookSettings
from worker.dispatch import look_for_shards
from worker.queue import Doorbell
from worker.router import Router
from worker.runtime import Runtime
from worker.settings import ControlSettings, NotifySettings, RunSettings, ValidateSettings
from worker.stages import notify
from worker.stages.finalize import finalize_batch
from worker.stages.sweep import sweep
from worker.stages.validate import validate_batch

KEY = "sk-node-0123456789abcdefghij"
_REPOSITORY = Path(__file__).resolve().parents[2]
_SWEEP_SECONDS = 0.2
# Shorter than the settings allow, because a test waits for each lease that a death leaves behind.
_LEASE_SECONDS = 1.0


class Nodes:
    """Nodes on one port and one database, as many as asked for: one that dies is replaced."""

    def __init__(self, count: int, *, database_url: str, upstream_url: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._arguments = (database_url, upstream_url, self._listener)
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1/"
        self.killed = 0
        self._processes = [self._start() for _ in range(count)]

    def replace_the_dead(self) -> None:
        """Start another for each that was killed; one that ended otherwise is a fault."""
        for place, process in enumerate(self._processes):
            if not process.is_alive():
                assert process.exitcode == -signal.SIGKILL
                process.close()
                self.killed += 1
                self._processes[place] = self._start()

    def close(self) -> None:
        """Kill them all."""
        for process in self._processes:
            process.kill()
            process.join()
            process.close()
        self._listener.close()

    def _start(self) -> BaseProcess:
        process = multiprocessing.get_context("forkserver").Process(
            target=_run_node, args=self._arguments, daemon=True
        )
        process.start()
        return process


@contextmanager
def armed_by(failpoint_file: Path) -> Iterator[None]:
    """Let every node that this process starts from now on heed a file of failpoints.

    They are forked from a process that has read all code already; it is started here.
    """
    multiprocessing.set_forkserver_preload(["__main__", __name__])
    changed = {"OVERNIGHT_FAILPOINT": f"@{failpoint_file}", "PYTHONPATH": str(_REPOSITORY)}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # not in typeshed


class _OwnBell(Doorbell):
    """Rings in this process only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self.runtime: Runtime

    def ring_validate(self, batch_pk: int) -> None:
        self._answer(lambda: validate_batch(self.runtime, batch_pk))

    def ring_run(self, times: int = 1) -> None:
        del times
        self._answer(lambda: look_for_shards(self.runtime))

    def ring_finalize(self, batch_pk: int) -> None:
        self._answer(lambda: finalize_batch(self.runtime, batch_pk))

    def ring_notify(self) -> None:
        self._answer(lambda: notify.notify(self.runtime))

    def waiting_bells(self, queue: str) -> int | None:
        del queue
        return 0

    def note_sweep(self) -> None:
        """Nobody asks for it."""

    def close(self) -> None:
        """Nothing is open."""

    def _answer(self, stage: Callable[[], Coroutine[Any, Any, None]]) -> None:
        def start() -> None:
            task = self._loop.create_task(stage())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(start)


def _run_node(database_url: str, upstream_url: str, listener: socket.socket) -> None:
    uvloop.run(_serve(database_url, upstream_url, listener))


async def _serve(database_url: str, upstream_url: str, listener: socket.socket) -> None:
    bell = _OwnBell(asyncio.get_running_loop())
    database = DatabaseSettings.model_validate({"database_url": database_url})
    upstream = UpstreamSettings.model_validate(
        {"upstream_url": upstream_url, "upstream_metrics": "off", "call_timeout_seconds": 10}
    )
    webhooks = WebhookSettings(webhook_allow_private=True, webhook_timeout_seconds=5)
    bell.runtime = _runtime(bell, database, upstream, webhooks)
    app = create_app(
        ApiSettings.model_validate({"api_key": KEY}),
        database=database,
        upstream=upstream,
        webhooks=webhooks,
        bell=bell,
    )
    sweeping = asyncio.create_task(_keep_sweeping(bell.runtime))
    sweeping.add_done_callback(lambda task: sys.exit(f"no sweep any more: {task}"))
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=75,
    )
    await uvicorn.Server(config).serve([listener])


def _runtime(
    bell: Doorbell,
    database: DatabaseSettings,
    upstream: UpstreamSettings,
    webhooks: WebhookSettings,
) -> Runtime:
    run = RunSettings(
        max_in_flight=2,
        record_seconds=0.05,
        retry_base_seconds=0.01,
        retry_cap_seconds=0.05,
        cancel_grace_seconds=0.2,
    )
    run.lease_seconds = _LEASE_SECONDS
    notify._LEASE_MARGIN_SECONDS = _LEASE_SECONDS - webhooks.webhook_timeout_seconds
    return Runtime(
        owner=f"node-{os.getpid()}",
        database=Database.connect(database, role="worker"),
        doorbell=bell,
        router=Router.connect(upstream.upstreams()),
        validate_settings=ValidateSettings(shard_lines=5),
        run_settings=run,
        control_settings=ControlSettings(upload_stall_seconds=2),
        webhook_settings=webhooks,
        notify_settings=NotifySettings(webhook_first_wait_seconds=0.1),
    )


async def _keep_sweeping(runtime: Runtime) -> None:
    while True:
        await sweep(runtime)
        await asyncio.sleep(_SWEEP_SECONDS)
