"""Batches: create, show, list, cancel.

Promises: nobody learns of another project's batch; a batch is in the database before its caller hears
of it, and before anybody is rung; of a cancel and a stage that race, the life cycle decides who wins.
"""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from api.bell import Bell, ring
from api.params import CreateBatch, ListBatches
from models import Batch, wire
from models.database import Database
from models.errors import BatchNotCancellable, BatchNotFound, InvalidParameter
from models.ids import could_be_id, new_batch_id
from models.lifecycle import BatchStatus
from models.lines import MAX_ECHO
from models.project import Caller
from models.queries import advance, counted_batches
from models.quota import require_batch_allowed

_CANCELLED = {BatchStatus.CANCELLING, BatchStatus.CANCELLED}


async def create(
    database: Database,
    caller: Caller,
    *,
    bell: Bell,
    request: CreateBatch,
    window: timedelta,
    max_batches_per_hour: int,
) -> wire.Batch:
    """Accept a batch. Its input is looked at later, when it is validated.

    Raises:
        BatchRateReached: the project has created as many in the last hour as it may.
    """
    expiry = request.output_expires_after
    async with database.begin() as session:
        await require_batch_allowed(
            session, caller.project_pk, max_batches_per_hour=max_batches_per_hour
        )
        batch = await session.scalar(
            insert(Batch)
            .values(
                id=new_batch_id(),
                project_pk=caller.project_pk,
                endpoint=request.endpoint,
                completion_window=request.completion_window,
                input_file_id=request.input_file_id,
                metadata_=request.metadata,
                output_expires_after_seconds=None if expiry is None else expiry.seconds,
                expires_at=func.now() + window,
            )
            .returning(Batch)
        )
        assert batch is not None  # noqa: S101  # an INSERT returns its row
        shown = wire.Batch.of(batch)
    await ring(bell.ring_validate, batch.pk)
    return shown


async def get(database: Database, caller: Caller, *, batch_id: str) -> wire.Batch:
    """Show a batch.

    Raises:
        BatchNotFound: there is none with this id.
    """
    async with database.begin() as session:
        return await show(session, caller, batch_id)


async def list_(database: Database, caller: Caller, *, query: ListBatches) -> wire.BatchList:
    """Show a page of batches, newest first.

    Raises:
        InvalidParameter: `after` names no batch.
    """
    statement = (
        counted_batches()
        .where(Batch.project_pk == caller.project_pk)
        .order_by(Batch.created_at.desc(), Batch.pk.desc())
    )
    async with database.begin() as session:
        if query.after is not None:
            cursor = await _place_of(session, caller, query.after)
            statement = statement.where(tuple_(Batch.created_at, Batch.pk) < cursor)
        found = (await session.execute(statement.limit(query.limit + 1))).all()
    page = [wire.Batch.of(*row) for row in found[: query.limit]]
    return wire.BatchList.of(page, has_more=bool(page) and len(found) > query.limit)


async def cancel(database: Database, caller: Caller, *, bell: Bell, batch_id: str) -> wire.Batch:
    """Stop a batch; asking again changes nothing.

    Raises:
        BatchNotFound: there is none with this id.
        BatchNotCancellable: it has ended otherwise, or is writing its files.
    """
    async with database.begin() as session:
        batch_pk = (await find(session, caller, batch_id)).pk
        moved = await advance(session, batch_pk, BatchStatus.CANCELLING)
        # Read again in any case: it may have moved between the look and the step.
        session.expire_all()
        shown = await show(session, caller, batch_id)
        if not moved and shown.status not in _CANCELLED:
            raise BatchNotCancellable(shown.status)
    if moved:
        await ring(bell.ring_finalize, batch_pk)
    return shown


async def show(session: AsyncSession, caller: Caller, batch_id: str) -> wire.Batch:
    """A batch as its owner sees it.

    Raises:
        BatchNotFound: there is none with this id.
    """
    row = None
    if could_be_id(batch_id):
        statement = counted_batches().where(_is_theirs(caller, batch_id))
        row = (await session.execute(statement)).one_or_none()
    if row is None:
        raise BatchNotFound(batch_id[:MAX_ECHO])
    return wire.Batch.of(*row)


async def find(session: AsyncSession, caller: Caller, batch_id: str) -> Batch:
    """A batch's own row, for its owner.

    Raises:
        BatchNotFound: there is none with this id.
    """
    found = None
    if could_be_id(batch_id):
        found = await session.scalar(select(Batch).where(_is_theirs(caller, batch_id)))
    if found is None:
        raise BatchNotFound(batch_id[:MAX_ECHO])
    return found


def _is_theirs(caller: Caller, batch_id: str) -> ColumnElement[bool]:
    return (Batch.id == batch_id) & (Batch.project_pk == caller.project_pk)


async def _place_of(session: AsyncSession, caller: Caller, after: str) -> tuple[datetime, int]:
    try:
        batch = await find(session, caller, after)
    except BatchNotFound as error:
        message = f"Invalid 'after': no batch found with id '{error.batch_id}'."
        raise InvalidParameter(message, param="after", code="invalid_value") from None
    return batch.created_at, batch.pk
