"""The failed lines of a batch that has ended, again, as a new batch: an extension.

Promises: the new batch's input is a file of the project like any other, with the original lines of
exactly those requests that are in the error file, as they were written; file and batch appear in one
transaction, or nothing does. Lines are copied in pieces. They are told by their place: an error
line's id is derived from the batch and the number of its line, so no line has to be parsed.

It is done in the request, as an upload is, which takes a few seconds for the largest input. If the
process dies half way, what it has copied is invisible, and the sweep removes it as a stalled upload.
"""

from datetime import timedelta

import orjson
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from api.bell import Bell, ring
from api.params import RetryBatch
from api.services import batches
from api.services.idempotency import AlreadyMade, Ticket, claim_key, find_made, ticket_for
from api.services.intake import discard
from api.settings import ApiSettings
from models import Batch, File, wire
from models.database import Database
from models.errors import (
    BatchNotChangeable,
    InputUnreadable,
    InvalidParameter,
    NothingToRetry,
)
from models.failpoints import Failpoint, pass_failpoint
from models.ids import new_batch_id, new_file_id, request_id
from models.lifecycle import FINAL, BatchStatus
from models.lines import request_id_of
from models.project import Caller
from models.queries import file_is_visible
from models.quota import require_room
from models.storage import Upload, open_upload, read_lines


async def retry(
    database: Database,
    caller: Caller,
    *,
    bell: Bell,
    batch_id: str,
    request: RetryBatch,
    settings: ApiSettings,
    idempotency_key: str | None,
) -> wire.Batch:
    """Make a new batch of the failed lines of one that has ended.

    Raises:
        BatchNotFound: there is none with this id.
        BatchNotChangeable: it has not ended, or failed before any line could.
        NothingToRetry: no line of it failed.
        InvalidParameter: its window is not allowed any more; its input or error file is gone.
        StorageLimitReached: the project would store more than it may.
        BatchRateReached: the project has created as many in the last hour as it may.
        IdempotencyKeyReused: the key has stood for another request.
    """
    async with database.begin() as session:
        batch = await batches.find(session, caller, batch_id)
    said = request.model_dump(mode="json", exclude_unset=True)
    ticket = ticket_for(
        caller,
        operation="batches.retry",
        key=idempotency_key,
        said=(batch_id.encode(), orjson.dumps(said, option=orjson.OPT_SORT_KEYS)),
    )
    made = await find_made(database, ticket)
    if made is not None:
        return await batches.get(database, caller, batch_id=made)
    if batch.status not in FINAL or batch.status == BatchStatus.FAILED:
        raise BatchNotChangeable("retry", batch.status)
    copy = _Retry(database, caller, batch, request, settings)
    failed = await copy.failed_ids()
    upload = await open_upload(database, copy.file)
    try:
        await copy.copy_lines(failed, upload)
        pass_failpoint(Failpoint.RETRY_LINES_COPIED)
        retried = await copy.publish(upload, ticket)
    except AlreadyMade as earlier:
        await discard(upload)
        return await batches.get(database, caller, batch_id=earlier.object_id)
    except BaseException:
        await discard(upload)
        raise
    pass_failpoint(Failpoint.RETRY_BEFORE_BELL)
    await ring(bell.ring_validate, retried.pk)
    return wire.Batch.of(retried)


class _Retry:
    """One retry: what it is of, and what is to come of it."""

    def __init__(
        self,
        database: Database,
        caller: Caller,
        batch: Batch,
        request: RetryBatch,
        settings: ApiSettings,
    ) -> None:
        self._database = database
        self._caller = caller
        self._batch = batch
        self._settings = settings
        self._columns = _columns(batch, request) | {
            "expires_at": func.now() + self._window(request)
        }
        self.file = File(
            id=new_file_id(),
            project_pk=caller.project_pk,
            purpose="batch",
            filename=f"{batch.id}_retry.jsonl",
        )

    def _window(self, request: RetryBatch) -> timedelta:
        word = request.completion_window or self._batch.completion_window
        windows = self._settings.windows()
        if word not in windows:
            message = windows.refusal_of(word)
            raise InvalidParameter(message, param="completion_window", code="invalid_value")
        return windows[word]

    async def failed_ids(self) -> set[bytes]:
        """The ids of the lines in the error file."""
        file_id = self._batch.error_file_id
        if file_id is None:
            raise NothingToRetry(self._batch.id)
        file = await self._visible(File.id == file_id)
        if file is None:
            raise _gone("error", file_id)
        ids: set[bytes] = set()
        try:
            async for lines in read_lines(self._database, file, max_line_bytes=file.bytes):
                ids.update(request_id_of(line.raw) for line in lines)
        except InputUnreadable:
            raise _gone("error", file_id) from None
        if not ids:
            raise NothingToRetry(self._batch.id)
        return ids

    async def copy_lines(self, failed: set[bytes], upload: Upload) -> None:
        """Write the input lines with these ids."""
        batch, left = self._batch, len(failed)
        file = await self._visible(File.pk == batch.input_file_pk)
        if file is None:
            raise _gone("input", batch.input_file_id)
        try:
            async for lines in read_lines(self._database, file, max_line_bytes=file.bytes):
                wanted = [
                    line.raw + b"\n"
                    for line in lines
                    if request_id(batch.id, line.line_no).encode() in failed
                ]
                await upload.write(b"".join(wanted))
                left -= len(wanted)
                if left == 0:
                    return
        except InputUnreadable:
            # Deleted since we looked, and purged: nothing reads the input of a batch that has ended.
            raise _gone("input", batch.input_file_id) from None
        raise _gone("input", batch.input_file_id)

    async def publish(self, upload: Upload, ticket: Ticket | None) -> Batch:
        """Let the file and the new batch appear together."""
        retried: list[Batch] = []
        batch_id = new_batch_id()

        async def add_batch(session: AsyncSession) -> None:
            await claim_key(session, ticket, batch_id)
            await require_room(
                session,
                self._caller.project_pk,
                upload.size_bytes,
                max_stored_bytes=self._settings.max_stored_bytes,
            )
            batch = await batches.add(
                session,
                self._caller,
                max_batches_per_hour=self._settings.max_batches_per_hour,
                id=batch_id,
                input_file_id=self.file.id,
                **self._columns,
            )
            pass_failpoint(Failpoint.RETRY_ADDING)
            retried.append(batch)

        expires_at = File.created_at + self._settings.file_retention()
        await upload.publish(within=add_batch, expires_at=expires_at)
        return retried[0]

    async def _visible(self, condition: ColumnElement[bool]) -> File | None:
        is_theirs = file_is_visible(self._caller.project_pk)
        async with self._database.begin() as session:
            found: File | None = await session.scalar(select(File).where(condition, is_theirs))
        return found


def _columns(batch: Batch, request: RetryBatch) -> dict[str, object]:
    """The new batch's columns: what the request does not say is as it was."""
    said = request.model_fields_set
    seconds = batch.output_expires_after_seconds
    if "output_expires_after" in said:
        expiry = request.output_expires_after
        seconds = None if expiry is None else expiry.seconds
    return {
        "endpoint": batch.endpoint,
        "completion_window": request.completion_window or batch.completion_window,
        "metadata_": request.metadata if "metadata" in said else batch.metadata_,
        "output_expires_after_seconds": seconds,
        "retry_of": batch.id,
    }


def _gone(which: str, file_id: str) -> InvalidParameter:
    message = (
        f"The {which} file '{file_id}' of this batch does not exist any more, so its failed requests"
        " cannot be retried."
    )
    return InvalidParameter(message, code="file_not_found")
