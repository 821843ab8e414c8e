"""Taking in a file (`POST /v1/files`): from the parts of a form to a published file, or to nothing at all.

Promises: the file's bytes go through in pieces; it is refused as soon as it is known to be unfit;
what was begun and not published is removed; no connection to the database is held while the client
takes its time.
"""

import hashlib
import logging
from collections.abc import AsyncIterator
from datetime import timedelta

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from api.grammar import refusal_of, unknown_parameter
from api.multipart import Part
from api.params import PURPOSES, ExpiresAfter
from api.services import files
from api.services.first_line import FirstLine
from api.services.idempotency import AlreadyMade, Ticket, claim_key, ticket_for
from api.settings import ApiSettings
from models import File, wire
from models.database import Database
from models.errors import FileTooLarge, InvalidParameter, NotJsonLines
from models.ids import new_file_id
from models.lines import MAX_ECHO
from models.project import Caller
from models.queries import file_is_visible
from models.quota import Room, look_for_room, require_room
from models.storage import Upload, open_upload

log = logging.getLogger(__name__)

_EXPIRES = {"expires_after[anchor]": "anchor", "expires_after[seconds]": "seconds"}
_MAX_FILENAME = 255


async def upload(
    database: Database,
    caller: Caller,
    *,
    form: AsyncIterator[Part],
    settings: ApiSettings,
    idempotency_key: str | None = None,
) -> wire.File:
    """Store the file of a form and make it visible.

    Raises:
        InvalidParameter: a field is missing, unknown or wrong.
        FileTooLarge: the file is larger than its purpose allows.
        NotJsonLines: its purpose is batch, and it is no such file.
        StorageLimitReached: the project would store more than it may.
        IdempotencyKeyReused: the key has stood for another file.
    """
    intake = _Intake(database, caller, settings, idempotency_key)
    try:
        async for part in form:
            if part.name == "file":
                await intake.take_file(part)
            else:
                intake.take_field(part.name, await part.text())
        return wire.File.of(await intake.publish())
    except AlreadyMade as made:
        await intake.discard()
        return await files.get(database, caller, file_id=made.object_id)
    except BaseException:
        await intake.discard()
        raise


class _Intake:
    """What has arrived of one form."""

    def __init__(
        self, database: Database, caller: Caller, settings: ApiSettings, idempotency_key: str | None
    ) -> None:
        self._database = database
        self._caller = caller
        self._settings = settings
        self._purpose: str | None = None
        self._expiry: dict[str, str] = {}
        self._asked_seconds: int | None = None
        self._key = idempotency_key
        self._digest = hashlib.sha256()
        self._file: File | None = None
        self._upload: Upload | None = None
        self._first_line = FirstLine()
        self._room = Room(None)

    def take_field(self, name: str, value: str) -> None:
        if name == "purpose":
            if value not in PURPOSES:
                message = f"'{value[:MAX_ECHO]}' is not one of {list(PURPOSES)} - 'purpose'"
                raise InvalidParameter(message)
            self._purpose = value
        elif name in _EXPIRES:
            self._expiry[_EXPIRES[name]] = value
        elif self._settings.unknown_parameters == "refuse":
            raise unknown_parameter(name)

    async def take_file(self, part: Part) -> None:
        if self._upload is not None:
            message = "Only one 'file' can be uploaded in one request."
            raise InvalidParameter(message, param="file", code="invalid_value")
        file = File(
            id=new_file_id(),
            project_pk=self._caller.project_pk,
            purpose="",
            filename=tidy(part.filename),
        )
        async with self._database.begin() as session:
            self._room = await look_for_room(
                session,
                self._caller.project_pk,
                max_stored_bytes=self._settings.max_stored_bytes,
            )
        self._file = file
        self._upload = await open_upload(self._database, file)
        async for piece in part:
            if self._purpose in {None, "batch"}:
                self._first_line.feed(piece)
            self._check(self._upload.size_bytes + len(piece))
            if self._key is not None:
                self._digest.update(piece)
            await self._upload.write(piece)

    async def publish(self) -> File:
        if self._upload is None:
            raise InvalidParameter("'file' is a required property")
        if self._purpose is None:
            raise InvalidParameter("'purpose' is a required property")
        self._first_line.end()
        self._check(self._upload.size_bytes)
        self._asked_seconds = self._read_expiry()
        life = life_of(self._purpose, self._asked_seconds, self._settings)
        return await self._upload.publish(
            within=self._claim_and_require_room,
            purpose=self._purpose,
            expires_at=None if life is None else File.created_at + life,
        )

    async def _claim_and_require_room(self, session: AsyncSession) -> None:
        assert self._upload is not None  # noqa: S101  # it is being published
        assert self._file is not None  # noqa: S101  # it is being published
        await claim_key(session, self._ticket(self._file), self._file.id, is_there=self._is_there)
        await require_room(
            session,
            self._caller.project_pk,
            self._upload.size_bytes,
            max_stored_bytes=self._settings.max_stored_bytes,
        )

    def _ticket(self, file: File) -> Ticket | None:
        said = (
            (self._purpose or "").encode(),
            file.filename.encode(),
            str(self._asked_seconds).encode(),
            self._digest.digest(),
        )
        return ticket_for(self._caller, operation="files.create", key=self._key, said=said)

    async def _is_there(self, session: AsyncSession, file_id: str) -> bool:
        is_theirs = file_is_visible(self._caller.project_pk)
        found = await session.scalar(select(File.pk).where(File.id == file_id, is_theirs))
        return found is not None

    async def discard(self) -> None:
        if self._upload is not None:
            await discard(self._upload)

    def _check(self, size_bytes: int) -> None:
        limit = self._settings.max_bytes_of(self._purpose)
        if size_bytes > limit:
            raise FileTooLarge(limit)
        # An upload with a key may turn out to be a repeated one, which needs no room.
        if self._key is None:
            self._room.require(size_bytes)
        if self._purpose == "batch" and self._first_line.is_json_object is False:
            raise NotJsonLines

    def _read_expiry(self) -> int | None:
        if not self._expiry:
            return None
        try:
            # Lax: a form knows only strings.
            return ExpiresAfter.model_validate(self._expiry, strict=False).seconds
        except ValidationError as error:
            faults = error.errors(include_url=False)
            raise refusal_of(faults, under="expires_after") from None


async def discard(upload: Upload) -> None:
    """Remove what has been stored of an upload that came to nothing, or leave that to the sweep."""
    try:
        await upload.discard()
    except Exception as error:  # noqa: BLE001  # the first failure is the one to report
        log.warning("could not discard an upload: %s; the sweep will", type(error).__name__)


def life_of(
    purpose: str | None, asked_seconds: int | None, settings: ApiSettings
) -> timedelta | None:
    """How long a file lives: as it was asked for, else as its purpose has it; `None` is for good."""
    if asked_seconds is not None:
        return timedelta(seconds=asked_seconds)
    return settings.file_retention() if purpose == "batch" else None


def tidy(filename: str | None) -> str:
    """The name without folders and control characters; `upload` where nothing is left of it."""
    name = (filename or "").replace("\\", "/").rpartition("/")[2]
    visible = "".join(letter for letter in name if letter.isprintable())[:_MAX_FILENAME]
    return visible if visible.strip(". ") else "upload"
