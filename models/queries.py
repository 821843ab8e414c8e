"""The few statements that both sides of the engine need.

`advance` is the only place where a batch's status changes. It is guarded: of any number of callers
that want the same move, one wins, and losing is normal.
"""

from sqlalchemy import ColumnElement, Select, func, or_, select, text, true, update
from sqlalchemy.ext.asyncio import AsyncSession

from models.batch import Batch
from models.failpoints import Failpoint, pass_failpoint
from models.file import File, FileStatus
from models.ids import new_event_id
from models.lifecycle import FINAL, BatchStatus, sources_of, timestamp_for
from models.metrics import BATCHES_ENDED
from models.shard import Shard
from models.webhook import event_type_of


async def advance(
    session: AsyncSession,
    batch_pk: int,
    to: BatchStatus,
    *conditions: ColumnElement[bool],
    **values: object,
) -> bool:
    """Move a batch to `to`, if the life cycle and `conditions` allow it now; say whether it moved.

    `values` are written in the same statement, so that a status and what belongs to it appear
    together. The lease of the stage that ends here is given up. Entering a final status also writes
    a delivery for each webhook endpoint that wants to hear of it.
    """
    moved = await session.execute(
        update(Batch)
        .where(Batch.pk == batch_pk, Batch.status.in_(sources_of(to)), *conditions)
        .values(
            {
                "status": to.value,
                timestamp_for(to): func.now(),
                "lease_owner": None,
                "lease_until": None,
                "tries": 0,
            }
            | values
        )
        .execution_options(synchronize_session=False)
    )
    has_moved: bool = moved.rowcount == 1  # type: ignore[attr-defined]  # a CursorResult for an UPDATE
    if has_moved and to in FINAL:
        pass_failpoint(Failpoint.END_BEFORE_OUTBOX)
        await _announce_end(session, batch_pk, to)
        BATCHES_ENDED.labels(to).inc()
    return has_moved


# KEY SHARE: an endpoint that is being deleted is waited for and then skipped, rather than be missed by
# the foreign key's check, which would undo the end of the batch.
_ANNOUNCE_END = text(
    """
    INSERT INTO webhook_deliveries (endpoint_pk, webhook_id, event_id, event_type, batch_id)
    SELECT webhook_endpoints.pk, 'wh_' || replace(gen_random_uuid()::text, '-', ''),
        :event_id, :event_type, batches.id
    FROM webhook_endpoints JOIN batches USING (project_pk)
    WHERE batches.pk = :batch_pk AND :event_type = ANY (webhook_endpoints.event_types)
    FOR KEY SHARE OF webhook_endpoints
    """
)


async def _announce_end(session: AsyncSession, batch_pk: int, end: BatchStatus) -> None:
    """Write down whom to tell, in the transaction that ends the batch: so no event is lost."""
    values = {"batch_pk": batch_pk, "event_id": new_event_id(), "event_type": event_type_of(end)}
    await session.execute(_ANNOUNCE_END, values)


def counted_batches() -> Select[Batch, int, int]:
    """Select batches, each with the numbers of its lines that ended with and without success.

    One statement, hence one snapshot: the counts are sums over shards until the batch ends, and from
    then on stand in its own row, in the very transaction that drops the shards.
    """
    sums = (
        select(
            func.coalesce(func.sum(Shard.succeeded), 0).label("succeeded"),
            func.coalesce(func.sum(Shard.failed), 0).label("failed"),
        )
        .where(Shard.batch_pk == Batch.pk)
        .lateral()
    )
    return select(Batch, Batch.completed + sums.c.succeeded, Batch.failed + sums.c.failed).join(
        sums, true()
    )


def file_is_visible(project_pk: int) -> ColumnElement[bool]:
    """The condition that a project can see a file: its own, whole, not deleted, not past its expiry."""
    return (
        (File.project_pk == project_pk)
        & (File.status == FileStatus.PROCESSED)
        & File.deleted_at.is_(None)
        & or_(File.expires_at.is_(None), File.expires_at > func.now())
    )
