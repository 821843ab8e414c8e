"""The claim of a shard: whose turn it is, and the lease that says so.

Promises: a shard is claimed by one worker only; projects share by weight, batches of one project alike,
and a batch close to its deadline goes before all of that; what a claim costs depends on how many batches
and running shards there are, not on how many shards wait.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ARRAY, Integer, bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from models.database import Database
from models.failpoints import Failpoint, pass_failpoint
from models.ids import BatchId, BatchPk, ShardPk
from models.lines import Endpoint
from models.result import Result
from models.upstreams import EVERY_MODEL, ModelFilter


@dataclass(frozen=True, slots=True)
class ClaimedShard:
    """A shard whose lease is ours, with the places of the lines that still have no result."""

    pk: ShardPk
    no: int
    """Its place among the shards of its batch, which are best worked on in this order."""

    batch_pk: BatchPk
    batch_id: BatchId
    project_pk: int
    weight: float
    """The project's, at the time of the claim."""

    endpoint: Endpoint
    model: str | None
    input_file_pk: int
    lease_owner: str
    expires_at: datetime
    """When the batch's window closes."""

    seconds_left: float
    """Until then, by the database's clock."""

    is_urgent: bool
    """Whether less than an eighth of the window was left at the time of the claim."""

    lines: list[tuple[int, int, int]]
    """(line number, offset, length) of each pending line, in the order of the shard."""

    is_suspect: bool = False
    """Whether workers were lost over it again and again: its first line is to be tried alone."""

    is_first_line_lost: bool = False
    """Whether workers were lost just as often with that line alone: it is not to be called again."""

    traceparent: str | None = None
    """The span that created the batch, if it was traced."""


# `turns` yields batches in the order of their turns, and `next` takes the first runnable shard of the
# first that has one. Everything is lazy: LIMIT stops at the first shard, and what comes after it in the
# order was neither read nor sorted. So the cost hangs on the running shards and the number of projects.
#
# MATERIALIZED is a fence. `busy` and `shares`: else they may be counted anew for every row. `next`: else
# the planner may run it more than once, and lock more rows than it claims. `candidates` has none, so that
# each of its uses gets an index of its own.
#
# LIMIT 256 tells the planner that few rows will be read, so that it reads an index in order instead of
# sorting thousands of batches. What it keeps out would matter only if none of the first 256 idle batches
# (of a project, or of all) had a shard to claim; for a moment that may be, when all of them are just done.
#
# Urgent batches go by deadline, but no index has them in that order. So they are looked for among the
# batches that end first, and, as those may all have short windows, among those that became urgent first.
#
# The order of `next` is that of `turns`: UNION ALL goes through its arms one by one, and LATERAL can only
# be run as a loop over them. With an ORDER BY of its own, the planner might run the loop to its end and
# sort, and so lock a shard of each batch. The inner LIMIT is above the lock, so that a shard which another
# claim holds is skipped for the next of the same batch.
#
# Among projects alike, chance decides, by weight: else one whose shards are short would be the first again
# and again. `urgent_at`, when an eighth of the window is left, is written as `ix_batches_urgent` has it;
# `state <> 'done'` says nothing new, but lets `ix_shards_open` be used.
#
# A lapsed lease counts only once the server itself has been up for as long as a lease lasts: after
# an outage of the database its holders renew first, and keep what they have in flight.
_CLAIM_SHARD = text(
    """
    WITH busy AS MATERIALIZED (
        SELECT shards.batch_pk, batches.project_pk, count(*) AS shards
        FROM shards JOIN batches ON batches.pk = shards.batch_pk
        WHERE shards.state = 'running' AND shards.lease_until > now()
        GROUP BY shards.batch_pk, batches.project_pk
    ), shares AS MATERIALIZED (
        SELECT projects.pk AS project_pk, coalesce(load.shards, 0) AS shards
        FROM projects
        LEFT JOIN (SELECT project_pk, sum(shards) AS shards FROM busy GROUP BY project_pk) AS load
            ON load.project_pk = projects.pk
        ORDER BY coalesce(load.shards, 0) / projects.weight, -ln(1 - random()) / projects.weight
    ), candidates AS NOT MATERIALIZED (
        SELECT pk, project_pk, expires_at,
            (expires_at AT TIME ZONE 'UTC') - (expires_at - created_at) / 8 AS urgent_at
        FROM batches
        WHERE status = 'in_progress' AND expires_at > now() AND paused_at IS NULL
          AND pk <> ALL (CAST(:without_batches AS bigint[]))
          AND coalesce(model = ANY (CAST(:models AS text[])), false) = :are_meant
    ), next AS MATERIALIZED (
        SELECT runnable.pk, turns.is_urgent
        FROM (
            (
                SELECT batch_pk, true AS is_urgent
                FROM (
                    (
                        SELECT pk AS batch_pk, expires_at, urgent_at
                        FROM candidates
                        WHERE pk <> ALL (ARRAY(SELECT batch_pk FROM busy))
                        ORDER BY expires_at, pk
                        LIMIT 256
                    ) UNION ALL (
                        SELECT pk, expires_at, urgent_at
                        FROM candidates
                        WHERE pk <> ALL (ARRAY(SELECT batch_pk FROM busy))
                          AND urgent_at < now() AT TIME ZONE 'UTC'
                        ORDER BY urgent_at
                        LIMIT 256
                    ) UNION ALL (
                        SELECT busy.batch_pk, candidates.expires_at, candidates.urgent_at
                        FROM busy JOIN candidates ON candidates.pk = busy.batch_pk
                    )
                ) AS first_to_end
                WHERE urgent_at < now() AT TIME ZONE 'UTC'
                ORDER BY expires_at, batch_pk
            ) UNION ALL (
                SELECT idle_first.batch_pk, false
                FROM shares CROSS JOIN LATERAL (
                    (
                        SELECT pk AS batch_pk
                        FROM candidates
                        WHERE project_pk = shares.project_pk
                          AND pk <> ALL (ARRAY(SELECT batch_pk FROM busy))
                        ORDER BY expires_at, pk
                        LIMIT 256
                    ) UNION ALL (
                        SELECT busy.batch_pk
                        FROM busy JOIN candidates ON candidates.pk = busy.batch_pk
                        WHERE busy.project_pk = shares.project_pk AND shares.shards > 0
                        ORDER BY busy.shards, candidates.expires_at, candidates.pk
                    )
                ) AS idle_first
            )
        ) AS turns CROSS JOIN LATERAL (
            SELECT shards.pk
            FROM shards
            WHERE shards.batch_pk = turns.batch_pk AND shards.state <> 'done'
              AND (shards.state = 'queued'
                   OR (shards.state = 'running' AND shards.lease_until <= now()
                       AND pg_postmaster_start_time()
                           < now() - make_interval(secs => :lease_seconds)))
              AND (NOT CAST(:without_suspects AS bool)
                   OR shards.lapses + CAST(shards.state = 'running' AS int) < :suspect_lapses)
            ORDER BY shards.no
            LIMIT 1
            FOR UPDATE OF shards SKIP LOCKED
        ) AS runnable
        LIMIT 1
    )
    UPDATE shards
    SET state = 'running', lease_owner = :owner || '#' || (shards.claims + 1),
        claims = shards.claims + 1, in_flight = 0,
        lapses = shards.lapses + CAST(shards.state = 'running' AS int),
        lease_until = clock_timestamp() + make_interval(secs => :lease_seconds)
    FROM next, batches, projects
    WHERE shards.pk = next.pk AND batches.pk = shards.batch_pk
      AND projects.pk = batches.project_pk
    RETURNING shards.pk, shards.no, shards.batch_pk, shards.line_numbers, shards.offsets,
        shards.lengths, shards.claims, shards.lapses, shards.lease_owner, next.is_urgent, projects.weight,
        batches.id AS batch_id, batches.project_pk, batches.endpoint, batches.model, batches.traceparent,
        batches.input_file_pk, batches.expires_at,
        extract(epoch FROM batches.expires_at - clock_timestamp())::float8 AS seconds_left
    """
)


