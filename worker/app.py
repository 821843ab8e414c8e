"""The Celery application as `celery -A worker.app:app` finds it: tasks, beat, signals, logs."""

import logging
from typing import Any

from celery import bootsteps
from celery.concurrency import thread
from celery.signals import (
    setup_logging,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from celery.worker.consumer.consumer import CONNECTION_ERROR

from models.logline import log_to_standard_error
from models.settings import BrokerSettings
from worker.queue import SWEEP, make_celery
from worker.runtime import drain_process, loop_thread, stop_process
from worker.settings import ControlSettings
from worker.tasks import register_tasks

app = make_celery(BrokerSettings().redis_url.get_secret_value())
register_tasks(app)

app.conf.beat_schedule = {
    SWEEP: {"task": SWEEP, "schedule": ControlSettings().sweep_seconds},
}
# It keeps no file: the schedule is in the code, and there is nothing to remember between starts.
app.conf.beat_scheduler = "worker.beat:SweepScheduler"


class LookOften(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Have Celery's loop look around every tenth of a second.

    A thread of the pool that becomes free does not wake it, and it would fetch no bell for up to
    ten seconds (`Hub.fire_timers` of kombu 5.7).
    """

    requires = ("celery.worker.components:Hub",)

    def start(self, worker: Any) -> None:  # Celery's own
        """Called once, with the worker."""
        if worker.hub is not None:
            worker.hub.call_repeatedly(0.1, lambda: None)


app.steps["worker"].add(LookOften)


@setup_logging.connect  # type: ignore[untyped-decorator]
def _set_up_logging(loglevel: int | str | None = None, **_: Any) -> None:  # Celery's own
    log_to_standard_error(
        loglevel or logging.INFO, "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    # One line for every bell answered says nothing; what the stages did, they say themselves.
    for name in ("celery.worker.strategy", "celery.app.trace", "celery.beat"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.getEffectiveLevel(), logging.WARNING))
    logging.getLogger("celery.worker.consumer.consumer").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Celery reports every try to connect, in three lines; the first one of an outage is enough."""
    return not (record.msg == CONNECTION_ERROR and "(1/" not in record.getMessage())


@worker_ready.connect  # type: ignore[untyped-decorator]
def _start_loop(sender: Any, **_: Any) -> None:
    """Threads pool: start the loop now, and not when the first shard is waiting for it."""
    if isinstance(sender.pool, thread.TaskPool):
        loop_thread()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _drain(**_: Any) -> None:
    """Threads pool: the shards at work hear of it at once, and hand themselves back."""
    drain_process()


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]
@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _stop(**_: Any) -> None:
    stop_process()
