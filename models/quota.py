"""What a project may use: batches an hour, enqueued requests and prompt tokens, stored bytes.

Promises: two requests at once cannot both have the last of it, for whoever asks holds the project's
row until its own transaction ends. A limit that is null in that row is the given one, that of the
settings; a limit of 0 is none.

The row is held FOR NO KEY UPDATE: what is inserted for a project meanwhile (its foreign key holds the
row, too) does not wait, and where there is no limit nothing is held at all.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVarTuple

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from models.batch import Batch
from models.errors import BatchRateReached, EnqueuedLimitReached, StorageLimitReached
from models.file import File
from models.lifecycle import BatchStatus
from models.project import Project
from models.queries import file_is_visible
from models.upload import MultipartUpload

Limits = TypeVarTuple("Limits")

_WINDOW = timedelta(hours=1)
_ENQUEUED = (BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING)


async def require_batch_allowed(
    session: AsyncSession, project_pk: int, *, max_batches_per_hour: int
) -> None:
    """Let a project create one more batch, in the transaction that inserts it.

    Every batch of the last hour counts, failed and cancelled ones too.

    Raises:
        BatchRateReached: the last hour has seen as many as it may.
    """
    limit = func.coalesce(Project.max_batches_per_hour, max_batches_per_hour)
    allowed = await session.scalar(_held(select(limit), project_pk, limit > 0))
    if allowed is None:
        return
    # The batch that has to leave the window before the next one may come, if there is one. Read from
    # the index alone; `now()`, and not the clock, because an index is not searched for a moving time.
    ends_at = Batch.created_at + _WINDOW
    wait_seconds = await session.scalar(
        select(func.extract("epoch", ends_at - func.clock_timestamp()))
        .where(Batch.project_pk == project_pk, Batch.created_at > func.now() - _WINDOW)
        .order_by(Batch.created_at.desc())
        .offset(allowed - 1)
        .limit(1)
    )
    if wait_seconds is not None:
        raise BatchRateReached(allowed, wait_seconds=float(wait_seconds))


async def batches_last_hour(session: AsyncSession, project_pk: int) -> int:
    """How many batches a project has created in the last hour."""
    count = select(func.count()).where(
        Batch.project_pk == project_pk, Batch.created_at > func.now() - _WINDOW
    )
    return await session.scalar(count) or 0


async def require_room(
    session: AsyncSession, project_pk: int, size_bytes: int, *, max_stored_bytes: int
) -> None:
    """Let a project store so many bytes more, in the transaction that publishes or announces them.

    What counts: the files that it can see, output files included, and what its pending uploads in
    parts have announced. Such an upload therefore asks once, when it is created; completing it puts a
    file in the place of the announcement. Files that the engine writes are never refused, and do
    not ask.

    Raises:
        StorageLimitReached: it would store more than it may.
    """
    limit = _stored_bytes_limit(max_stored_bytes)
    allowed = await session.scalar(_held(select(limit), project_pk, limit > 0))
    if allowed is not None:
        Room(allowed, await stored_bytes(session, project_pk)).require(size_bytes)


@dataclass(frozen=True, slots=True)
class Room:
    """What a project may store, if that is limited, and what it stored when it was looked at."""

    limit_bytes: int | None
    stored_bytes: int = 0

    def require(self, size_bytes: int) -> None:
        """See to it that there is room for so many bytes more.

        Raises:
            StorageLimitReached: there is not.
        """
        if self.limit_bytes is not None and self.stored_bytes + size_bytes > self.limit_bytes:
            raise StorageLimitReached(self.limit_bytes)


async def look_for_room(session: AsyncSession, project_pk: int, *, max_stored_bytes: int) -> Room:
    """The room that there is just now, for refusing early what `require_room` would refuse at the end."""
    limit = _stored_bytes_limit(max_stored_bytes)
    allowed = await session.scalar(select(limit).where(Project.pk == project_pk))
    return Room(allowed, await stored_bytes(session, project_pk)) if allowed else Room(None)


def _stored_bytes_limit(max_stored_bytes: int) -> ColumnElement[int]:
    return func.coalesce(Project.max_stored_bytes, max_stored_bytes)


async def stored_bytes(session: AsyncSession, project_pk: int) -> int:
    """The bytes that a project stores, or has announced."""
    files = select(func.coalesce(func.sum(File.bytes), 0)).where(file_is_visible(project_pk))
    announced = select(func.coalesce(func.sum(MultipartUpload.bytes), 0)).where(
        MultipartUpload.project_pk == project_pk,
        MultipartUpload.status == "pending",
        MultipartUpload.expires_at > func.now(),
    )
    both = select(files.scalar_subquery() + announced.scalar_subquery())
    return int(await session.scalar(both) or 0)


async def require_enqueuable(
    session: AsyncSession,
    batch: Batch,
    *,
    model: str | None,
    lines: int,
    tokens: int,
    max_lines: int,
    max_tokens: int,
) -> None:
    """Let a batch begin, in the transaction that starts it.

    Its requests and prompt tokens count together with those of its project's other batches of the
    same model that have begun and not ended.

    Raises:
        EnqueuedLimitReached: they would be more than the project may have.
    """
    line_limit = func.coalesce(Project.max_enqueued_lines, max_lines)
    token_limit = func.coalesce(Project.max_enqueued_tokens, max_tokens)
    limits = _held(
        select(line_limit, token_limit), batch.project_pk, or_(line_limit > 0, token_limit > 0)
    )
    found = (await session.execute(limits)).one_or_none()
    if found is None:
        return
    most_lines, most_tokens = found
    # The batch itself is still validating.
    others = await enqueued(session, batch.project_pk)
    same = next((each for each in others if each.model == model), Enqueued(model))
    if 0 < most_tokens < same.tokens + tokens:
        raise EnqueuedLimitReached("token", most_tokens, model=model)
    if 0 < most_lines < same.lines + lines:
        raise EnqueuedLimitReached("request", most_lines, model=model)


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What the batches of one model hold that have begun and not ended."""

    model: str | None
    lines: int = 0
    tokens: int = 0


async def enqueued(session: AsyncSession, project_pk: int) -> list[Enqueued]:
    """What a project has enqueued, of each model."""
    sums = (
        select(Batch.model, func.sum(Batch.total), func.sum(Batch.enqueued_tokens))
        .where(Batch.project_pk == project_pk, Batch.status.in_(_ENQUEUED))
        .group_by(Batch.model)
        .order_by(Batch.model)
    )
    rows = await session.execute(sums)
    return [Enqueued(model, int(lines), int(tokens)) for model, lines, tokens in rows]


def _held(
    limits: Select[*Limits], project_pk: int, is_limited: ColumnElement[bool]
) -> Select[*Limits]:
    """Hold the project's row until the transaction ends, if it is limited."""
    return limits.where(Project.pk == project_pk, is_limited).with_for_update(
        key_share=True, of=Project
    )