async def claim_shard(
    database: Database,
    *,
    owner: str,
    lease_seconds: float,
    models: ModelFilter = EVERY_MODEL,
    without_batches: Collection[int] = (),
    suspect_lapses: int = 3,
    without_suspects: bool = False,
) -> ClaimedShard | None:
    """Take the lease of the runnable shard of these models whose turn it is, if there is one.

    Urgent batches come first, by deadline; then the project with the fewest running shards for its
    weight; of it the batch with the fewest, then the one that ends first; of it the first shard. None of
    `without_batches`, and none that `suspect_lapses` leases in a row ran out on if `without_suspects`.
    """
    values = {
        "owner": owner,
        "lease_seconds": lease_seconds,
        "models": list(models.names),
        "are_meant": models.are_meant,
        "without_batches": list(without_batches),
        "suspect_lapses": suspect_lapses,
        "without_suspects": without_suspects,
    }
    async with database.begin() as session:
        row = (await session.execute(_CLAIM_SHARD, values)).one_or_none()
        if row is None:
            return None
        answered: set[int] = set()
        # On its first claim a shard has no result yet.
        if row.claims > 1:
            answered = await _answered(session, row.batch_pk, row.line_numbers)
        pass_failpoint(Failpoint.CLAIM_LEASING)
    pass_failpoint(Failpoint.CLAIM_LEASED)
    places = zip(row.line_numbers, row.offsets, row.lengths, strict=True)
    return ClaimedShard(
        pk=row.pk,
        no=row.no,
        batch_pk=row.batch_pk,
        batch_id=row.batch_id,
        project_pk=row.project_pk,
        weight=row.weight,
        endpoint=Endpoint(row.endpoint),
        model=row.model,
        input_file_pk=row.input_file_pk,
        lease_owner=row.lease_owner,
        expires_at=row.expires_at,
        seconds_left=row.seconds_left,
        is_urgent=row.is_urgent,
        lines=[place for place in places if place[0] not in answered],
        is_suspect=row.lapses >= suspect_lapses,
        is_first_line_lost=row.lapses >= 2 * suspect_lapses,
        traceparent=row.traceparent,
    )


async def _answered(session: AsyncSession, batch_pk: int, line_numbers: list[int]) -> set[int]:
    wanted = bindparam("line_numbers", line_numbers, type_=ARRAY(Integer))
    rows = await session.scalars(
        select(Result.line_no).where(
            Result.batch_pk == batch_pk, Result.line_no == func.any(wanted)
        )
    )
    return set(rows)
