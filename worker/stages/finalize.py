"""Stage 4: write the output and the error file, and close the batch.

Promises: the files, their ids, the final counts, the usage and the final status appear in one
transaction, which also drops the result rows; every input line is in exactly one of the two files,
once; an id is published only for a file that has a line. If the process dies here, nothing of it
was seen, and it is done again; if that goes on, with longer and longer pauses, but without an end, for
there are results to deliver.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from models.batch import Batch
from models.errors import InputUnreadable
from models.failpoints import Failpoint, pass_failpoint
from models.file import File, FileStatus
from models.history import history_of
from models.ids import new_file_id, request_id
from models.lifecycle import BatchStatus, ShardState
from models.lines import BATCH_CANCELLED, BATCH_EXPIRED, custom_id_of, render_failure
from models.logline import bind_ids
from models.queries import advance
from models.result import Result
from models.shard import Shard
from models.storage import CHUNK_BYTES, ChunkEncoder, insert_chunks, read_places
from models.tracing import span
from worker.lease import claim_batch, release_batch, renew_batch, rest_batch
from worker.runtime import Runtime
from worker.stages.notify import ring_if_due

log = logging.getLogger(__name__)

_PAGE_BYTES = 4 * 1024 * 1024
_PAGE_ROWS = 5000


async def finalize_batch(runtime: Runtime, batch_pk: int) -> None:
    """Finish a batch whose lines are done, whose window has closed, or that was cancelled."""
    batch = await _claim(runtime, batch_pk)
    if batch is None:
        return
    bind_ids(batch=batch.id)
    pass_failpoint(Failpoint.FINALIZE_CLAIMED)
    try:
        async with _keeping_lease(runtime, batch):
            with span("finalize", parent=batch.traceparent, batch=batch.id):
                status = await _write_and_close(runtime, batch)
    except Exception as error:
        log.error("batch %s: try %s to finish it failed", batch.id, batch.tries)  # noqa: TRY400
        with contextlib.suppress(Exception):
            await rest_batch(runtime.database, batch_pk, error, owner=runtime.owner)
        raise
    except BaseException:
        # The next bell need not wait for the lease to lapse.
        with contextlib.suppress(Exception):
            await release_batch(runtime.database, batch_pk, owner=runtime.owner)
        raise
    pass_failpoint(Failpoint.FINALIZE_DONE)
    log.info("batch %s: %s", batch.id, status or "no longer ours to finalize")
    if status is not None:
        await ring_if_due(runtime)


async def _claim(runtime: Runtime, batch_pk: int) -> Batch | None:
    """Take the batch, if it is time for this stage and nobody else is at it."""
    async with runtime.database.begin() as session:
        if await _is_at_work(session, batch_pk):
            return None
        return await claim_batch(
            session,
            batch_pk,
            BatchStatus.FINALIZING,
            BatchStatus.CANCELLING,
            owner=runtime.owner,
            lease_seconds=runtime.run_settings.lease_seconds,
        )


async def _is_at_work(session: AsyncSession, batch_pk: int, *, locking: bool = False) -> bool:
    """Whether some worker holds a live lease on the batch's lines; with `locking`, none can change."""
    leases = (
        select((Shard.state == ShardState.RUNNING) & (Shard.lease_until > func.clock_timestamp()))
        .where(Shard.batch_pk == batch_pk)
        .order_by(Shard.pk)
    )
    return any(await session.scalars(leases.with_for_update() if locking else leases))


@contextlib.asynccontextmanager
async def _keeping_lease(runtime: Runtime, batch: Batch) -> AsyncGenerator[None]:
    """Renew the batch's lease, on a connection of its own, while the block runs."""
    lease_seconds = runtime.run_settings.lease_seconds

    async def renew() -> None:
        while True:
            await asyncio.sleep(lease_seconds / 4)
            # Losing it is noticed by the guard of the final write.
            with contextlib.suppress(Exception):
                await renew_batch(
                    runtime.database, batch, owner=runtime.owner, lease_seconds=lease_seconds
                )

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await renewing


