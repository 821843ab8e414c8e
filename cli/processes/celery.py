"""The Celery processes behind `overnight worker --only …` and `overnight beat`.

Run in this very process, by Celery's own classes, so that signals need no go-between: SIGTERM is
Celery's warm shutdown. Apart from `worker.py` because importing Celery takes a second.
"""

import os
import secrets
import socket
import warnings
from typing import Any

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import worker_process_init

from cli.processes.start import wait_at_gate
from cli.program import bind_to_parent


def run_celery_worker(
    app: Celery, *, queue: str, pool: str, concurrency: int, level: int, gate_fd: int | None
) -> int:
    """Work on one queue until told to stop. Returns the exit status."""
    # A killed worker's pool must not live on without it.
    worker_process_init.connect(_bind_pool_process)
    _let_root_be()
    worker: Any = app.Worker(
        # Unique, also when many containers share one host name.
        hostname=f"{queue}@{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}",
        queues=[queue],
        pool_cls=pool,
        concurrency=concurrency,
        loglevel=level,
        quiet=True,
        no_color=True,
        # Talk among workers that nobody here listens to.
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    wait_at_gate(gate_fd)
    worker.start()
    return int(worker.exitcode or 0)


def run_celery_beat(app: Celery, *, level: int) -> None:
    """Ring the sweep every few seconds until told to stop. The schedule is kept in memory only."""
    _let_root_be()
    beat: Any = app.Beat(loglevel=level, quiet=True, no_color=True)
    beat.run()


def _bind_pool_process(**_: object) -> None:
    bind_to_parent()


def _let_root_be() -> None:
    # Celery's warning is about pickles in messages; ours are JSON, and hold a number at most.
    warnings.simplefilter("ignore", SecurityWarning)
