"""How a batch is getting on: an extension.

Promises: one short statement over the batch's row and its shards' (a few hundred at most), none of its
results', so that it may be polled; what it tells is in Postgres, brought there by the workers' own
writes, and so up to a quarter of a lease old.
"""

import math
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, true
from sqlalchemy.engine import Row

from models import Batch, Shard, wire
from models.database import Database
from models.errors import BatchNotFound
from models.ids import could_be_id
from models.lifecycle import FINAL, BatchStatus, ShardState
from models.lines import MAX_ECHO
from models.project import Caller

RATE_SECONDS = 60
"""How fast `worker.recorder` lets its mean forget."""

_FEWEST_LINES = 0.05
"""With less than that of a line in the mean (three minutes after the only one), there is no telling."""

_TOKENS = (
    Shard.input_tokens,
    Shard.cached_tokens,
    Shard.output_tokens,
    Shard.reasoning_tokens,
    Shard.total_tokens,
)


async def progress(database: Database, caller: Caller, *, batch_id: str) -> wire.BatchProgress:
    """Tell where a batch stands, how fast it goes and when it may be done.

    Raises:
        BatchNotFound: there is none with this id.
    """
    row = None
    if could_be_id(batch_id):
        async with database.statement() as session:
            statement = standing_batches().where(
                Batch.id == batch_id, Batch.project_pk == caller.project_pk
            )
            row = (await session.execute(statement)).one_or_none()
    if row is None:
        raise BatchNotFound(batch_id[:MAX_ECHO])
    return told(row)


def standing_batches() -> Select[Any]:
    """Select batches, each with the sums over its shards: what `told` tells from."""
    is_held = (Shard.state == ShardState.RUNNING) & (Shard.lease_until > func.now())
    sums = (
        select(
            func.coalesce(func.sum(Shard.succeeded), 0).label("succeeded"),
            func.coalesce(func.sum(Shard.failed), 0).label("failed"),
            func.coalesce(func.sum(Shard.in_flight).filter(is_held), 0).label("in_flight"),
            func.coalesce(func.sum(Shard.retries), 0).label("retries"),
            lines_per_second_now().label("rate"),
            *(func.coalesce(func.sum(column), 0).label(column.key) for column in _TOKENS),
        )
        .where(Shard.batch_pk == Batch.pk)
        .lateral()
    )
    return select(Batch, func.now().label("now"), sums).join(sums, true())


def lines_per_second_now() -> ColumnElement[float]:
    """How fast lines of the selected shards end: their means, forgetting since they were written."""
    age = func.extract("epoch", func.now() - Shard.lines_per_second_at) / RATE_SECONDS
    # Postgres takes a number too small to be told from zero for an error.
    faded = func.exp(-func.least(60, func.greatest(0, age)))
    return func.coalesce(func.sum(Shard.lines_per_second * faded), 0.0)


def told(row: Row[Any]) -> wire.BatchProgress:
    """The progress of one of the selected batches."""
    batch: Batch = row.Batch
    counts = wire.RequestCounts(
        total=batch.total,
        completed=batch.completed + int(row.succeeded),
        failed=batch.failed + int(row.failed),
    )
    usage = batch.usage or {column.key: int(getattr(row, column.key)) for column in _TOKENS}
    rate = _unbiased(float(row.rate), batch, row.now)
    paused = batch.paused_at is not None and batch.status in {
        BatchStatus.VALIDATING,
        BatchStatus.IN_PROGRESS,
    }
    seconds_left = math.floor((batch.expires_at - row.now).total_seconds())
    todo = counts.total - counts.completed - counts.failed
    forecast = None
    if batch.status == BatchStatus.IN_PROGRESS and not paused:
        forecast = _seconds_for(todo, rate)
    return wire.BatchProgress(
        batch_id=batch.id,
        status=batch.status,
        paused=paused,
        request_counts=counts,
        in_flight=int(row.in_flight),
        retries=batch.retries + int(row.retries),
        usage=wire.Usage.of(usage),
        lines_per_second=round(rate, 3),
        expires_at=int(batch.expires_at.timestamp()),
        seconds_left=0 if batch.status in FINAL else max(0, seconds_left),
        forecast_end_at=None if forecast is None else int(row.now.timestamp() + forecast),
        forecast_in_window=None if forecast is None else forecast <= seconds_left,
    )


def _unbiased(rate: float, batch: Batch, now: datetime) -> float:
    """The mean of a batch that is younger than what the mean looks back on."""
    if batch.in_progress_at is None:
        return 0.0
    age_seconds = max(1.0, (now - batch.in_progress_at).total_seconds())
    return rate / -math.expm1(-age_seconds / RATE_SECONDS)


def _seconds_for(lines: int, rate: float) -> float | None:
    """How long so many lines take at this rate, if that can be told."""
    if lines == 0:
        return 0.0
    return None if rate * RATE_SECONDS < _FEWEST_LINES else lines / rate
