"""The Celery tasks: what each bell is called, and whom it calls. All thought is in the stages.

Names are explicit, so that moving a function does not orphan messages. An error ends here, in one line
of the log: the stages leave everything such that the sweep can ring again.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec

from celery import Celery

from models.faults import describe
from worker.queue import FINALIZE_BATCH, NOTIFY, RUN_SHARD, SWEEP, VALIDATE_BATCH
from worker.runtime import Runtime, loop_thread
from worker.stages import finalize, notify, run, sweep, validate

log = logging.getLogger(__name__)

Args = ParamSpec("Args")


def register_tasks(app: Celery) -> None:
    """Teach the application which bell calls which stage."""
    app.task(_answer(validate.validate_batch), name=VALIDATE_BATCH)
    app.task(_answer(run.run_shards), name=RUN_SHARD)
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

        try:
            loop = loop_thread()
            loop.run(run_stage(loop.runtime))
        except Exception as error:  # noqa: BLE001  # the edge of the task
            log.error("%s: %s; the sweep will ring again", stage.__name__, describe(error))  # noqa: TRY400

    return answer
