"""Uploads in parts (`/v1/uploads`): announce a file, take its parts in any order and several at a time,
cancel it.

Promises: a part goes through in pieces, and counts once it is whole; what was begun and came to nothing
is removed, by the sweep if need be; no connection to the database is held while the client takes its
time. Of any number of requests that would end an upload, and the clock, one wins.
`api.services.completion` joins the parts.
"""

from collections.abc import AsyncIterator
from datetime import timedelta

from sqlalchemy import ColumnElement, case, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from api.grammar import unknown_parameter
from api.multipart import Part
from api.params import CreateUpload
from api.services.intake import discard, tidy
from api.settings import ApiSettings
from models import File, MultipartUpload, UploadPart, wire
from models.database import Database
from models.errors import (
    FileTooLarge,
    InvalidParameter,
    UploadHasEnded,
    UploadNotFound,
)
from models.failpoints import Failpoint, pass_failpoint
from models.file import FileStatus
from models.ids import could_be_id, new_part_id, new_upload_id
from models.lines import MAX_ECHO
from models.project import Caller
from models.quota import require_room
from models.storage import Upload, open_upload
from models.upload import UploadStatus

MAX_PARTS = 10_000
_ADD = "add a part to"

_IS_OVER = MultipartUpload.expires_at <= func.now()
IS_PENDING = (MultipartUpload.status == UploadStatus.PENDING) & ~_IS_OVER
# From the very second on, whether or not a sweep has been by.
_STATUS = case(
    ((MultipartUpload.status == UploadStatus.PENDING) & _IS_OVER, UploadStatus.EXPIRED.value),
    else_=MultipartUpload.status,
)


async def create(
    database: Database, caller: Caller, *, request: CreateUpload, settings: ApiSettings
) -> wire.Upload:
    """Announce an upload.

    Raises:
        FileTooLarge: a file of this purpose cannot be so large.
        StorageLimitReached: the project would store more than it may.
    """
    limit = settings.max_upload_bytes_of(request.purpose)
    if request.bytes > limit:
        raise FileTooLarge(limit, param="bytes")
    life = timedelta(seconds=settings.upload_life_seconds)
    expiry = request.expires_after
    async with database.begin() as session:
        await require_room(
            session,
            caller.project_pk,
            request.bytes,
            max_stored_bytes=settings.max_stored_bytes,
        )
        created = await session.execute(
            insert(MultipartUpload)
            .values(
                id=new_upload_id(),
                project_pk=caller.project_pk,
                filename=tidy(request.filename),
                purpose=request.purpose,
                mime_type=request.mime_type,
                bytes=request.bytes,
                file_expires_after_seconds=None if expiry is None else expiry.seconds,
                expires_at=func.now() + life,
            )
            .returning(MultipartUpload)
        )
        return wire.Upload.of(created.scalar_one())


async def add_part(
    database: Database,
    caller: Caller,
    *,
    upload_id: str,
    form: AsyncIterator[Part],
    settings: ApiSettings,
) -> wire.UploadPart:
    """Store the `data` of a form as one part.

    Raises:
        UploadNotFound: there is no such upload.
        UploadHasEnded: it takes no parts any more.
        InvalidParameter: a field is missing, unknown or wrong.
        FileTooLarge: it is larger than a part may be, or all parts are much larger than the upload.
    """
    async with database.begin() as session:
        _, status = await find(session, caller, upload_id)
    if status != UploadStatus.PENDING:
        raise UploadHasEnded(_ADD, status)
    intake = _Intake(database, caller, upload_id, settings)
    try:
        async for part in form:
            await intake.take(part)
        return await intake.register()
    except FileTooLarge as error:
        await intake.discard()
        raise FileTooLarge(error.limit_bytes, param="data") from None
    except BaseException:
        await intake.discard()
        raise


