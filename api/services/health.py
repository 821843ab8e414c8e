"""Whether the parts that the engine needs answer just now."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Literal

from pydantic import BaseModel
from sqlalchemy import select

from api.bell import Bell
from models import Batch
from models.database import Database
from worker.queue import CONTROL_QUEUE, RUN_QUEUE

log = logging.getLogger(__name__)

_SECONDS = 2.0
# It is ready without them.
_MAY_COME_LATER = {"control_workers", "run_workers", "sweep"}

Answer = Literal["ok", "unavailable"]


class Readiness(BaseModel):
    """Which parts answer. It is ready with the first three: what else is missing delays work."""

    status: Literal["ready", "not ready"]
    database: Answer
    broker: Answer
    workers: Answer
    control_workers: Answer
    run_workers: Answer
    sweep: Answer

    def parts(self) -> dict[str, str]:
        """Each part's answer by its name."""
        return self.model_dump(exclude={"status"})

    def is_whole(self) -> bool:
        """Whether every part answers."""
        return set(self.parts().values()) == {"ok"}


async def check(database: Database, *, bell: Bell) -> Readiness:
    """Ask all parts at once; each has two seconds."""
    found = await asyncio.gather(
        _answer(lambda: _has_tables(database)),
        _answer(lambda: asyncio.to_thread(bell.broker_answers)),
        _answer(lambda: asyncio.to_thread(bell.workers_answer, CONTROL_QUEUE)),
        _answer(lambda: asyncio.to_thread(bell.workers_answer, RUN_QUEUE)),
        _answer(lambda: asyncio.to_thread(bell.has_been_swept)),
    )
    has_database, has_broker, has_control, has_run, is_swept = found
    has_workers: Answer = "ok" if "ok" in {has_control, has_run} else "unavailable"
    is_ready = {has_database, has_broker, has_workers} == {"ok"}
    return Readiness(
        status="ready" if is_ready else "not ready",
        database=has_database,
        broker=has_broker,
        workers=has_workers,
        control_workers=has_control,
        run_workers=has_run,
        sweep=is_swept,
    )


def report_change(before: Readiness | None, now: Readiness, *, was_whole: bool) -> None:
    """Write into the log which parts have gone or come back since the last look.

    Until it was whole once, what may come after the first looks is no news.
    """
    for part, answer in now.parts().items():
        if part in _MAY_COME_LATER and not was_whole:
            continue
        if answer != (before.parts()[part] if before else "ok"):
            log.warning("%s: %s", part, answer)


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
