"""The only writer of results: one a shard, in bulk, under the shard's lease.

Promises: results, counters and the lease's renewal are one statement, so they cannot disagree; a
result is counted only if its row was really inserted; a holder whose lease was taken writes nothing;
a write is joined, never cancelled; while the database is away results are kept, and tried again; no
write is larger than a few megabytes, unless a single result is.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from models.database import Database
from models.lifecycle import BatchStatus
from worker.answer import Usage
from worker.lease import ClaimedShard
from worker.settings import RunSettings

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A line's finished output line and what it cost."""

    line_no: int
    succeeded: bool
    line: bytes
    usage: Usage


# psycopg's binary parameters (%b) for the arrays: a quarter of the time of text ones, measured.
_RECORD = """
    WITH lease AS MATERIALIZED (
        SELECT pk, batch_pk FROM shards
        WHERE pk = %(shard_pk)s AND state = 'running' AND lease_owner = %(lease_owner)s
        FOR UPDATE
    ), inserted AS (
        INSERT INTO results (batch_pk, line_no, succeeded, line, input_tokens, cached_tokens,
                             output_tokens, reasoning_tokens, total_tokens)
        SELECT lease.batch_pk, rows.*
        FROM lease, unnest(%(line_no)b::int[], %(succeeded)b::bool[], %(line)b::bytea[],
                           %(input_tokens)b::bigint[], %(cached_tokens)b::bigint[],
                           %(output_tokens)b::bigint[], %(reasoning_tokens)b::bigint[],
                           %(total_tokens)b::bigint[]) AS rows
        ON CONFLICT DO NOTHING
        RETURNING succeeded
    ), counted AS (
        SELECT count(*) FILTER (WHERE succeeded) AS succeeded,
               count(*) FILTER (WHERE NOT succeeded) AS failed
        FROM inserted
    )
    UPDATE shards
    SET succeeded = shards.succeeded + counted.succeeded,
        failed = shards.failed + counted.failed,
        lease_until = clock_timestamp() + make_interval(secs => %(lease_seconds)s)
    FROM lease, counted
    WHERE shards.pk = lease.pk
    RETURNING (SELECT status FROM batches WHERE batches.pk = shards.batch_pk)
"""


# One answer may be as long as 64 MB (embeddings, say), and one message to Postgres at most 1 GB.
_WRITE_BYTES = 8 * 1024 * 1024
_BEHIND_BYTES = 2 * _WRITE_BYTES


class Recorder:
    """Gathers a shard's results and writes them every `record_seconds` or `record_rows`.

    The same write renews the lease, also with nothing to record, and brings the batch's status back:
    `on_status` is called when it is no longer `in_progress`, `on_lost` when the lease is gone. Results
    that cannot be written for a whole lease are given up only if `may_give_up` says so, or the batch
    waits to be closed.
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
    ) -> None:
        self._database = database
        self._shard = shard
        self._settings = settings
        self._on_status = on_status
        self._on_lost = on_lost
        self._may_give_up = may_give_up
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
        try:
            status = await self._write(rows)
        except (SQLAlchemyError, OSError) as error:
            # Nothing was written: the statement is atomic. If its commit was in doubt, writing again
            # inserts nothing twice, and counts nothing twice.
            await self._bear_with(error, rows)
            return
        self._renewed_at = asyncio.get_running_loop().time()
        if rows or not self._rows:
            self._failing_since = None
        del self._rows[: len(rows)]
        self._bytes -= sum(len(row.line) for row in rows)
        if self._has_enough() or self._is_closing:
            self._is_full.set()
        if status is None:
            log.warning("shard %s: the lease is lost", self._shard.pk)
            self._is_lost = True
            self._on_lost()
        elif status is not BatchStatus.IN_PROGRESS:
            self._has_moved_on = True
            self._on_status(status)

    async def _bear_with(self, error: Exception, rows: list[Row]) -> None:
        if self._failing_since is None:
            self._failing_since = asyncio.get_running_loop().time()
            log.warning(
                "shard %s: could not record %s results (%s); trying until it succeeds",
                self._shard.pk,
                len(rows),
                type(error).__name__,
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

    async def _write(self, rows: list[Row]) -> BatchStatus | None:
        """One transaction; the batch's status, or `None` if the lease is no longer ours."""
        values = {
            "shard_pk": self._shard.pk,
            "lease_owner": self._shard.lease_owner,
            "lease_seconds": self._settings.lease_seconds,
            "line_no": [row.line_no for row in rows],
            "succeeded": [row.succeeded for row in rows],
            "line": [row.line for row in rows],
            "input_tokens": [row.usage.input_tokens for row in rows],
            "cached_tokens": [row.usage.cached_tokens for row in rows],
            "output_tokens": [row.usage.output_tokens for row in rows],
            "reasoning_tokens": [row.usage.reasoning_tokens for row in rows],
            "total_tokens": [row.usage.total_tokens for row in rows],
        }
        async with self._database.statement() as session:
            connection = await session.connection()
            status = (await connection.exec_driver_sql(_RECORD, values)).scalar_one_or_none()
        return None if status is None else BatchStatus(status)
