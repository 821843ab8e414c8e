"""Leases: who may work on a shard or a batch just now. Every statement is guarded and short.
A shard's lease is taken in `worker.claim`.

A lease is a name and a time in a row. It is taken only where nobody holds it, renewed and given back
only by its holder, and lapses by the database's clock alone. Losing one is normal: the loser stops.
The name of a shard's lease holds the number of the claim, so that a process that was frozen past one
claim and has made another does not take itself for the holder of both.
"""

import asyncio

from sqlalchemy import ColumnElement, exists, func, text, update
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from models.batch import Batch
from models.database import Database, is_away
from models.failpoints import Failpoint, pass_failpoint
from models.lifecycle import BatchStatus, ShardState
from models.queries import advance
from models.shard import Shard
from worker.claim import ClaimedShard

NOBODY = "nobody"
"""Who holds the lease of a batch that is to be left alone for a while."""

MOST_REST_SECONDS = 60.0
_REST_OF_TROUBLE_SECONDS = 15.0
_ASK_AGAIN_SECONDS = 0.5


async def close_shard(database: Database, shard: ClaimedShard) -> bool:
    """Give the shard's lease back; say whether the shard is done.

    Done is decided here by what the database has counted, never by what the worker remembers.
    """
    async with database.begin() as session:
        state = await session.scalar(
            text(
                """
                UPDATE shards SET lease_owner = NULL, lease_until = NULL, in_flight = 0,
                    state = CASE WHEN succeeded + failed = size THEN 'done' ELSE 'queued' END
                WHERE pk = :pk AND state = 'running' AND lease_owner = :lease_owner
                RETURNING state
                """
            ),
            {"pk": shard.pk, "lease_owner": shard.lease_owner},
        )
        pass_failpoint(Failpoint.CLOSE_CLOSING)
    return bool(state == ShardState.DONE)


async def advance_if_all_done(database: Database, batch_pk: int) -> bool:
    """Move a batch on to finalizing if none of its shards is open; say whether this call did it.

    In a transaction of its own, after that of `close_shard`: of two shards that close at the same
    time, neither may see the other's end, but the later of the two looks see both.
    """
    is_open = exists().where(Shard.batch_pk == batch_pk, Shard.state != ShardState.DONE)
    async with database.begin() as session:
        has_moved = await advance(session, batch_pk, BatchStatus.FINALIZING, ~is_open)
    if has_moved:
        pass_failpoint(Failpoint.CLOSE_BATCH_MOVED)
    return has_moved


async def claim_batch(
    session: AsyncSession, batch_pk: int, *statuses: BatchStatus, owner: str, lease_seconds: float
) -> Batch | None:
    """Take a batch's own lease, for the stage that works on it in one of these statuses.

    That is one try more of this stage; its end, or giving the lease back unharmed, forgets them all.
    """
    claimed = await session.execute(
        update(Batch)
        .where(
            Batch.pk == batch_pk,
            Batch.status.in_(statuses),
            (Batch.lease_owner.is_(None)) | (Batch.lease_until <= func.now()),
        )
        .values(lease_owner=owner, lease_until=_from_now(lease_seconds), tries=Batch.tries + 1)
        .returning(Batch)
    )
    return claimed.scalar_one_or_none()


async def renew_batch(
    database: Database, batch: Batch, *, owner: str, lease_seconds: float
) -> bool:
    """Keep a batch's lease; `False` if it is lost or the batch has moved on (cancelled, say)."""
    async with database.begin() as session:
        renewed = await session.scalar(
            update(Batch)
            .where(Batch.pk == batch.pk, Batch.status == batch.status, Batch.lease_owner == owner)
            .values(lease_until=_from_now(lease_seconds))
            .returning(Batch.pk)
            .execution_options(synchronize_session=False)
        )
    return renewed is not None


async def release_batch(database: Database, batch_pk: int, *, owner: str) -> None:
    """Give a batch's lease back without moving the batch."""
    async with database.begin() as session:
        await session.execute(
            update(Batch)
            .where(Batch.pk == batch_pk, Batch.lease_owner == owner)
            .values(lease_owner=None, lease_until=None, tries=0)
            .execution_options(synchronize_session=False)
        )


async def rest_batch(database: Database, batch_pk: int, error: Exception, *, owner: str) -> None:
    """Give a batch's lease up after a fault: nobody gets it for a pause that grows with every try.

    The database's troubles, a full disk say, are not the batch's: they count as no try, and the pause
    after them is always the same. Of a database that is away this waits for the return, for the try
    is counted already; who has the lease by then keeps it.
    """
    is_counted = not isinstance(error, (OperationalError, InterfaceError, OSError))
    rest = (
        update(Batch)
        .where(Batch.pk == batch_pk, Batch.lease_owner == owner)
        .values(
            lease_owner=NOBODY,
            lease_until=_from_now(_growing_pause() if is_counted else _pause_after(error)),
            tries=Batch.tries if is_counted else Batch.tries - 1,
        )
        .execution_options(synchronize_session=False)
    )
    while True:
        try:
            async with database.begin() as session:
                await session.execute(rest)
            return
        except Exception as trouble:
            if not is_away(trouble):
                raise
        await asyncio.sleep(_ASK_AGAIN_SECONDS)


async def rest_after_deaths(database: Database) -> list[tuple[str, int]]:
    """Let no batch be finished again at once whose finisher died not for the first time.

    Their ids, and how often it was tried.
    """
    async with database.begin() as session:
        rested = await session.execute(
            update(Batch)
            .where(
                Batch.status.in_([BatchStatus.FINALIZING, BatchStatus.CANCELLING]),
                Batch.tries > 1,
                Batch.lease_owner != NOBODY,
                Batch.lease_until <= func.now(),
            )
            .values(
                lease_owner=NOBODY,
                lease_until=_from_now(_growing_pause()),
            )
            .returning(Batch.id, Batch.tries)
            .execution_options(synchronize_session=False)
        )
        return [(row.id, row.tries) for row in rested]


def _growing_pause() -> ColumnElement[float]:
    """Seconds: 2, doubled with every try. (Tries have no end, but the power of a number has.)"""
    return func.least(MOST_REST_SECONDS, func.power(2.0, func.least(Batch.tries, 6)))


def _pause_after(error: Exception) -> float:
    """Seconds: short where a server was away, which has then returned, or has not and is waited for."""
    return 1.0 if is_away(error) else _REST_OF_TROUBLE_SECONDS


def _from_now(seconds: float | ColumnElement[float]) -> object:
    return func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
