"""`overnight worker`: what makes batches move, as a run and a control process side by side.

Promises: either of the two is started again when it dies; SIGTERM stops both warmly, and they get
their drain time and a margin to do so; OVERNIGHT_METRICS_PORT is one port, for both.
"""

import asyncio
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import typer

from cli.console import Terminal
from cli.processes.start import HandedDown, read_settings, start_logging
from cli.processes.workers import Only, worker_program
from cli.program import child_environment
from cli.stopping import StopSignals
from cli.supervisor import Supervisor


def worker(
    only: Annotated[
        Only | None,
        typer.Option(
            help="Start one kind only: `run` sends lines to the model server,"
            " `control` validates, finalizes and sweeps. Both, without this."
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --only: shards worked on at a time (run) or processes (control)."
            " OVERNIGHT_SHARDS_PER_WORKER or OVERNIGHT_CONTROL_PROCESSES, without this.",
        ),
    ] = None,
    gate_fd: HandedDown = None,
) -> None:
    """Work on batches: call the model server, validate, finalize, sweep."""
    if only is None:
        if concurrency is not None:
            raise typer.BadParameter(
                "it needs --only run or --only control", param_hint="--concurrency"
            )
        with _served_metrics():
            asyncio.run(_run_both())
        return
    level = start_logging()
    with _served_metrics():
        status = _run_one(only, concurrency=concurrency, level=level, gate_fd=gate_fd)
    raise typer.Exit(status)


def _served_metrics() -> AbstractContextManager[int | None]:
    """Serve metrics inside the block, if a port is set for them."""
    if not os.environ.get("OVERNIGHT_METRICS_PORT"):
        return nullcontext()
    # Imported here and not above, for the reason that it gives.
    from cli.processes.metrics import served_metrics  # noqa: PLC0415

    return served_metrics()


def _run_one(only: Only, *, concurrency: int | None, level: int, gate_fd: int | None) -> int:
    # Imported here and not above: the process that only watches over both needs neither Celery nor
    # the workers' code, which take two seconds and 60 MB.
    from cli.processes.celery import run_celery_worker  # noqa: PLC0415
    from worker.app import app  # noqa: PLC0415
    from worker.settings import WorkerSettings  # noqa: PLC0415

    if only is Only.RUN and concurrency is not None:
        # (More than the setting allows are so many.)
        os.environ["OVERNIGHT_SHARDS_PER_WORKER"] = str(min(concurrency, 100))
    settings = read_settings(WorkerSettings)
    if only is Only.RUN:
        # A bell only wakes the dispatcher, which takes a moment.
        pool, processes = "threads", 1
    else:
        pool, processes = "prefork", concurrency or settings.control.control_processes
    return run_celery_worker(
        app,
        queue=only.value,
        pool=pool,
        concurrency=processes,
        level=level,
        gate_fd=gate_fd,
    )


async def _run_both() -> None:
    async with StopSignals() as signals, Supervisor(terminal=Terminal(verbose=True)) as supervisor:
        signals.hurries(supervisor.hurry)
        for only in Only:
            supervisor.start(worker_program(only, name=only.value, env=child_environment()))
        # Until a signal or a child that does not stay up cancels this.
        await asyncio.Event().wait()
