"""Stage ∞: look over everything, make right what was late or lost, and take away what has expired.

Promises: every step is idempotent and bounded, so that it may run twice at once or not at all for a
while; nothing depends on a bell having arrived, because this rings again for whatever is runnable.
"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Row, delete, exists, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from models.batch import Batch
from models.database import is_away
from models.failpoints import Failpoint, pass_failpoint
from models.faults import describe
from models.file import File, FileChunk, FileStatus
from models.idempotency import IdempotencyKey
from models.lifecycle import FINAL, BatchStatus, ShardState
from models.queries import advance
from models.shard import Shard
from models.storage import MAX_REMOVED_CHUNKS
from worker.lease import advance_if_all_done, rest_after_deaths
from worker.outbox import forget_ended, is_any_due
from worker.queue import CONTROL_QUEUE, RUN_QUEUE, RUN_WINDOW
from worker.runtime import Runtime
from worker.stages.uploads import sweep_uploads

log = logging.getLogger(__name__)

_AT_ONCE = 100
_FILES_AT_ONCE = 20
_ROWS_AT_ONCE = 5000
_SWEEPS = 5
"""As many of the waiting bells may be for the sweep itself, when it is slow."""

_REMEMBERED = timedelta(days=1)
_WAITING = (BatchStatus.VALIDATING, BatchStatus.FINALIZING, BatchStatus.CANCELLING)


async def sweep(runtime: Runtime) -> None:
    """One look at everything. A step that fails keeps none of the others from their turn."""
    for step in (
        _expire,
        _advance_finished,
        _rest_after_deaths,
        _ring_for_batches,
        _ring_for_shards,
        _ring_for_webhooks,
        _forget_deliveries,
        sweep_uploads,
        _purge,
        _forget_keys,
    ):
        try:
            await step(runtime)
        except Exception as error:  # the next sweep tries it again
            if is_away(error):
                # The others would only fail as well, each after its time-out.
                raise
            log.error("%s: %s", step.__name__.lstrip("_"), describe(error))  # noqa: TRY400
    await runtime.ring(runtime.doorbell.note_sweep)


async def _expire(runtime: Runtime) -> None:
    """Close the window of batches that are past it: no shard of theirs can be claimed any more."""
    async with runtime.database.begin() as session:
        overdue = await session.scalars(
            select(Batch.pk)
            .where(Batch.status == BatchStatus.IN_PROGRESS, Batch.expires_at <= func.now())
            .limit(_AT_ONCE)
        )
        for batch_pk in overdue:
            await advance(session, batch_pk, BatchStatus.FINALIZING)
            pass_failpoint(Failpoint.SWEEP_EXPIRING)


async def _advance_finished(runtime: Runtime) -> None:
    """Move on batches whose last shard was closed by a worker that died before saying so."""
    # From the shards that are done, for an index has them: of many batches that wait, few have any.
    begun = select(Shard.batch_pk).where(Shard.state == ShardState.DONE)
    has_open_shard = exists().where(Shard.batch_pk == Batch.pk, Shard.state != ShardState.DONE)
    async with runtime.database.begin() as session:
        finished = list(
            await session.scalars(
                select(Batch.pk)
                .where(
                    Batch.status == BatchStatus.IN_PROGRESS, Batch.pk.in_(begun), ~has_open_shard
                )
                .limit(_AT_ONCE)
            )
        )
    for batch_pk in finished:
        await advance_if_all_done(runtime.database, batch_pk)


async def _rest_after_deaths(runtime: Runtime) -> None:
    """Pause before a batch is finished again over which one process after the other died."""
    for batch_id, tries in await rest_after_deaths(runtime.database):
        pass_failpoint(Failpoint.SWEEP_RESTED)
        log.error("batch %s: a worker died while finishing it, at try %s", batch_id, tries)


async def _ring_for_batches(runtime: Runtime) -> None:
    """Ring for batches that wait for a stage nobody is at. A batch at work holds a live lease."""
    async with runtime.database.begin() as session:
        found = [row for status in _WAITING for row in await _waiting_batches(session, status)]
    waiting = [(row.pk, row.status) for row in sorted(found, key=lambda row: row.expires_at)]
    del waiting[_AT_ONCE:]
    if not waiting:
        return
    doorbell = runtime.doorbell
    waiting_bells = await runtime.ring(doorbell.waiting_bells, CONTROL_QUEUE)
    if waiting_bells is None or waiting_bells >= len(waiting) + _SWEEPS:
        # Nobody has had time for them yet, or nobody can be rung.
        return
    pass_failpoint(Failpoint.SWEEP_BEFORE_BELL)
    for batch_pk, status in waiting:
        bell = (
            doorbell.ring_validate if status == BatchStatus.VALIDATING else doorbell.ring_finalize
        )
        await runtime.ring(bell, batch_pk)


async def _waiting_batches(
    session: AsyncSession, status: BatchStatus
) -> Sequence[Row[int, str, datetime]]:
    """The first ones of a status, by deadline; of one status, so that an index has them in that order."""
    is_held = exists().where(
        Shard.batch_pk == Batch.pk,
        Shard.state == ShardState.RUNNING,
        Shard.lease_until > func.now(),
    )
    waiting = (
        select(Batch.pk, Batch.status, Batch.expires_at)
        .where(
            Batch.status == status,
            or_(Batch.lease_until.is_(None), Batch.lease_until <= func.now()),
        )
        .order_by(Batch.expires_at, Batch.pk)
        .limit(_AT_ONCE)
    )
    if status != BatchStatus.VALIDATING:
        waiting = waiting.where(~is_held)
    return (await session.execute(waiting)).all()


# In the order of an index, so that no table is read through for them, whatever else waits.
_RUNNABLE = text(
    """
    SELECT count(*) FROM (
        SELECT FROM batches CROSS JOIN LATERAL (
            SELECT FROM shards
            WHERE shards.batch_pk = batches.pk AND shards.state <> 'done'
              AND (shards.state = 'queued' OR shards.lease_until <= now())
            LIMIT :window
        ) AS runnable
        WHERE batches.status = 'in_progress' AND batches.paused_at IS NULL
        ORDER BY batches.expires_at
        LIMIT :window
    ) AS runnable
    """
)


async def _ring_for_shards(runtime: Runtime) -> None:
    """See to it that as many bells wait as there are runnable shards, up to the window."""
    async with runtime.database.begin() as session:
        runnable = await session.scalar(_RUNNABLE, {"window": RUN_WINDOW}) or 0
    if not runnable:
        return
    waiting = await runtime.ring(runtime.doorbell.waiting_bells, RUN_QUEUE)
    if waiting is not None and waiting < runnable:
        await runtime.ring(runtime.doorbell.ring_run, runnable - waiting)


async def _ring_for_webhooks(runtime: Runtime) -> None:
    """Ring for webhooks whose time has come: the first one, or another after a failure."""
    if await is_any_due(runtime.database):
        waiting = await runtime.ring(runtime.doorbell.waiting_bells, CONTROL_QUEUE)
        if waiting is not None and waiting < _AT_ONCE:
            await runtime.ring(runtime.doorbell.ring_notify)


async def _purge(runtime: Runtime) -> None:
    stall = func.make_interval(0, 0, 0, 0, 0, 0, runtime.control_settings.upload_stall_seconds)
    async with runtime.database.begin() as session:
        await session.execute(
            update(File)
            .where(_is_among(File.expires_at <= func.now(), File.deleted_at.is_(None)))
            .values(deleted_at=func.now())
            .execution_options(synchronize_session=False)
        )
        await session.execute(
            update(File)
            .where(
                _is_among(
                    File.status == FileStatus.UPLOADING,
                    File.touched_at < func.now() - stall,
                    File.deleted_at.is_(None),
                )
            )
            .values(deleted_at=func.now())
            .execution_options(synchronize_session=False)
        )
        await session.execute(
            delete(File)
            .where(_is_among(File.purged_at < func.now() - _REMEMBERED))
            .execution_options(synchronize_session=False)
        )
    async with runtime.database.begin() as session:
        await _purge_bytes(session)


def _is_among(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """The condition to be one of some files: all at once might outlast a statement's time, for ever."""
    return File.pk.in_(select(File.pk).where(*conditions).limit(_ROWS_AT_ONCE).scalar_subquery())


