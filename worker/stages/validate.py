"""Stage 1: check every line of the input; then cut it into shards, or fail the batch with all faults.

Promises: one bad line fails the whole batch and nothing runs; faults are listed in line order, with
their line numbers; a batch that was cancelled meanwhile is left alone. If the process dies here, the
batch is still `validating` and is checked again from the start, a few times; then it fails.
"""

import contextlib
import logging
from collections.abc import AsyncIterator
from functools import partial

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from models.batch import Batch
from models.errors import EnqueuedLimitReached, InputUnreadable, LeaseLost
from models.failpoints import Failpoint, pass_failpoint
from models.file import File
from models.ids import ORGANIZATION_ID
from models.input_check import InputCheck, InputLimits
from models.lifecycle import BatchStatus
from models.lines import Endpoint, LineChecker, LineError
from models.logline import bind_ids
from models.queries import advance, file_is_visible
from models.reading import LineTooLong, PlacedLine
from models.storage import read_lines
from models.tracing import span
from worker.lease import claim_batch, renew_batch, rest_batch
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
    bind_ids(batch=batch.id)
    pass_failpoint(Failpoint.VALIDATE_CLAIMED)
    try:
        with span("validate", parent=batch.traceparent, batch=batch.id):
            await _validate(runtime, batch, file)
    except Exception as error:
        log.error("batch %s: try %s to validate it failed", batch.id, batch.tries)  # noqa: TRY400
        with contextlib.suppress(Exception):
            await rest_batch(runtime.database, batch.pk, error, owner=runtime.owner)
        raise


async def _validate(runtime: Runtime, batch: Batch, file: File | None) -> None:
    if batch.tries > runtime.validate_settings.validate_tries:
        await _fail(runtime, batch, [_given_up(batch.tries - 1)])
        return
    if file is None:
        await _fail(runtime, batch, [_no_such_file(batch.input_file_id)])
        return
    checker = LineChecker(
        Endpoint(batch.endpoint), with_prefixes=runtime.validate_settings.prefix_order
    )
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
    pass_failpoint(Failpoint.VALIDATE_CHECKED)
    shards = cutter.deal()
    try:
        started = await start_batch(
            runtime.database,
            batch,
            model=checker.model,
            tokens=checker.prompt_tokens,
            shards=shards,
            settings=runtime.validate_settings,
        )
    except EnqueuedLimitReached as error:
        await _fail(runtime, batch, [LineError("token_limit_exceeded", str(error))])
        return
    if started:
        log.info("batch %s: %s lines in %s shards", batch.id, cutter.total, len(shards))
        pass_failpoint(Failpoint.VALIDATE_BEFORE_BELL)
        await runtime.ring(runtime.doorbell.ring_run, min(len(shards), RUN_WINDOW))


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
    limits = InputLimits(
        lines=settings.max_lines,
        embedding_inputs=settings.max_embedding_inputs,
        line_bytes=settings.max_line_bytes,
        errors=settings.max_batch_errors,
    )
    check = InputCheck(checker, limits, partial(_model_fault, runtime, checker.endpoint))
    try:
        async for lines in _renewing(
            runtime,
            batch,
            read_lines(runtime.database, file, max_line_bytes=settings.max_line_bytes),
        ):
            pass_failpoint(Failpoint.VALIDATE_READING)
            for line_no, offset, raw in lines:
                check.take(line_no, raw)
                cutter.add(line_no, offset, len(raw), checker.prefix)
            if check.is_settled:
                break
    except LineTooLong as error:
        check.take_too_long(error.line_no)
    except InputUnreadable as error:
        log.warning("batch %s: %s", batch.id, error)
        return [LineError("invalid_request", "The input file could not be read.", "file_id")]
    return check.errors()


def _model_fault(runtime: Runtime, endpoint: Endpoint, model: str | None) -> LineError | None:
    """What keeps lines of this model from every server, if anything does."""
    found = runtime.router.upstreams.find(endpoint, model)
    return found if isinstance(found, LineError) else None


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
        pass_failpoint(Failpoint.VALIDATE_FAILING)
    if failed:
        pass_failpoint(Failpoint.VALIDATE_FAILED)
        log.info("batch %s: failed validation with %s errors", batch.id, len(errors))
        await ring_if_due(runtime)


def _given_up(tries: int) -> LineError:
    message = f"The batch engine could not validate this batch: {tries} tries ended before they were done."
    return LineError("internal_error", message)


def _no_such_file(file_id: str) -> LineError:
    message = (
        f"Cannot find file {file_id}, or organization {ORGANIZATION_ID} does not have access to it."
    )
    return LineError("invalid_request", message, "file_id")
