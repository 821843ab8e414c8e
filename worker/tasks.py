"""The Celery tasks: what each bell is called, and whom it calls. All thought is in the stages.

Names are explicit, so that moving a function does not orphan messages.
"""

from celery import Celery

from worker.queue import FINALIZE_BATCH, RUN_SHARD, SWEEP, VALIDATE_BATCH
from worker.runtime import loop_thread
from worker.stages import finalize, run, sweep, validate


def validate_batch(batch_pk: int) -> None:
    """A batch waits to be validated."""
    loop = loop_thread()
    loop.run(validate.validate_batch(loop.runtime, batch_pk))


def run_shard() -> None:
    """Some shard may be runnable."""
    loop = loop_thread()
    loop.run(run.run_shards(loop.runtime))


def finalize_batch(batch_pk: int) -> None:
    """A batch may be ready to have its files written."""
    loop = loop_thread()
    loop.run(finalize.finalize_batch(loop.runtime, batch_pk))


def sweep_everything() -> None:
    """It is time to look everything over."""
    loop = loop_thread()
    loop.run(sweep.sweep(loop.runtime))


def register_tasks(app: Celery) -> None:
    """Teach the application which bell calls what."""
    for name, answer in {
        VALIDATE_BATCH: validate_batch,
        RUN_SHARD: run_shard,
        FINALIZE_BATCH: finalize_batch,
        SWEEP: sweep_everything,
    }.items():
        app.task(answer, name=name)
