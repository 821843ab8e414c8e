"""The only writer of results: one a shard, in bulk, under the shard's lease.

Promises: results, counters and the lease's renewal are one statement, so they cannot disagree; a
result is counted only if its row was really inserted; a holder whose lease was taken writes nothing;
a write is joined, never cancelled; while the database is away results are kept, and tried again.
"""

import asyncio
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


class Recorder:
    """Gathers a shard's results and writes them every `record_seconds` or `record_rows`.

    The same write renews the lease, also with nothing to record, and brings the batch's status back:
    `on_status` is called when it is no longer `in_progress`, `on_lost` when the lease is gone.
    """

    def __init__(
        self,
        database: Database,
        shard: ClaimedShard,
        *,
        settings: RunSettings,
        on_status: Callable[[BatchStatus], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._database = database
        self._shard = shard
        self._settings = settings
        self._on_status = on_status
        self._on_lost = on_lost
        self._rows: list[Row] = []
        self._is_full = asyncio.Event()
        self._is_closing = False
        self._is_lost = False
        self._renewed_at = asyncio.get_running_loop().time()
        self._writer = asyncio.create_task(self._write_until_closed())

    def add(self, row: Row) -> None:
        """Take a result; it is written soon. Does not wait."""
        self._rows.append(row)
        if len(self._rows) >= self._settings.record_rows:
            self._is_full.set()

    @property
    def is_stalled(self) -> bool:
        """Whether the lease has not been renewed for long: start no new call until it is."""
        silence = asyncio.get_running_loop().time() - self._renewed_at
        return silence > 0.6 * self._settings.lease_seconds

    async def close(self) -> None:
        """Write what is left, and join the writer; at most one lease's time when the database is away."""
        self._is_closing = True
        self._is_full.set()
        await self._writer

    async def _write_until_closed(self) -> None:
        loop = asyncio.get_running_loop()
        heartbeat_seconds = self._settings.lease_seconds / 4
        while not self._is_lost:
            try:
                async with asyncio.timeout(self._settings.record_seconds):
                    await self._is_full.wait()
            except TimeoutError:
                pass
            self._is_full.clear()
            is_due = loop.time() - self._renewed_at >= heartbeat_seconds
            if self._rows or is_due:
                await self._try_to_write()
            if self._is_closing and (not self._rows or self._gave_up()):
                return

    def _gave_up(self) -> bool:
        """While closing, the database was away for a whole lease: somebody else will do these lines."""
        silence = asyncio.get_running_loop().time() - self._renewed_at
        return silence > self._settings.lease_seconds

    async def _try_to_write(self) -> None:
        rows = self._rows[: 5 * self._settings.record_rows]
        try:
            status = await self._write(rows)
        except (SQLAlchemyError, OSError) as error:
            # Nothing was written: the statement is atomic. If its commit was in doubt, writing again
            # inserts nothing twice, and counts nothing twice.
            log.warning(
                "shard %s: could not record %s results (%s); trying again",
                self._shard.pk,
                len(rows),
                type(error).__name__,
            )
            self._is_full.clear()
            await asyncio.sleep(self._settings.record_seconds)
            return
        del self._rows[: len(rows)]
        if len(self._rows) >= self._settings.record_rows:
            self._is_full.set()
        if status is None:
            log.warning("shard %s: the lease is lost", self._shard.pk)
            self._is_lost = True
            self._on_lost()
            return
        self._renewed_at = asyncio.get_running_loop().time()
        if status is not BatchStatus.IN_PROGRESS:
            self._on_status(status)

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
        async with self._database.begin() as session:
            connection = await session.connection()
            status = (await connection.exec_driver_sql(_RECORD, values)).scalar_one_or_none()
        return None if status is None else BatchStatus(status)
