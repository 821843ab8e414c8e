"""Completing an upload: its parts become one visible file.

Promises: the parts are read in pieces, and only if something has to be read; the file appears and the
upload ends in one transaction, so that a process may die on any line: the upload is then pending as
before, and what was written for nothing is invisible until the sweep takes it away. No lock is held
while bytes are read: whoever ends the upload first wins, and the others find it ended.
"""

import hashlib
from collections.abc import Sequence
from contextlib import aclosing

from sqlalchemy import any_, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import BigInteger, Text

from api.params import CompleteUpload
from api.services.first_line import FirstLine
from api.services.intake import discard, life_of
from api.services.multipart_uploads import IS_PENDING, find
from api.settings import ApiSettings
from models import File, MultipartUpload, UploadPart, storage, wire
from models.database import Database
from models.errors import (
    InputUnreadable,
    InvalidParameter,
    NotJsonLines,
    Unavailable,
    UploadHasEnded,
)
from models.failpoints import Failpoint, pass_failpoint
from models.file import FileStatus
from models.ids import could_be_id, new_file_id
from models.joining import fit_together, move_chunks, read_through
from models.lines import MAX_ECHO
from models.project import Caller
from models.queries import file_is_visible
from models.storage import open_upload
from models.upload import UploadStatus


async def complete(
    database: Database,
    caller: Caller,
    *,
    upload_id: str,
    request: CompleteUpload,
    settings: ApiSettings,
) -> wire.Upload:
    """Join the parts named, in this order, to a visible file.

    Asked for the same parts again, a completed upload is shown as it is: SDKs send a request again
    when its answer was lost, or took too long.

    Raises:
        UploadNotFound: there is no such upload.
        UploadHasEnded: it has ended otherwise, before or meanwhile.
        InvalidParameter: the parts are not those of this upload, or not all of it; or the checksum
            is another one.
        NotJsonLines: its purpose is batch, and the file is no such file.
    """
    async with database.begin() as session:
        # Locked, so that nobody takes the parts away between looking at it and at them.
        upload, status = await find(session, caller, upload_id, is_locked=True)
        if status == UploadStatus.PENDING:
            parts = await _find_parts(session, upload, request.part_ids)
    if status == UploadStatus.PENDING:
        try:
            completed = await _join(database, upload, parts, request, settings)
            pass_failpoint(Failpoint.COMPLETE_DONE)
            return completed
        except (InputUnreadable, Unavailable):
            # Another request may have been faster, or the clock, and the parts are gone.
            async with database.begin() as session:
                upload, status = await find(session, caller, upload_id)
            if status == UploadStatus.PENDING:
                raise
    if upload.parts_digest != _digest_of(request.part_ids):
        raise UploadHasEnded("complete", status)
    async with database.begin() as session:
        is_it = (File.pk == upload.file_pk) & file_is_visible(caller.project_pk)
        return wire.Upload.of(upload, await session.scalar(select(File).where(is_it)))


async def _find_parts(
    session: AsyncSession, upload: MultipartUpload, part_ids: Sequence[str]
) -> list[File]:
    """The hidden files of all the parts that make up an upload, in order."""
    asked = literal([each for each in part_ids if could_be_id(each)], ARRAY(Text))
    found = await session.execute(
        select(UploadPart.id, File)
        .join(File, File.pk == UploadPart.file_pk)
        .where(UploadPart.upload_pk == upload.pk, UploadPart.id == any_(asked))
    )
    files = {row.id: row.File for row in found}
    for number, part_id in enumerate(part_ids):
        if part_id not in files:
            param = f"part_ids[{number}]"
            message = (
                f"Invalid '{param}': no part of this upload has the id '{part_id[:MAX_ECHO]}'."
            )
            raise InvalidParameter(message, param=param, code="invalid_value")
    parts = [files[part_id] for part_id in part_ids]
    total = sum(part.bytes for part in parts)
    if total != upload.bytes:
        message = (
            f"Invalid 'part_ids': the parts have {total} bytes, but the upload was created for"
            f" {upload.bytes} bytes."
        )
        raise InvalidParameter(message, param="part_ids", code="invalid_value")
    return parts