async def _purge_bytes(session: AsyncSession) -> None:
    """Take away the bytes of some files, so many at a time; the next sweep goes on with the rest."""
    left = MAX_REMOVED_CHUNKS
    for file_pk, status in await _unneeded_files(session):
        pass_failpoint(Failpoint.PURGE_BEFORE_REMOVING)
        left -= await _remove_chunks(session, file_pk, at_most=left)
        pass_failpoint(Failpoint.PURGE_REMOVING_CHUNKS)
        if left == 0:
            return
        if status == FileStatus.UPLOADING:
            # Nobody has seen it, so nobody asks for its place.
            await session.execute(delete(File).where(File.pk == file_pk))
        else:
            await session.execute(
                update(File).where(File.pk == file_pk).values(purged_at=func.now())
            )
        log.info("file %s: purged", file_pk)


async def _remove_chunks(session: AsyncSession, file_pk: int, *, at_most: int) -> int:
    """Remove the first chunks that a file still has; say how many."""
    first = select(func.min(FileChunk.no)).where(FileChunk.file_pk == file_pk).scalar_subquery()
    removed = await session.execute(
        delete(FileChunk)
        .where(FileChunk.file_pk == file_pk, FileChunk.no < first + at_most)
        .execution_options(synchronize_session=False)
    )
    return int(removed.rowcount)  # type: ignore[attr-defined]  # a CursorResult for a DELETE


async def _forget_deliveries(runtime: Runtime) -> None:
    """Forget deliveries of webhooks after their time."""
    await forget_ended(runtime.database)


async def _forget_keys(runtime: Runtime) -> None:
    """Forget idempotency keys after their time."""
    life = timedelta(hours=runtime.control_settings.idempotency_key_hours)
    async with runtime.database.begin() as session:
        await session.execute(
            delete(IdempotencyKey).where(IdempotencyKey.created_at < func.now() - life)
        )


async def _unneeded_files(session: AsyncSession) -> list[tuple[int, str]]:
    """Deleted files that no open batch reads; locked, so that no batch can take one up meanwhile."""
    is_read = exists().where(
        Batch.input_file_pk == File.pk, Batch.status.not_in([status.value for status in FINAL])
    )
    found = await session.execute(
        select(File.pk, File.status)
        .where(File.deleted_at.is_not(None), File.purged_at.is_(None), ~is_read)
        .order_by(File.deleted_at)
        .limit(_FILES_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    return [(row.pk, row.status) for row in found]
