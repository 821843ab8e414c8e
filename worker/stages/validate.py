"""Stage 1: check every line of the input; then cut it into shards, or fail the batch with all faults.

Promises: one bad line fails the whole batch and nothing runs; faults are listed in line order, with
their line numbers; a batch that was cancelled meanwhile is left alone. If the process dies here, the
batch is still `validating` and is checked again from the start.
"""

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import islice

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from models.batch import Batch
from models.errors import EnqueuedLimitReached, InputUnreadable, LeaseLost
from models.file import File
from models.ids import ORGANIZATION_ID
from models.lifecycle import BatchStatus
from models.lines import Endpoint, LineChecker, LineError
from models.queries import advance, file_is_visible
from models.storage import LineTooLong, PlacedLine, read_lines
from worker.lease import claim_batch, renew_batch
from worker.queue import RUN_WINDOW
from worker.runtime import Runtime
from worker.stages.notify import ring_if_due
from worker.stages.shard import ShardCutter, start_batch

log = logging.getLogger(__name__)


async def validate_batch(runtime: Runtime, batch_pk: int) -> None:
    """Validate a batch, if it still waits for that and nobody else is at it."""
    async with runtime.database.begin() as session:
        batch = await claim_batch(
            session,
            batch_pk,
            BatchStatus.VALIDATING,
            owner=runtime.owner,
            lease_seconds=runtime.run_settings.lease_seconds,
        )
        if batch is None:
            return
        file = await _take_input(session, batch)
    if file is None:
        await _fail(runtime, batch, [_no_such_file(batch.input_file_id)])
        return
    checker = LineChecker(Endpoint(batch.endpoint))
    cutter = ShardCutter(
        lines=runtime.validate_settings.shard_lines,
        size_bytes=runtime.validate_settings.shard_bytes,
    )
    try:
        errors = await _check(runtime, batch, file, checker, cutter)
    except LeaseLost:
        log.info("batch %s: no longer ours to validate", batch.id)
        return
    if errors:
        await _fail(runtime, batch, errors)
        return
    try:
        started = await start_batch(
            runtime.database,
            batch,
            model=checker.model,
            tokens=checker.prompt_tokens,
            cutter=cutter,
            settings=runtime.validate_settings,
        )
    except EnqueuedLimitReached as error:
        await _fail(runtime, batch, [LineError("token_limit_exceeded", str(error))])
        return
    if started:
        log.info("batch %s: %s lines in %s shards", batch.id, cutter.total, len(cutter.shards))
        await runtime.ring(runtime.doorbell.ring_run, min(len(cutter.shards), RUN_WINDOW))


async def _take_input(session: AsyncSession, batch: Batch) -> File | None:
    """The input file, pinned to the batch so that its bytes stay; `None` if it cannot be one."""
    file = await session.scalar(
        select(File)
        .where(
            File.id == batch.input_file_id,
            File.purpose == "batch",
            file_is_visible(batch.project_pk),
        )
        # A purge of the file waits, and then sees that a batch needs it.
        .with_for_update(read=True)
    )
    if file is not None:
        batch.input_file_pk = file.pk
        await session.flush()
    return file


async def _check(
    runtime: Runtime, batch: Batch, file: File, checker: LineChecker, cutter: ShardCutter
) -> list[LineError]:
    settings = runtime.validate_settings
    errors: list[LineError] = []
    try:
        async for lines in _renewing(
            runtime,
            batch,
            read_lines(runtime.database, file, max_line_bytes=settings.max_line_bytes),
        ):
            for line_no, offset, raw in lines:
                error = checker.check(raw, line_no) or _model_fault(runtime, checker, line_no)
                if error is not None:
                    errors.append(error)
                cutter.add(line_no, offset, len(raw))
            if cutter.total > settings.max_lines:
                return [_too_many_lines(settings.max_lines)]
            if checker.embedding_inputs > settings.max_embedding_inputs:
                return [_too_many_inputs(settings.max_embedding_inputs)]
            if len(errors) >= settings.max_batch_errors:
                return errors[: settings.max_batch_errors]
    except LineTooLong as error:
        errors.append(_too_long(error.line_no, settings.max_line_bytes))
    except InputUnreadable as error:
        log.warning("batch %s: %s", batch.id, error)
        return [LineError("invalid_request", "The input file could not be read.", "file_id")]
    if cutter.total == 0 and not errors:
        return [_EMPTY]
    return errors or _faults_without_model(runtime, checker, cutter)


def _model_fault(runtime: Runtime, checker: LineChecker, line_no: int) -> LineError | None:
    """What keeps the batch's model from every server, if anything does: each line names it, or none."""
    if checker.model is None:
        return None
    found = runtime.router.upstreams.find(checker.endpoint, checker.model)
    return replace(found, line=line_no) if isinstance(found, LineError) else None


def _faults_without_model(
    runtime: Runtime, checker: LineChecker, cutter: ShardCutter
) -> list[LineError]:
    """The faults of lines none of which names a model, if there is no server for such."""
    if checker.model is not None:
        return []
    found = runtime.router.upstreams.find(checker.endpoint, None)
    if not isinstance(found, LineError):
        return []
    most = runtime.validate_settings.max_batch_errors
    return [replace(found, line=line_no) for line_no in islice(cutter.line_numbers(), most)]


async def _renewing(
    runtime: Runtime, batch: Batch, blocks: AsyncIterator[list[PlacedLine]]
) -> AsyncIterator[list[PlacedLine]]:
    """The same blocks, with the lease renewed between them; `LeaseLost` when it cannot be."""
    lease_seconds = runtime.run_settings.lease_seconds
    loop_time = runtime.clock
    renewed_at = loop_time()
    async for block in blocks:
        yield block
        if loop_time() - renewed_at > lease_seconds / 4:
            if not await renew_batch(
                runtime.database, batch, owner=runtime.owner, lease_seconds=lease_seconds
            ):
                message = f"batch {batch.id}"
                raise LeaseLost(message)
            renewed_at = loop_time()


async def _fail(runtime: Runtime, batch: Batch, errors: list[LineError]) -> None:
    async with runtime.database.begin() as session:
        failed = await advance(
            session,
            batch.pk,
            BatchStatus.FAILED,
            Batch.lease_owner == runtime.owner,
            errors=[error.as_dict() for error in errors],
        )
    if failed:
        log.info("batch %s: failed validation with %s errors", batch.id, len(errors))
        await ring_if_due(runtime)


_EMPTY = LineError(
    "empty_file",
    "The input file is empty. Please ensure that the batch contains at least one request.",
)


def _no_such_file(file_id: str) -> LineError:
    message = (
        f"Cannot find file {file_id}, or organization {ORGANIZATION_ID} does not have access to it."
    )
    return LineError("invalid_request", message, "file_id")


def _too_many_lines(limit: int) -> LineError:
    message = (
        f"The input file contains too many requests. A batch can have at most {limit:,} requests."
    )
    return LineError("too_many_tasks", message)


def _too_many_inputs(limit: int) -> LineError:
    message = (
        f"The input file contains too many embedding inputs. A batch can have at most {limit:,}"
        " embedding inputs over all its requests."
    )
    return LineError("too_many_tasks", message)


def _too_long(line_no: int, limit: int) -> LineError:
    message = f"This line is too long. A request can have at most {limit:,} bytes."
    return LineError("line_too_long", message, None, line_no)
