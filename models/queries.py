"""The few statements that both sides of the engine need.

`advance` is the only place where a batch's status changes. It is guarded: of any number of callers
that want the same move, one wins, and losing is normal.
"""

from sqlalchemy import ColumnElement, Select, func, or_, select, true, update
from sqlalchemy.ext.asyncio import AsyncSession

from models.batch import Batch
from models.file import File, FileStatus
from models.lifecycle import BatchStatus, sources_of, timestamp_for
from models.shard import Shard


async def advance(
    session: AsyncSession,
    batch_pk: int,
    to: BatchStatus,
    *conditions: ColumnElement[bool],
    **values: object,
) -> bool:
    """Move a batch to `to`, if the life cycle and `conditions` allow it now; say whether it moved.

    `values` are written in the same statement, so that a status and what belongs to it appear
    together. The lease of the stage that ends here is given up.
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
            }
            | values
        )
        .execution_options(synchronize_session=False)
    )
    return moved.rowcount == 1  # type: ignore[attr-defined,no-any-return]  # a CursorResult for an UPDATE


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