async def _write_and_close(runtime: Runtime, batch: Batch) -> BatchStatus | None:
    """Everything in one transaction; `None` if the batch turned out not to be ours any more."""
    async with runtime.database.begin() as session:
        # A worker that lost touch, or claimed a shard while the batch moved on, must not add a result
        # to what is being written: it waits here, and then finds its shard gone.
        if await _is_at_work(session, batch.pk, locking=True):
            await release_batch(runtime.database, batch.pk, owner=runtime.owner)
            return None
        pages, answered = await _plan(session, batch.pk)
        retention = (
            batch.output_expires_after_seconds or runtime.control_settings.output_retention_seconds
        )
        output = _OutputFile(session, batch, f"{batch.id}_output.jsonl", retention)
        errors = _OutputFile(session, batch, f"{batch.id}_error.jsonl", retention)
        async for succeeded, line in _results(session, batch.pk, pages):
            await (output if succeeded else errors).write(line)
            pass_failpoint(Failpoint.FINALIZE_WRITING_ANSWERED)
        missing = await _missing_places(session, batch, answered)
        status = _final_status(batch, has_missing=bool(missing))
        async for line in _unanswered_lines(runtime, batch, status, missing):
            await errors.write(line)
            pass_failpoint(Failpoint.FINALIZE_WRITING_UNANSWERED)
        output_file_id = await output.close()
        pass_failpoint(Failpoint.FINALIZE_CLOSING_OUTPUT)
        error_file_id = await errors.close()
        pass_failpoint(Failpoint.FINALIZE_CLOSING_ERRORS)
        totals = await _totals(session, batch.pk)
        retries = await _retries(session, batch.pk)
        history = await _history(session, batch)
        for first, last in pages:
            # Page by page: many gigabytes in one statement would outlast its time limit, for ever.
            await session.execute(
                delete(Result).where(
                    Result.batch_pk == batch.pk, Result.line_no.between(first, last)
                )
            )
        pass_failpoint(Failpoint.FINALIZE_DROPPING_RESULTS)
        await session.execute(delete(Shard).where(Shard.batch_pk == batch.pk))
        pass_failpoint(Failpoint.FINALIZE_DROPPING_SHARDS)
        # Last, for it locks the batch's row, and the lease could not be renewed while rows are removed.
        closed = await advance(
            session,
            batch.pk,
            status,
            Batch.lease_owner == runtime.owner,
            output_file_id=output_file_id,
            error_file_id=error_file_id,
            completed=totals.completed,
            failed=totals.failed,
            usage=totals.usage,
            retries=retries,
            history=history,
        )
        pass_failpoint(Failpoint.FINALIZE_MOVING)
        if not closed:
            await session.rollback()
            return None
    return status


def _final_status(batch: Batch, *, has_missing: bool) -> BatchStatus:
    if batch.status == BatchStatus.CANCELLING:
        return BatchStatus.CANCELLED
    return BatchStatus.EXPIRED if has_missing else BatchStatus.COMPLETED


async def _plan(session: AsyncSession, batch_pk: int) -> tuple[list[tuple[int, int]], set[int]]:
    """Ranges of line numbers whose results fit into memory together, and all answered lines."""
    rows = await session.execute(
        select(Result.line_no, func.octet_length(Result.line))
        .where(Result.batch_pk == batch_pk)
        .order_by(Result.line_no)
    )
    pages: list[tuple[int, int]] = []
    answered: set[int] = set()
    size = count = first = 0
    for line_no, length in rows:
        if count and (size + length > _PAGE_BYTES or count == _PAGE_ROWS):
            pages.append((first, line_no - 1))
            size = count = 0
        if not count:
            first = line_no
        size, count = size + length, count + 1
        answered.add(line_no)
    if count:
        pages.append((first, max(answered)))
    return pages, answered


async def _results(
    session: AsyncSession, batch_pk: int, pages: list[tuple[int, int]]
) -> AsyncIterator[tuple[bool, bytes]]:
    for first, last in pages:
        rows = await session.execute(
            select(Result.succeeded, Result.line)
            .where(Result.batch_pk == batch_pk, Result.line_no.between(first, last))
            .order_by(Result.line_no)
        )
        for succeeded, line in rows:
            yield succeeded, line


