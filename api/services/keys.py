"""Keys in the database: made, listed, revoked; and whose is this one?"""

import logging
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, func, insert, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from models.database import Database
from models.ids import new_key_id
from models.keys import is_key, lookup_of, new_key
from models.project import ApiKey, Caller, Project

log = logging.getLogger(__name__)

_HOW_TO_MAKE_ONE = "make one with `overnight keys create --project NAME`, or set OVERNIGHT_API_KEY"
_USE_IS_NOTED_EVERY = timedelta(minutes=1)


async def find(database: Database, key: str) -> Caller | None:
    """The project that a key opens; `None` if it is unknown, revoked or expired.

    Asked at every request, so that a revocation counts at once.
    """
    lookup = lookup_of(key)
    if lookup is None:
        return None
    is_due = or_(
        ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - _USE_IS_NOTED_EVERY
    )
    async with database.statement() as session:
        row = (
            await session.execute(
                select(ApiKey.pk, ApiKey.salt, ApiKey.digest, Project.pk, Project.id, is_due)
                .join(Project, Project.pk == ApiKey.project_pk)
                .where(ApiKey.lookup == lookup, is_open(), Project.archived_at.is_(None))
            )
        ).one_or_none()
        if row is None:
            return None
        key_pk, salt, digest, project_pk, project_id, use_is_due = row
        if not is_key(key, salt=salt, digest=digest):
            return None
        if use_is_due:
            await session.execute(
                update(ApiKey)
                .where(ApiKey.pk == key_pk, is_due)
                .values(last_used_at=func.now())
                .execution_options(synchronize_session=False)
            )
    return Caller(project_pk, project_id)


async def any_opens(database: Database) -> bool:
    """Whether there is a key that opens a project just now."""
    async with database.statement() as session:
        found = await session.scalar(
            select(ApiKey.pk)
            .join(Project, Project.pk == ApiKey.project_pk)
            .where(is_open(), Project.archived_at.is_(None))
            .limit(1)
        )
    return found is not None


async def warn_if_none_opens(database: Database) -> None:
    """Say in the log how to make a key, if there is none. A database that is away is no trouble here."""
    try:
        if not await any_opens(database):
            log.warning("no key opens this API yet: %s", _HOW_TO_MAKE_ONE)
    except (SQLAlchemyError, OSError):
        return


async def create(
    database: Database, project: Project, *, name: str = "", life: timedelta | None = None
) -> tuple[str, ApiKey]:
    """Make a key of a project: its text, which nobody can ever tell again, and what is kept of it."""
    key = new_key()
    async with database.begin() as session:
        kept = await session.scalar(
            insert(ApiKey)
            .values(
                id=new_key_id(),
                project_pk=project.pk,
                name=name,
                lookup=key.lookup,
                salt=key.salt,
                digest=key.digest,
                hint=key.hint,
                expires_at=None if life is None else func.now() + life,
            )
            .returning(ApiKey)
        )
    assert kept is not None  # noqa: S101  # an INSERT returns its row
    return key.text, kept


async def list_(
    database: Database, project: Project | None = None
) -> Sequence[tuple[ApiKey, Project, bool]]:
    """All keys, or those of one project, oldest first; and whether each opens its project just now."""
    opens = is_open() & Project.archived_at.is_(None)
    statement = (
        select(ApiKey, Project, opens)
        .join(Project, Project.pk == ApiKey.project_pk)
        .order_by(Project.name, ApiKey.pk)
    )
    if project is not None:
        statement = statement.where(Project.pk == project.pk)
    async with database.begin() as session:
        return [(key, of, bool(is_good)) for key, of, is_good in await session.execute(statement)]


async def revoke(database: Database, key_id: str) -> ApiKey | None:
    """Let a key open nothing any more, from now on; `None` if there is none with this id.

    One that was revoked before keeps the time of the first.
    """
    async with database.begin() as session:
        revoked: ApiKey | None = await session.scalar(
            update(ApiKey)
            .where(ApiKey.id == key_id)
            .values(revoked_at=func.coalesce(ApiKey.revoked_at, func.now()))
            .returning(ApiKey)
        )
    return revoked


def is_open() -> ColumnElement[bool]:
    """The condition that a key is neither revoked nor expired."""
    return ApiKey.revoked_at.is_(None) & or_(
        ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()
    )
