"""Leases: who may work on a shard or a batch just now. Every statement is guarded and short.

A lease is a name and a time in a row. It is taken only where nobody holds it, renewed and given back
only by its holder, and lapses by the database's clock alone. Losing one is normal: the loser stops.
The name of a shard's lease holds the number of the claim, so that a process that was frozen past one
claim and has made another does not take itself for the holder of both.
"""

from dataclasses import dataclass

from sqlalchemy import ARRAY, Integer, bindparam, exists, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from models.batch import Batch
from models.database import Database
from models.ids import BatchId, BatchPk, ShardPk
from models.lifecycle import BatchStatus, ShardState
from models.lines import Endpoint
from models.queries import advance
from models.result import Result
from models.shard import Shard
from models.upstreams import EVERY_MODEL, ModelFilter


@dataclass(frozen=True, slots=True)
class ClaimedShard:
    """A shard whose lease is ours, with the places of the lines that still have no result."""

    pk: ShardPk
    batch_pk: BatchPk
    batch_id: BatchId
    endpoint: Endpoint
    model: str | None
    input_file_pk: int
    lease_owner: str
    seconds_left: float
    """Until the batch's window closes, by the database's clock."""

    lines: list[tuple[int, int, int]]
    """(line number, offset, length) of each pending line, in the order of the shard."""


# The most urgent runnable shard: of the batch with the fewest shards at work, so that a small batch
# does not wait behind a big one; then of the one that ends first. MATERIALIZED is a fence: without it
# the planner may run the inner query more than once and lock more rows than it claims.
#
# A lapsed lease counts only once the server itself has been up for as long as a lease lasts: after
# an outage of the database its holders renew first, and keep what they have in flight.
_CLAIM_SHARD = text(
    """
    WITH load AS MATERIALIZED (
        SELECT batch_pk, count(*) FILTER (WHERE state = 'running' AND lease_until > now()) AS busy
        FROM shards WHERE state <> 'done' GROUP BY batch_pk
    ), next AS MATERIALIZED (
        SELECT shards.pk
        FROM shards JOIN batches ON batches.pk = shards.batch_pk JOIN load USING (batch_pk)
        WHERE batches.status = 'in_progress' AND batches.expires_at > now()
          AND batches.paused_at IS NULL
          AND coalesce(batches.model = ANY(CAST(:models AS text[])), false) = :are_meant
          AND (shards.state = 'queued'
               OR (shards.state = 'running' AND shards.lease_until <= now()
                   AND pg_postmaster_start_time() < now() - make_interval(secs => :lease_seconds)))
        ORDER BY batches.pk = :passed_over, load.busy, batches.expires_at, shards.pk
        LIMIT 1
        FOR UPDATE OF shards SKIP LOCKED
    )
    UPDATE shards
    SET state = 'running', lease_owner = :owner || '#' || (shards.claims + 1),
        claims = shards.claims + 1, in_flight = 0,
        lease_until = clock_timestamp() + make_interval(secs => :lease_seconds)
    FROM next, batches
    WHERE shards.pk = next.pk AND batches.pk = shards.batch_pk
    RETURNING shards.pk, shards.batch_pk, shards.line_numbers, shards.offsets, shards.lengths,
        shards.claims, shards.lease_owner,
        batches.id AS batch_id, batches.endpoint, batches.model, batches.input_file_pk,
        extract(epoch FROM batches.expires_at - clock_timestamp())::float8 AS seconds_left
    """
)


async def claim_shard(
    database: Database,
    *,
    owner: str,
    lease_seconds: float,
    passed_over: int = 0,
    models: ModelFilter = EVERY_MODEL,
) -> ClaimedShard | None:
    """Take the lease of the most urgent runnable shard of these models, if there is one.

    One of the batch `passed_over` only if no other batch has any.
    """
    values = {
        "owner": owner,
        "lease_seconds": lease_seconds,
        "passed_over": passed_over,
        "models": list(models.names),
        "are_meant": models.are_meant,
    }
    async with database.begin() as session:
        row = (await session.execute(_CLAIM_SHARD, values)).one_or_none()
        if row is None:
            return None
        answered: set[int] = set()
        # On its first claim a shard has no result yet.
        if row.claims > 1:
            answered = await _answered(session, row.batch_pk, row.line_numbers)
    places = zip(row.line_numbers, row.offsets, row.lengths, strict=True)
    return ClaimedShard(
        pk=row.pk,
        batch_pk=row.batch_pk,
        batch_id=row.batch_id,
        endpoint=Endpoint(row.endpoint),
        model=row.model,
        input_file_pk=row.input_file_pk,
        lease_owner=row.lease_owner,
        seconds_left=row.seconds_left,
        lines=[place for place in places if place[0] not in answered],
    )


async def _answered(session: AsyncSession, batch_pk: int, line_numbers: list[int]) -> set[int]:
    wanted = bindparam("line_numbers", line_numbers, type_=ARRAY(Integer))
    rows = await session.scalars(
        select(Result.line_no).where(
            Result.batch_pk == batch_pk, Result.line_no == func.any(wanted)
        )
    )
    return set(rows)


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
    return bool(state == ShardState.DONE)


async def others_wait(database: Database, batch_pk: int) -> bool:
    """Whether a shard of another batch waits for a worker."""
    is_waiting = (
        exists()
        .where(Shard.batch_pk == Batch.pk, Batch.pk != batch_pk)
        .where(Batch.status == BatchStatus.IN_PROGRESS, Batch.paused_at.is_(None))
        .where(Shard.state == ShardState.QUEUED)
    )
    async with database.statement() as session:
        return bool(await session.scalar(select(is_waiting)))


async def advance_if_all_done(database: Database, batch_pk: int) -> bool:
    """Move a batch on to finalizing if none of its shards is open; say whether this call did it.

    In a transaction of its own, after that of `close_shard`: of two shards that close at the same
    time, neither may see the other's end, but the later of the two looks see both.
    """
    is_open = exists().where(Shard.batch_pk == batch_pk, Shard.state != ShardState.DONE)
    async with database.begin() as session:
        return await advance(session, batch_pk, BatchStatus.FINALIZING, ~is_open)


async def claim_batch(
    session: AsyncSession, batch_pk: int, *statuses: BatchStatus, owner: str, lease_seconds: float
) -> Batch | None:
    """Take a batch's own lease, for the stage that works on it in one of these statuses."""
    claimed = await session.execute(
        update(Batch)
        .where(
            Batch.pk == batch_pk,
            Batch.status.in_(statuses),
            (Batch.lease_owner.is_(None)) | (Batch.lease_until <= func.now()),
        )
        .values(lease_owner=owner, lease_until=_from_now(lease_seconds))
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
            .values(lease_owner=None, lease_until=None)
            .execution_options(synchronize_session=False)
        )


def _from_now(seconds: float) -> object:
    return func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
