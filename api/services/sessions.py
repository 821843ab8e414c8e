"""Sessions of browsers: opened with a key, and good for as long as that key is.

Promises: neither a key nor the token of a cookie is kept, only hashes; a key that is revoked, has expired
or left the settings ends its sessions with the next request.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import delete, func, insert, or_, select

from api.services.keys import is_open
from models import ApiKey, DashboardSession, Project
from models.database import Database
from models.keys import lookup_of
from models.project import Caller

_TOKEN_BYTES = 32
_MAX_TOKEN = 64


async def open_session(
    database: Database, caller: Caller, *, key: str, is_of_settings: bool, life: timedelta
) -> str:
    """Open a session for whoever has shown this key of the caller's; its token, for the cookie.

    What sessions have ended meanwhile is taken away, so that nobody else has to.
    """
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    values: dict[str, object] = {
        "token_digest": _digest(token),
        "project_pk": caller.project_pk,
        "expires_at": func.now() + life,
    }
    if is_of_settings:
        values["settings_key_digest"] = _mark(token, key.encode())
    else:
        found = select(ApiKey.pk).where(ApiKey.lookup == lookup_of(key)).scalar_subquery()
        values["api_key_pk"] = found
    async with database.begin() as session:
        await session.execute(
            delete(DashboardSession)
            .where(DashboardSession.expires_at < func.now())
            .execution_options(synchronize_session=False)
        )
        await session.execute(insert(DashboardSession).values(values))
    return token


async def find(database: Database, token: str, *, settings_keys: Sequence[bytes]) -> Caller | None:
    """Whose session it is; `None` if there is none, or the key that opened it opens nothing any more."""
    if len(token) > _MAX_TOKEN or not token.isascii():
        return None
    async with database.statement() as session:
        row = (
            await session.execute(
                select(DashboardSession.settings_key_digest, Project.pk, Project.id)
                .join(Project, Project.pk == DashboardSession.project_pk)
                .outerjoin(ApiKey, ApiKey.pk == DashboardSession.api_key_pk)
                .where(
                    DashboardSession.token_digest == _digest(token),
                    DashboardSession.expires_at > func.now(),
                    Project.archived_at.is_(None),
                    or_(DashboardSession.api_key_pk.is_(None), is_open()),
                )
            )
        ).one_or_none()
    if row is None:
        return None
    mark, project_pk, project_id = row
    if mark is not None:
        matches = [hmac.compare_digest(mark, _mark(token, key)) for key in settings_keys]
        if not any(matches):
            return None
    return Caller(project_pk, project_id)


async def close_session(database: Database, token: str) -> None:
    """End a session; one that is not there has ended already."""
    async with database.begin() as session:
        await session.execute(
            delete(DashboardSession)
            .where(DashboardSession.token_digest == _digest(token))
            .execution_options(synchronize_session=False)
        )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _mark(token: str, key: bytes) -> bytes:
    return hmac.digest(token.encode(), key, "sha256")
