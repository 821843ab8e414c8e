"""Projects: made, listed, shown with what they use, limited, archived.

A project may be named by its name or by its id; a name that looks like an id is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api.services.keys import is_open
from models.database import Database
from models.ids import new_project_id
from models.project import ApiKey, Project
from models.quota import Enqueued, batches_last_hour, enqueued, stored_bytes


@dataclass(frozen=True, slots=True)
class Usage:
    """What a project uses just now, of what is limited."""

    batches_last_hour: int
    enqueued: Sequence[Enqueued]
    stored_bytes: int


async def find(database: Database, name: str) -> Project | None:
    """The project of this name or id, archived or not."""
    async with database.begin() as session:
        return await _find(session, name)


async def find_or_create(
    database: Database, name: str, *, weight: float = 1.0
) -> tuple[Project, bool]:
    """The project of this name or id, made if it is new; and whether it is. Two at once make one."""
    async with database.begin() as session:
        # Looked for first: a number of the sequence is used up by every try to insert.
        found = await _find(session, name)
        if found is not None:
            return found, False
        made = await session.scalar(
            insert(Project)
            .values(id=new_project_id(), name=name, weight=weight)
            .on_conflict_do_nothing(index_elements=[Project.name])
            .returning(Project)
        )
        if made is not None:
            return made, True
        found = await _find(session, name)
    assert found is not None  # noqa: S101  # projects are never removed
    return found, False


async def list_(database: Database) -> Sequence[tuple[Project, int]]:
    """All projects, oldest first, each with the number of its keys that are not revoked or expired."""
    count = (
        select(func.count())
        .select_from(ApiKey)
        .where(ApiKey.project_pk == Project.pk, is_open())
        .scalar_subquery()
    )
    async with database.begin() as session:
        rows = await session.execute(select(Project, count).order_by(Project.pk))
        return [(project, int(keys)) for project, keys in rows]


async def usage_of(database: Database, project: Project) -> Usage:
    """What a project uses just now."""
    async with database.begin() as session:
        return Usage(
            batches_last_hour=await batches_last_hour(session, project.pk),
            enqueued=await enqueued(session, project.pk),
            stored_bytes=await stored_bytes(session, project.pk),
        )


async def set_limits(
    database: Database, project: Project, values: Mapping[str, float | None]
) -> Project:
    """Change the weight and some limits, by their columns' names; a null is the settings' limit."""
    return await _change(database, project, values)


async def archive(database: Database, project: Project) -> Project:
    """Let no key open a project any more. Its batches end as they would; nothing of it is removed."""
    archived_at = func.coalesce(Project.archived_at, func.now())
    return await _change(database, project, {"archived_at": archived_at})


async def restore(database: Database, project: Project) -> Project:
    """Let its keys open an archived project again."""
    return await _change(database, project, {"archived_at": None})


async def _change(database: Database, project: Project, values: Mapping[str, object]) -> Project:
    async with database.begin() as session:
        changed: Project | None = await session.scalar(
            update(Project).where(Project.pk == project.pk).values(**values).returning(Project)
        )
    assert changed is not None  # noqa: S101  # projects are never removed
    return changed


async def _find(session: AsyncSession, name: str) -> Project | None:
    found: Project | None = await session.scalar(
        select(Project).where(or_(Project.name == name, Project.id == name))
    )
    return found