async def _missing_places(
    session: AsyncSession, batch: Batch, answered: set[int]
) -> list[tuple[int, int, int]]:
    """Where the lines without a result are."""
    if len(answered) == batch.total:
        return []
    rows = await session.execute(
        select(Shard.line_numbers, Shard.offsets, Shard.lengths).where(Shard.batch_pk == batch.pk)
    )
    places = [
        place
        for columns in rows
        for place in zip(*columns, strict=True)
        if place[0] not in answered
    ]
    # In file order, so that neighbours are read together.
    return sorted(places, key=lambda place: place[1])


async def _unanswered_lines(
    runtime: Runtime, batch: Batch, status: BatchStatus, places: list[tuple[int, int, int]]
) -> AsyncIterator[bytes]:
    """An error line for each line that never ran, with the custom id from the input."""
    if not places:
        return
    code, message = BATCH_CANCELLED if status is BatchStatus.CANCELLED else BATCH_EXPIRED
    async with runtime.database.begin() as session:
        file = await session.get_one(File, batch.input_file_pk)
    left = iter(places)
    try:
        async for line_no, raw in read_places(runtime.database, file, places):
            next(left)
            yield _failure(batch, line_no, custom_id_of(raw), code, message)
    except InputUnreadable as error:
        # Bytes of the input are gone. What was answered must be delivered all the same.
        log.error("batch %s: %s", batch.id, error)  # noqa: TRY400  # the message says it all
        for line_no, _, _ in left:
            yield _failure(batch, line_no, "", code, message)


def _failure(batch: Batch, line_no: int, custom_id: str, code: str, message: str) -> bytes:
    return render_failure(
        request_id=request_id(batch.id, line_no), custom_id=custom_id, code=code, message=message
    )


@dataclass(frozen=True, slots=True)
class _Totals:
    completed: int
    failed: int
    usage: dict[str, int]


async def _totals(session: AsyncSession, batch_pk: int) -> _Totals:
    tokens = [
        Result.input_tokens,
        Result.cached_tokens,
        Result.output_tokens,
        Result.reasoning_tokens,
        Result.total_tokens,
    ]
    row = (
        await session.execute(
            select(
                func.count().filter(Result.succeeded),
                func.count().filter(~Result.succeeded),
                *(func.coalesce(func.sum(column), 0) for column in tokens),
            ).where(Result.batch_pk == batch_pk)
        )
    ).one()
    completed, failed, *sums = row
    usage = {column.key: int(total) for column, total in zip(tokens, sums, strict=True)}
    return _Totals(completed, failed, usage)


async def _retries(session: AsyncSession, batch_pk: int) -> int:
    """Calls that were made again; whatever was counted twice, no more than the column holds."""
    counted = func.coalesce(func.sum(Shard.retries), 0)
    retries = await session.scalar(
        select(func.least(counted, 2**31 - 1)).where(Shard.batch_pk == batch_pk)
    )
    return int(retries or 0)


async def _history(session: AsyncSession, batch: Batch) -> dict[str, Any] | None:
    """How the batch went. It is for the eyes only: without it the batch ends all the same."""
    if batch.in_progress_at is None:
        return None
    try:
        async with session.begin_nested():
            return await history_of(session, batch.pk, begins_at=batch.in_progress_at.timestamp())
    except SQLAlchemyError as error:
        log.warning("batch %s: no history of it is kept (%s)", batch.id, type(error).__name__)
        return None


class _OutputFile:
    """A file that comes into being with its first line, in the session's transaction."""

    def __init__(
        self, session: AsyncSession, batch: Batch, filename: str, retention_seconds: int
    ) -> None:
        self._session = session
        self._encoder = ChunkEncoder()
        self._file = File(
            id=new_file_id(),
            project_pk=batch.project_pk,
            purpose="batch_output",
            filename=filename,
            chunk_bytes=CHUNK_BYTES,
            status=FileStatus.PROCESSED.value,
            expires_at=func.now() + timedelta(seconds=retention_seconds),
        )
        self._is_open = False

    async def write(self, line: bytes) -> None:
        if not self._is_open:
            self._session.add(self._file)
            await self._session.flush()
            self._is_open = True
        await insert_chunks(self._session, self._file.pk, list(self._encoder.feed(line)))

    async def close(self) -> str | None:
        """The file's id, or `None` if no line was written."""
        if not self._is_open:
            return None
        await insert_chunks(self._session, self._file.pk, list(self._encoder.finish()))
        self._file.bytes = self._encoder.size_bytes
        await self._session.flush()
        return self._file.id
