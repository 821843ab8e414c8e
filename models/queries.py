"""The few statements that both sides of the engine need.

`advance` is the only place where a batch's status changes. It is guarded: of any number of callers
that want the same move, one wins, and losing is normal.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from models.batch import Batch
from models.file import File, FileStatus
from models.lifecycle import BatchStatus, sources_of, timestamp_for
from models.shard import Shard


@dataclass(frozen=True, slots=True)
class Counts:
    """The lines of a batch: all, and those that ended with and without success."""

    total: int
    completed: int
    failed: int


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


async def counts_of(session: AsyncSession, batches: list[Batch]) -> dict[int, Counts]:
    """The counts of some batches by their pk: sums over shards while they run, frozen ones after."""
    running = [batch.pk for batch in batches if batch.status in _COUNTED_BY_SHARDS]
    sums: dict[int, tuple[int, int]] = {}
    if running:
        rows = await session.execute(
            select(
                Shard.batch_pk,
                func.coalesce(func.sum(Shard.succeeded), 0),
                func.coalesce(func.sum(Shard.failed), 0),
            )
            .where(Shard.batch_pk.in_(running))
            .group_by(Shard.batch_pk)
        )
        sums = {batch_pk: (int(succeeded), int(failed)) for batch_pk, succeeded, failed in rows}
    return {
        batch.pk: Counts(batch.total, *sums.get(batch.pk, (batch.completed, batch.failed)))
        for batch in batches
    }


_COUNTED_BY_SHARDS = {BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING}


def file_is_visible() -> ColumnElement[bool]:
    """The condition that a client can see a file: whole, not deleted, not past its expiry."""
    return (
        (File.status == FileStatus.PROCESSED)
        & File.deleted_at.is_(None)
        & or_(File.expires_at.is_(None), File.expires_at > func.now())
    )
