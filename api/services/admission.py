"""Refusing what plainly cannot be done: for operators who ask for it (`OVERNIGHT_REFUSE_HOPELESS`).

Promises: nothing is refused on a guess. The rate is the one that is measured, of the batch's model over all
projects, by workers that have been at it for a minute; without it, or without a model that can be read
from the input's first line, every batch is taken.
"""

from datetime import timedelta

import orjson
from sqlalchemy import func, select

from api.services.progress import RATE_SECONDS, lines_per_second_now
from models import Batch, File, Shard
from models.database import Database
from models.errors import BatchHopeless, InputUnreadable
from models.ids import could_be_id
from models.lifecycle import BatchStatus
from models.project import Caller
from models.queries import file_is_visible
from models.storage import read_range

_SETTLED_SECONDS = RATE_SECONDS * 1.582
"""Lines done by the rate, once workers have been at it for so long as the mean looks back.

At r lines a second, after t seconds r * t lines are done, and the mean says r * (1 - exp(-t / 60)).
"""


async def judge(
    database: Database, caller: Caller, *, input_file_id: str, window: timedelta
) -> BatchHopeless | None:
    """The refusal of a batch that would end after its window, if that can be told.

    Only the lines before it count, for nobody has counted its own yet.
    """
    model = await _model_of(database, caller, input_file_id)
    if model is None:
        return None
    is_before = (Batch.expires_at <= func.now() + window) & Batch.paused_at.is_(None)
    left = Shard.size - Shard.succeeded - Shard.failed
    statement = (
        select(
            func.coalesce(func.sum(left).filter(is_before), 0),
            func.coalesce(func.sum(Shard.succeeded + Shard.failed), 0),
            lines_per_second_now(),
        )
        .select_from(Batch)
        .join(Shard, Shard.batch_pk == Batch.pk)
        .where(Batch.status == BatchStatus.IN_PROGRESS, Batch.model == model)
    )
    async with database.statement() as session:
        lines, done, rate = (await session.execute(statement)).one()
    if rate == 0 or done < rate * _SETTLED_SECONDS or lines <= rate * window.total_seconds():
        return None
    return BatchHopeless(model, lines=lines, lines_per_second=rate, window=window)


async def _model_of(database: Database, caller: Caller, file_id: str) -> str | None:
    """The model that the first line of the input names, if it can be read so early."""
    if not could_be_id(file_id):
        return None
    async with database.statement() as session:
        visible = select(File).where(File.id == file_id, file_is_visible(caller.project_pk))
        file = await session.scalar(visible)
    if file is None:
        return None
    try:
        chunk = [piece async for piece in read_range(database, file, 0, file.chunk_bytes)]
        begin = b"".join(chunk)
        line, _, _ = begin.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
        model = orjson.loads(line)["body"]["model"]
    except (InputUnreadable, ValueError, LookupError, TypeError):
        # Of a line that is longer than a chunk there is only the beginning. Bad lines have a judge.
        return None
    return model if isinstance(model, str) and "\0" not in model else None
