"""The only writer of results: one a shard, in bulk, under the shard's lease.

Promises: results, counters and the lease's renewal are one statement, so they cannot disagree; a
result is counted only if its row was really inserted; a holder whose lease was taken writes nothing;
a write is joined, never cancelled; while the database is away results are kept, and tried again; no
write is larger than a few megabytes, unless a single result is.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from models.database import Database
from models.failpoints import Failpoint, pass_failpoint
from models.lifecycle import BatchStatus
from models.metrics import LEASES_LOST
from worker.answer import Usage
from worker.claim import ClaimedShard
from worker.settings import RunSettings

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A line's finished output line and what it cost."""

    line_no: int
    succeeded: bool
    line: bytes
    usage: Usage
    seconds: float = 0.0
    """How long its last call took; zero if there was none."""


# psycopg's binary parameters (%b) for the arrays: a quarter of the time of text ones, measured.
#
# `lapses` begins anew with each line that is recorded; only, a shard that is suspect stays so.
#
# `lines_per_second` is a mean that forgets at the rate of 1/e a minute (`api.services.progress`
# reads it): each line adds 1/60 to it. A write without a line leaves it alone, and the exponent has a
# bound, for Postgres takes a product too small to be told from zero for an error.
_RECORD = """
    WITH lease AS MATERIALIZED (
        SELECT pk, batch_pk FROM shards
        WHERE pk = %(shard_pk)s AND state = 'running' AND lease_owner = %(lease_owner)s
        FOR UPDATE
    ), inserted AS (
        INSERT INTO results (batch_pk, line_no, succeeded, line, input_tokens, cached_tokens,
                             output_tokens, reasoning_tokens, total_tokens, seconds)
        SELECT lease.batch_pk, rows.*
        FROM lease, unnest(%(line_no)b::int[], %(succeeded)b::bool[], %(line)b::bytea[],
                           %(input_tokens)b::bigint[], %(cached_tokens)b::bigint[],
                           %(output_tokens)b::bigint[], %(reasoning_tokens)b::bigint[],
                           %(total_tokens)b::bigint[], %(seconds)b::float8[]) AS rows
        ON CONFLICT DO NOTHING
        RETURNING succeeded, input_tokens, cached_tokens, output_tokens, reasoning_tokens,
                  total_tokens
    ), counted AS (
        SELECT count(*) AS lines,
               count(*) FILTER (WHERE succeeded) AS succeeded,
               count(*) FILTER (WHERE NOT succeeded) AS failed,
               coalesce(sum(input_tokens), 0) AS input_tokens,
               coalesce(sum(cached_tokens), 0) AS cached_tokens,
               coalesce(sum(output_tokens), 0) AS output_tokens,
               coalesce(sum(reasoning_tokens), 0) AS reasoning_tokens,
               coalesce(sum(total_tokens), 0) AS total_tokens
        FROM inserted
    )
    UPDATE shards
    SET succeeded = shards.succeeded + counted.succeeded,
        failed = shards.failed + counted.failed,
        lease_until = clock_timestamp() + make_interval(secs => %(lease_seconds)s),
        input_tokens = least(shards.input_tokens + counted.input_tokens, 1e18),
        cached_tokens = least(shards.cached_tokens + counted.cached_tokens, 1e18),
        output_tokens = least(shards.output_tokens + counted.output_tokens, 1e18),
        reasoning_tokens = least(shards.reasoning_tokens + counted.reasoning_tokens, 1e18),
        total_tokens = least(shards.total_tokens + counted.total_tokens, 1e18),
        lapses = CASE WHEN counted.lines = 0 THEN shards.lapses
            WHEN shards.lapses < %(suspect_lapses)s THEN 0 ELSE %(suspect_lapses)s END,
        in_flight = %(in_flight)s::int,
        retries = shards.retries + %(retries)s::int,
        lines_per_second = CASE counted.lines WHEN 0 THEN shards.lines_per_second ELSE
            counted.lines / 60.0 + shards.lines_per_second * coalesce(exp(-least(60, greatest(0,
                extract(epoch FROM clock_timestamp() - shards.lines_per_second_at) / 60
            ))::float8), 0) END,
        lines_per_second_at = CASE counted.lines WHEN 0 THEN shards.lines_per_second_at
            ELSE clock_timestamp() END
    FROM lease, counted
    WHERE shards.pk = lease.pk
    RETURNING (
        SELECT CASE WHEN status = 'in_progress' AND paused_at IS NOT NULL THEN 'paused' ELSE status END
        FROM batches WHERE batches.pk = shards.batch_pk
    )
"""

