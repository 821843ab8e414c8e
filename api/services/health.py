"""Whether the parts that the engine needs answer just now."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from pydantic import BaseModel
from sqlalchemy import select

from api.bell import Bell
from models import Batch
from models.database import Database

_SECONDS = 2.0

Answer = Literal["ok", "unavailable"]


class Readiness(BaseModel):
    """Which parts answer."""

    status: Literal["ready", "not ready"]
    database: Answer
    broker: Answer
    workers: Answer


async def check(database: Database, *, bell: Bell) -> Readiness:
    """Ask all parts at once; each has two seconds."""
    found = await asyncio.gather(
        _answer(lambda: _has_tables(database)),
        _answer(lambda: asyncio.to_thread(bell.broker_answers)),
        _answer(lambda: asyncio.to_thread(bell.workers_answer)),
    )
    status: Literal["ready", "not ready"] = "ready" if set(found) == {"ok"} else "not ready"
    return Readiness(status=status, database=found[0], broker=found[1], workers=found[2])


async def _has_tables(database: Database) -> bool:
    # Not only alive: a database that nobody has migrated is of no use.
    async with database.begin() as session:
        await session.execute(select(Batch.pk).limit(1))
    return True


async def _answer(ask: Callable[[], Awaitable[bool]]) -> Answer:
    try:
        async with asyncio.timeout(_SECONDS):
            return "ok" if await ask() else "unavailable"
    except Exception:  # noqa: BLE001  # whatever it is, the part does not answer
        return "unavailable"
