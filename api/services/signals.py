"""What the engine says of itself to Prometheus: which parts answer, what waits, and what is stuck.

Promises: numbers only, with no name of a tenant, a batch or a model; what it costs depends on the open
batches and the shards at work, not on how many shards or results there are; without a database it says
that, and what else it knows.
"""

import asyncio

from prometheus_client.metrics_core import Metric
from sqlalchemy import text

from api.services.health import Readiness
from models import metrics
from models.database import Database
from models.lifecycle import FINAL, BatchStatus
from models.metrics_folder import merged, named_folder
from models.telling import counted_by, render

_OPEN_BATCHES = text(
    """
    SELECT status, count(*) AS batches, max(tries) AS tries,
        count(*) FILTER (WHERE status = 'in_progress' AND paused_at IS NOT NULL) AS paused,
        coalesce(extract(epoch FROM now() - min(coalesce(cancelling_at, finalizing_at))), 0)::float8
            AS ending_seconds,
        extract(epoch FROM min(expires_at) - now())::float8 AS seconds_left
    FROM batches WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
    GROUP BY status
    """
)
_SHARDS_AT_WORK = text(
    """
    SELECT count(*) FILTER (WHERE lease_until > now()) AS held,
        count(*) FILTER (WHERE lease_until <= now()) AS lapsed,
        coalesce(sum(in_flight) FILTER (WHERE lease_until > now()), 0) AS in_flight,
        coalesce(max(lapses), 0) AS lapses
    FROM shards WHERE state = 'running'
    """
)
_PRESSING = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)

# As far as it matters to who decides how many workers there are to be, and no further.
WAITING = text(
    """
    SELECT count(*) AS shards, coalesce(sum(size - succeeded - failed), 0) AS lines FROM (
        SELECT waiting.* FROM batches CROSS JOIN LATERAL (
            SELECT size, succeeded, failed FROM shards
            WHERE shards.batch_pk = batches.pk AND shards.state <> 'done'
              AND (shards.state = 'queued' OR shards.lease_until <= now())
            LIMIT 5000
        ) AS waiting
        WHERE batches.status = 'in_progress' AND batches.paused_at IS NULL
        LIMIT 5000
    ) AS waiting
    """
)


async def measure(database: Database, readiness: Readiness) -> bytes:
    """All that can be told here, in Prometheus' text format."""
    parts = readiness.parts().items()
    families = [metrics.PART_UP.family(([name], answer == "ok") for name, answer in parts)]
    if readiness.database == "ok":
        families += await _measure_work(database)
    return await asyncio.to_thread(_render_with_counts, families)


def _render_with_counts(families: list[Metric]) -> bytes:
    """These, what this process counted, and what those did whose counts it tells (`overnight up`)."""
    own = [metrics.build_info(), *counted_by(metrics.API, metrics.EVERY)]
    folder = named_folder()
    return render([*families, *(own if folder is None else merged(folder, own))])


async def _measure_work(database: Database) -> list[Metric]:
    async with database.begin() as session:
        found = {row.status: row for row in await session.execute(_OPEN_BATCHES)}
        at_work = (await session.execute(_SHARDS_AT_WORK)).one()
        waiting = (await session.execute(WAITING)).one()
    by_status = {status: found.get(status) for status in BatchStatus if status not in FINAL}
    ending_seconds = max((row.ending_seconds for row in found.values()), default=0.0)
    seconds_left = [found[status].seconds_left for status in _PRESSING if status in found]
    return [
        metrics.BATCHES.family(
            ([name], row.batches if row else 0) for name, row in by_status.items()
        ),
        metrics.BATCH_TRIES.family(
            ([name], row.tries if row else 0) for name, row in by_status.items()
        ),
        metrics.BATCHES_PAUSED.family([((), sum(row.paused for row in found.values()))]),
        metrics.BATCH_DEADLINE.family(((), each) for each in sorted(seconds_left)[:1]),
        metrics.BATCH_ENDING.family([((), ending_seconds)]),
        metrics.SHARDS.family(([each], getattr(at_work, each)) for each in ("held", "lapsed")),
        metrics.CALLS_IN_FLIGHT.family([((), at_work.in_flight)]),
        metrics.SHARD_LAPSES.family([((), at_work.lapses)]),
        metrics.SHARDS_WAITING.family([((), waiting.shards)]),
        metrics.LINES_WAITING.family([((), waiting.lines)]),
    ]