_PAUSED = "paused"


# One answer may be as long as 64 MB (embeddings, say), and one message to Postgres at most 1 GB.
_WRITE_BYTES = 8 * 1024 * 1024
_BEHIND_BYTES = 2 * _WRITE_BYTES


class Recorder:
    """Gathers a shard's results and writes them every `record_seconds` or `record_rows`.

    The same write renews the lease, also with nothing to record, and brings the batch's status back:
    `on_status` is called when it is no longer `in_progress`, `on_paused` while it is paused, `on_lost`
    when the lease is gone. Results that cannot be written for a whole lease are given up only if
    `may_give_up` says so, or the batch waits to be closed.

    It also brings `in_flight()` and `retries`, which only the worker knows, to where they can be asked
    for; of a write whose commit was in doubt, retries may count twice.
    """

    def __init__(
        self,
        database: Database,
        shard: ClaimedShard,
        *,
        settings: RunSettings,
        on_status: Callable[[BatchStatus], None],
        on_lost: Callable[[], None],
        may_give_up: Callable[[], bool],
        on_paused: Callable[[], None] = lambda: None,
        in_flight: Callable[[], int] = lambda: 0,
    ) -> None:
        self._database = database
        self._shard = shard
        self._settings = settings
        self._on_status = on_status
        self._on_lost = on_lost
        self._may_give_up = may_give_up
        self._on_paused = on_paused
        self._in_flight = in_flight
        self.retries = 0
        """Calls that were made again and are not written yet; whoever makes one adds to it."""

        self.on_recorded: Callable[[Sequence[Row]], None] = lambda _: None
        """Called with the results that have become durable."""

        self._rows: list[Row] = []
        self._bytes = 0
        self._is_full = asyncio.Event()
        self._is_closing = False
        self._is_lost = False
        self._has_moved_on = False
        self._failing_since: float | None = None
        self._renewed_at = asyncio.get_running_loop().time()
        self._writer = asyncio.create_task(self._write_until_closed())

    def add(self, row: Row) -> None:
        """Take a result; it is written soon. Does not wait."""
        self._rows.append(row)
        self._bytes += len(row.line)
        if self._has_enough():
            self._is_full.set()

    @property
    def is_behind(self) -> bool:
        """Start no new call now: results cannot be written or pile up, or the lease runs out."""
        return (
            self._failing_since is not None
            or self._bytes > _BEHIND_BYTES
            or self._seconds_since(self._renewed_at) > 0.6 * self._settings.lease_seconds
        )

    async def close(self) -> None:
        """Write what is left, and join the writer: when the database is away, until it is back."""
        self._is_closing = True
        self._is_full.set()
        await self._writer

    async def _write_until_closed(self) -> None:
        try:
            while not (self._is_lost or (self._is_closing and self._has_ended())):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.record_seconds):
                        await self._is_full.wait()
                self._is_full.clear()
                heartbeat_seconds = self._settings.lease_seconds / 4
                if self._rows or self._seconds_since(self._renewed_at) >= heartbeat_seconds:
                    await self._try_to_write(self._next_rows())
        except Exception:
            # A fault of ours. Nobody writes any more, so nobody may call any more.
            self._on_lost()
            raise

    def _has_ended(self) -> bool:
        return not self._rows or (
            (self._may_give_up() or self._has_moved_on)
            and self._failing_since is not None
            and self._seconds_since(self._failing_since) > self._settings.lease_seconds
        )

    def _has_enough(self) -> bool:
        return len(self._rows) >= self._settings.record_rows or self._bytes >= _WRITE_BYTES

    def _seconds_since(self, moment: float) -> float:
        return asyncio.get_running_loop().time() - moment

    async def _try_to_write(self, rows: list[Row]) -> None:
        retries = self.retries
        try:
            status = await self._write(rows)
        except (SQLAlchemyError, OSError) as error:
            # Nothing was written: the statement is atomic. If its commit was in doubt, writing again
            # inserts nothing twice, and counts nothing twice.
            await self._bear_with(error, rows)
            return
        self._renewed_at = asyncio.get_running_loop().time()
        self.retries -= retries
        if rows or not self._rows:
            self._failing_since = None
        del self._rows[: len(rows)]
        self._bytes -= sum(len(row.line) for row in rows)
        if self._has_enough() or self._is_closing:
            self._is_full.set()
        if rows and status is not None:
            self.on_recorded(rows)
        if status is None:
            log.warning("shard %s: the lease is lost", self._shard.pk)
            LEASES_LOST.inc()
            self._is_lost = True
            self._on_lost()
        elif status == _PAUSED:
            self._on_paused()
        elif status != BatchStatus.IN_PROGRESS:
            self._has_moved_on = True
            self._on_status(BatchStatus(status))

    async def _bear_with(self, error: Exception, rows: list[Row]) -> None:
        if self._failing_since is None:
            self._failing_since = asyncio.get_running_loop().time()
            log.warning(
                "shard %s: could not record %s results (%s); trying until it succeeds",
                self._shard.pk,
                len(rows),
                # Postgres' own word for it: a full disk is a `DiskFull`.
                type(getattr(error, "orig", error)).__name__,
            )
        if rows:
            # The disk may be full. Then at least keep the shard: the next to take it would call its
            # lines again, and could not record them either.
            await self._try_to_write([])
            self._is_full.clear()
            await asyncio.sleep(self._settings.record_seconds)

    def _next_rows(self) -> list[Row]:
        """The oldest rows, at least one if there is any, that make up one write."""
        count = size = 0
        for row in self._rows[: 5 * self._settings.record_rows]:
            size += len(row.line)
            if count and size > _WRITE_BYTES:
                break
            count += 1
        return self._rows[:count]

    async def _write(self, rows: list[Row]) -> str | None:
        """One transaction; the batch's status or `paused`, or `None` if the lease is no longer ours."""
        values = {
            "shard_pk": self._shard.pk,
            "lease_owner": self._shard.lease_owner,
            "lease_seconds": self._settings.lease_seconds,
            "in_flight": self._in_flight(),
            "suspect_lapses": self._settings.suspect_lapses,
            "retries": self.retries,
            "line_no": [row.line_no for row in rows],
            "succeeded": [row.succeeded for row in rows],
            "line": [row.line for row in rows],
            "input_tokens": [row.usage.input_tokens for row in rows],
            "cached_tokens": [row.usage.cached_tokens for row in rows],
            "output_tokens": [row.usage.output_tokens for row in rows],
            "reasoning_tokens": [row.usage.reasoning_tokens for row in rows],
            "total_tokens": [row.usage.total_tokens for row in rows],
            "seconds": [row.seconds for row in rows],
        }
        pass_failpoint(Failpoint.RECORD_BEFORE_WRITE)
        async with self._database.statement() as session:
            connection = await session.connection()
            recorded = await connection.exec_driver_sql(_RECORD, values)
            status: str | None = recorded.scalar_one_or_none()
        pass_failpoint(Failpoint.RECORD_WRITTEN)
        return status
