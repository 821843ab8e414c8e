"""Keys in the database: whose is this one?"""

from datetime import timedelta

from sqlalchemy import func, or_, select, update

from models.database import Database
from models.keys import is_key, lookup_of
from models.project import ApiKey, Caller, Project

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
                .where(
                    ApiKey.lookup == lookup,
                    ApiKey.revoked_at.is_(None),
                    or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()),
                    Project.archived_at.is_(None),
                )
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
