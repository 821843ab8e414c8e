"""Files: show, list, delete, read.

What a client may see is decided by `models.queries.file_is_visible`, here and nowhere else.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime

from sqlalchemy import Select, false, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from api.params import ListFiles
from models import File, wire
from models.database import Database
from models.errors import FileNotFound, InvalidParameter, PurposeNotReadable
from models.failpoints import Failpoint, pass_failpoint
from models.file import FileStatus
from models.ids import could_be_id
from models.lines import MAX_ECHO
from models.project import Caller
from models.queries import file_is_visible
from models.storage import read_range

_FEW = 250
_UNREADABLE_PURPOSES = {"assistants", "user_data"}


async def get(database: Database, caller: Caller, *, file_id: str) -> wire.File:
    """Show a file.

    Raises:
        FileNotFound: there is no such file, or no more.
    """
    async with database.begin() as session:
        return wire.File.of(await _find(session, caller, file_id))


async def list_(database: Database, caller: Caller, *, query: ListFiles) -> wire.FileList:
    """Show a page of files.

    Raises:
        InvalidParameter: `after` names no file.
    """
    place = tuple_(File.created_at, File.pk)
    newest_first = query.order == "desc"
    statement = select(File).where(file_is_visible(caller.project_pk)).limit(query.limit + 1)
    statement = (
        statement.order_by(File.created_at.desc(), File.pk.desc())
        if newest_first
        else statement.order_by(File.created_at, File.pk)
    )
    async with database.begin() as session:
        if query.after is not None:
            cursor = await _place_of(session, caller, query.after)
            statement = statement.where(place < cursor if newest_first else place > cursor)
        if query.purpose is not None:
            # What could be no purpose is asked of nobody: Postgres refuses a NUL.
            known = could_be_id(query.purpose)
            statement = statement.where(File.purpose == query.purpose if known else false())
        found = [wire.File.of(file) async for file in _a_few_at_a_time(session, statement)]
    page = found[: query.limit]
    return wire.FileList.of(page, has_more=bool(page) and len(found) > query.limit)


async def _a_few_at_a_time(session: AsyncSession, statement: Select[File]) -> AsyncIterator[File]:
    # Ten thousand rows at once would hold up every other request for half a second.
    few = statement.execution_options(yield_per=_FEW)
    async for files in (await session.stream_scalars(few)).partitions():
        for file in files:
            yield file


async def delete(database: Database, caller: Caller, *, file_id: str) -> wire.FileDeleted:
    """Hide a file for good; its bytes go when no batch needs them.

    Raises:
        FileNotFound: there is no such file, or no more.
    """
    async with database.begin() as session:
        deleted = await session.scalar(
            update(File)
            .where(File.id == _asked(file_id), file_is_visible(caller.project_pk))
            .values(deleted_at=func.now())
            .returning(File.id)
        )
    if deleted is None:
        raise FileNotFound(file_id[:MAX_ECHO])
    pass_failpoint(Failpoint.DELETE_HIDDEN)
    return wire.FileDeleted(id=deleted)


async def open_content(database: Database, caller: Caller, *, file_id: str) -> File:
    """A file whose content may be read.

    Raises:
        FileNotFound: there is no such file, or no more.
        PurposeNotReadable: its purpose forbids it.
    """
    async with database.begin() as session:
        file = await _find(session, caller, file_id)
    if file.purpose in _UNREADABLE_PURPOSES:
        raise PurposeNotReadable(file.purpose)
    return file


def read(database: Database, file: File, start: int, stop: int) -> AsyncGenerator[bytes]:
    """The bytes `start` to `stop` of a file, in pieces."""
    return read_range(database, file, start, stop)


async def _find(session: AsyncSession, caller: Caller, file_id: str) -> File:
    found = await session.scalar(
        select(File).where(File.id == _asked(file_id), file_is_visible(caller.project_pk))
    )
    if found is None:
        raise FileNotFound(file_id[:MAX_ECHO])
    return found


async def _place_of(session: AsyncSession, caller: Caller, after: str) -> tuple[datetime, int]:
    # A deleted file keeps its place, so that a client may delete the files of a page and go on.
    row = None
    if could_be_id(after):
        statement = select(File.created_at, File.pk).where(
            File.id == after,
            File.project_pk == caller.project_pk,
            File.status == FileStatus.PROCESSED,
        )
        row = (await session.execute(statement)).one_or_none()
    if row is None:
        message = f"Invalid 'after': no file found with id '{after[:MAX_ECHO]}'."
        raise InvalidParameter(message, param="after", code="invalid_value")
    return row.created_at, row.pk


def _asked(file_id: str) -> str:
    if not could_be_id(file_id):
        raise FileNotFound(file_id[:MAX_ECHO])
    return file_id
