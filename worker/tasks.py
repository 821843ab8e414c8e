"""The Celery tasks: what each bell is called, and whom it calls. All thought is in the stages.

Names are explicit, so that moving a function does not orphan messages. An error ends here, in one line
of the log: the stages leave everything such that the sweep can ring again.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec

from celery import Celery

from models.faults import describe
from models.metrics import STAGE_DURATION, STAGE_FAILURES
from worker.dispatch import look_for_shards
from worker.queue import FINALIZE_BATCH, NOTIFY, RUN_SHARD, SWEEP, VALIDATE_BATCH
from worker.runtime import Runtime, loop_thread
from worker.stages import finalize, notify, sweep, validate

log = logging.getLogger(__name__)

Args = ParamSpec("Args")


def register_tasks(app: Celery) -> None:
    """Teach the application which bell calls which stage."""
    app.task(_answer(validate.validate_batch), name=VALIDATE_BATCH)
    app.task(_answer(look_for_shards), name=RUN_SHARD)
    app.task(_answer(finalize.finalize_batch), name=FINALIZE_BATCH)
    app.task(_answer(notify.notify), name=NOTIFY)
    app.task(_answer(sweep.sweep), name=SWEEP)


def _answer(
    stage: Callable[Concatenate[Runtime, Args], Awaitable[None]],
) -> Callable[Args, None]:
    """A task that runs a stage on the process's loop and waits for it."""

    def answer(*args: Args.args, **kwargs: Args.kwargs) -> None:
        async def run_stage(runtime: Runtime) -> None:
            await stage(runtime, *args, **kwargs)

        name, began = stage.__name__, time.monotonic()
        try:
            loop = loop_thread()
            loop.run(run_stage(loop.runtime))
        except Exception as error:  # noqa: BLE001  # the edge of the task
            STAGE_FAILURES.labels(name).inc()
            log.error("%s: %s; the sweep will ring again", name, describe(error))  # noqa: TRY400
        STAGE_DURATION.labels(name).observe(time.monotonic() - began)

    return answer