class _Intake:
    """What has arrived of one part."""

    def __init__(
        self, database: Database, caller: Caller, upload_id: str, settings: ApiSettings
    ) -> None:
        self._database = database
        self._caller = caller
        self._upload_id = upload_id
        self._settings = settings
        self._id = new_part_id()
        self._stored: Upload | None = None

    async def take(self, part: Part) -> None:
        if part.name != "data":
            if self._settings.unknown_parameters == "refuse":
                raise unknown_parameter(part.name)
            return
        if self._stored is not None:
            message = "Only one 'data' can be sent in one request."
            raise InvalidParameter(message, param="data", code="invalid_value")
        file = File(id=self._id, project_pk=self._caller.project_pk, purpose="", filename="")
        self._stored = await open_upload(self._database, file)
        limit = self._settings.max_part_bytes
        async for piece in part:
            if self._stored.size_bytes + len(piece) > limit:
                raise FileTooLarge(limit)
            await self._stored.write(piece)

    async def register(self) -> wire.UploadPart:
        """Let the part belong to its upload, if that is pending still."""
        stored = self._stored
        if stored is None:
            message = "Missing required parameter: 'data'."
            raise InvalidParameter(message, param="data", code="missing_required_parameter")
        if not stored.size_bytes:
            message = "Invalid 'data': it has no bytes."
            raise InvalidParameter(message, param="data", code="invalid_value")
        registered: list[wire.UploadPart] = []

        async def insert_part(session: AsyncSession) -> None:
            upload = await self._require_room(session, stored.size_bytes)
            created_at = await session.scalar(
                insert(UploadPart)
                .values(
                    id=self._id,
                    upload_pk=upload.pk,
                    file_pk=stored.file_pk,
                    bytes=stored.size_bytes,
                )
                .returning(UploadPart.created_at)
            )
            assert created_at is not None  # noqa: S101  # the insertion returned it
            pass_failpoint(Failpoint.PART_ADDING)
            registered.append(
                wire.UploadPart(
                    id=self._id, created_at=int(created_at.timestamp()), upload_id=upload.id
                )
            )

        await stored.publish(within=insert_part, status=FileStatus.PART)
        return registered[0]

    async def discard(self) -> None:
        if self._stored is not None:
            await discard(self._stored)

    async def _require_room(self, session: AsyncSession, size_bytes: int) -> MultipartUpload:
        upload, status = await find(session, self._caller, self._upload_id, is_locked=True)
        if status != UploadStatus.PENDING:
            raise UploadHasEnded(_ADD, status)
        parts, so_far = (
            await session.execute(
                select(func.count(), func.coalesce(func.sum(UploadPart.bytes), 0)).where(
                    UploadPart.upload_pk == upload.pk
                )
            )
        ).one()
        if parts >= MAX_PARTS:
            message = f"An upload can have at most {MAX_PARTS:,} parts."
            raise InvalidParameter(message, param="id", code="too_many_parts")
        # Which parts are meant is said at the end, and a part may come twice: a client that missed
        # the answer sends it again. Parts of no use must not pass the project's limit by much.
        limit = 2 * upload.bytes + min(upload.bytes, self._settings.max_part_bytes)
        if int(so_far) + size_bytes > limit:
            raise FileTooLarge(limit)
        return upload


async def cancel(database: Database, caller: Caller, *, upload_id: str) -> wire.Upload:
    """Cancel an upload. One that is cancelled is shown as it is, for a request that was sent again.

    Raises:
        UploadNotFound: there is no such upload.
        UploadHasEnded: it is completed or expired.
    """
    async with database.begin() as session:
        cancelled: MultipartUpload | None = await session.scalar(
            update(MultipartUpload)
            .where(_is(upload_id, caller), IS_PENDING)
            .values(status=UploadStatus.CANCELLED)
            .returning(MultipartUpload)
        )
        if cancelled is None:
            cancelled, status = await find(session, caller, upload_id)
            if status != UploadStatus.CANCELLED:
                raise UploadHasEnded("cancel", status)
        return wire.Upload.of(cancelled)


async def find(
    session: AsyncSession, caller: Caller, upload_id: str, *, is_locked: bool = False
) -> tuple[MultipartUpload, str]:
    """An upload, and what its status is at this moment."""
    statement = select(MultipartUpload, _STATUS).where(_is(upload_id, caller))
    if is_locked:
        statement = statement.with_for_update()
    found = (await session.execute(statement)).one_or_none()
    if found is None:
        raise UploadNotFound(upload_id[:MAX_ECHO])
    upload, status = found
    return upload, status


def _is(upload_id: str, caller: Caller) -> ColumnElement[bool]:
    if not could_be_id(upload_id):
        raise UploadNotFound(upload_id[:MAX_ECHO])
    return (MultipartUpload.id == upload_id) & (MultipartUpload.project_pk == caller.project_pk)
