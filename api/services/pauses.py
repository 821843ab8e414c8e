"""Pausing and resuming batches: an extension.

Promises: a paused batch keeps its status, and its window goes on; no shard of it is claimed, and the
workers at it begin no new call as soon as they next write (`worker.recorder`): those in flight end
and are recorded, so that no call is made twice because of a pause.
"""

from datetime import datetime

from sqlalchemy import func, select, update
from sqlalchemy.sql.elements import ColumnElement

from api.bell import Bell, ring
from api.services.batches import find, show
from models import Batch, Shard, wire
from models.database import Database
from models.errors import BatchNotChangeable
from models.failpoints import Failpoint, pass_failpoint
from models.lifecycle import BatchStatus, ShardState
from models.project import Caller
from worker.queue import RUN_WINDOW

_PAUSABLE = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)


async def pause(database: Database, caller: Caller, *, batch_id: str) -> wire.Batch:
    """Let a batch rest; pausing it again changes nothing.

    Raises:
        BatchNotFound: there is none with this id.
        BatchNotChangeable: none of its lines will be called any more.
    """
    since = func.coalesce(Batch.paused_at, func.now())
    _, shown = await _set(database, caller, batch_id, wish="pause", paused_at=since)
    return shown


async def resume(database: Database, caller: Caller, *, bell: Bell, batch_id: str) -> wire.Batch:
    """Let a batch go on; one that is not paused does so anyway.

    Raises:
        BatchNotFound: there is none with this id.
        BatchNotChangeable: none of its lines will be called any more.
    """
    batch_pk, shown = await _set(database, caller, batch_id, wish="resume", paused_at=None)
    async with database.statement() as session:
        queued = select(Shard.pk).where(
            Shard.batch_pk == batch_pk, Shard.state == ShardState.QUEUED
        )
        runnable = select(func.count()).select_from(queued.limit(RUN_WINDOW).subquery())
        times = await session.scalar(runnable) or 0
    if times:
        pass_failpoint(Failpoint.RESUME_BEFORE_BELL)
        await ring(lambda _: bell.ring_run(times), batch_pk)
    return shown


async def _set(
    database: Database,
    caller: Caller,
    batch_id: str,
    *,
    wish: str,
    paused_at: ColumnElement[datetime] | None,
) -> tuple[int, wire.Batch]:
    async with database.begin() as session:
        batch_pk = (await find(session, caller, batch_id)).pk
        changed = await session.scalar(
            update(Batch)
            .where(Batch.pk == batch_pk, Batch.status.in_(_PAUSABLE))
            .values(paused_at=paused_at)
            .returning(Batch.pk)
            .execution_options(synchronize_session=False)
        )
        session.expire_all()
        shown = await show(session, caller, batch_id)
    if changed is None:
        raise BatchNotChangeable(wish, shown.status)
    return batch_pk, shown