async def _join(
    database: Database,
    upload: MultipartUpload,
    parts: Sequence[File],
    request: CompleteUpload,
    settings: ApiSettings,
) -> wire.Upload:
    """Make the file, and end the upload in the transaction that makes it visible."""
    life = life_of(upload.purpose, upload.file_expires_after_seconds, settings)
    made = {
        "created_at": func.now(),
        "expires_at": None if life is None else func.now() + life,
    }
    file = File(
        id=new_file_id(),
        project_pk=upload.project_pk,
        purpose=upload.purpose,
        filename=upload.filename,
    )
    # Before a copy, which takes as much room again.
    await _judge(database, upload, parts, request.md5)
    pass_failpoint(Failpoint.COMPLETE_PARTS_READ)
    if fit_together(parts):
        async with database.begin() as session:
            file.bytes, file.chunk_bytes = upload.bytes, storage.CHUNK_BYTES
            session.add(file)
            await session.flush()
            ended = await _end(session, upload, file.pk, request)
            await move_chunks(session, parts, file.pk)
            pass_failpoint(Failpoint.COMPLETE_MOVING_CHUNKS)
            await _forget(session, upload, parts)
            pass_failpoint(Failpoint.COMPLETE_FORGETTING_PARTS)
            published = await session.execute(
                update(File)
                .where(File.pk == file.pk)
                .values(made | {"status": FileStatus.PROCESSED})
                .returning(File)
                .execution_options(populate_existing=True)
            )
            return wire.Upload.of(ended, published.scalar_one())
    copy = await open_upload(database, file)
    try:
        async with aclosing(read_through(database, parts)) as pieces:
            async for piece in pieces:
                await copy.write(piece)
        ends: list[MultipartUpload] = []

        async def end(session: AsyncSession) -> None:
            ends.append(await _end(session, upload, copy.file_pk, request))

        joined = await copy.publish(within=end, **made)
        return wire.Upload.of(ends[0], joined)
    except BaseException:
        await discard(copy)
        raise


async def _judge(
    database: Database, upload: MultipartUpload, parts: Sequence[File], md5: str | None
) -> None:
    """Refuse what the parts hold if it may not become a file; read no more than that takes."""
    checksum = None if md5 is None else hashlib.md5(usedforsecurity=False)
    first_line = FirstLine()
    if upload.purpose != "batch":
        first_line.is_json_object = True
    async with aclosing(read_through(database, parts)) as pieces:
        while first_line.is_json_object is None or checksum is not None:
            piece = await anext(pieces, None)
            if piece is None:
                break
            first_line.feed(piece)
            if first_line.is_json_object is False:
                raise NotJsonLines
            if checksum is not None:
                checksum.update(piece)
    first_line.end()
    if not first_line.is_json_object:
        raise NotJsonLines
    if checksum is not None and md5 is not None and checksum.hexdigest() != md5.lower():
        message = f"Invalid 'md5': the bytes have the checksum '{checksum.hexdigest()}'."
        raise InvalidParameter(message, param="md5", code="invalid_value")


async def _end(
    session: AsyncSession, upload: MultipartUpload, file_pk: int, request: CompleteUpload
) -> MultipartUpload:
    """Complete an upload, in the transaction that publishes its file, if it is pending still."""
    ended: MultipartUpload | None = await session.scalar(
        update(MultipartUpload)
        .where(MultipartUpload.pk == upload.pk, IS_PENDING)
        .values(
            status=UploadStatus.COMPLETED,
            file_pk=file_pk,
            parts_digest=_digest_of(request.part_ids),
        )
        .returning(MultipartUpload)
        .execution_options(synchronize_session=False)
    )
    if ended is None:
        raise Unavailable("upload")
    pass_failpoint(Failpoint.COMPLETE_ENDING)
    return ended


async def _forget(session: AsyncSession, upload: MultipartUpload, parts: Sequence[File]) -> None:
    """Remove parts whose chunks have been given away."""
    pks = literal([part.pk for part in parts], ARRAY(BigInteger))
    for table in (
        delete(UploadPart).where(
            UploadPart.upload_pk == upload.pk, UploadPart.file_pk == any_(pks)
        ),
        delete(File).where(File.pk == any_(pks)),
    ):
        await session.execute(table.execution_options(synchronize_session=False))


def _digest_of(part_ids: Sequence[str]) -> bytes:
    return hashlib.sha256("\n".join(part_ids).encode()).digest()
