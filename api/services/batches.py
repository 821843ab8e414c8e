"""Batches: create, show, list, cancel.

Promises: nobody learns of another project's batch; a batch is in the database before its caller hears
of it, and before anybody is rung; of a cancel and a stage that race, the life cycle decides who wins.
"""

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

import orjson
from sqlalchemy import (
    ColumnElement,
    Text,
    bindparam,
    case,
    cast,
    false,
    func,
    insert,
    select,
    tuple_,
)
from sqlalchemy.ext.asyncio import AsyncSession

from api.bell import Bell, ring
from api.params import BatchFilter, CreateBatch, ListBatches
from api.services.admission import judge
from api.services.idempotency import AlreadyMade, claim_key, ticket_for
from models import Batch, wire
from models.database import Database
from models.errors import BatchNotCancellable, BatchNotFound, InvalidParameter
from models.failpoints import Failpoint, pass_failpoint
from models.ids import could_be_id, new_batch_id
from models.lifecycle import BatchStatus
from models.lines import MAX_ECHO
from models.project import Caller
from models.queries import advance, counted_batches
from models.quota import require_batch_allowed
from models.tracing import current_traceparent

log = logging.getLogger(__name__)

EVERY_BATCH = BatchFilter(frozenset(), {})
_CANCELLED = {BatchStatus.CANCELLING, BatchStatus.CANCELLED}
# Made once: a batch is polled often, and making a statement takes as long as running it.
_SHOWN = counted_batches().where(
    Batch.id == bindparam("id"), Batch.project_pk == bindparam("project_pk")
)
_NUL = r"(^|[^\\])(\\\\)*\\u0000"
"""A NUL in JSON; after an escaped backslash, `u0000` is just text."""


async def create(
    database: Database,
    caller: Caller,
    *,
    bell: Bell,
    request: CreateBatch,
    window: timedelta,
    max_batches_per_hour: int,
    refuse_hopeless: bool = False,
    idempotency_key: str | None = None,
) -> wire.Batch:
    """Accept a batch. Its input is looked at later, when it is validated.

    Raises:
        BatchRateReached: the project has created as many in the last hour as it may.
        BatchHopeless: hopeless ones are refused, and it is one.
        IdempotencyKeyReused: the key has stood for another request.
    """
    expiry = request.output_expires_after
    said = orjson.dumps(request.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
    ticket = ticket_for(caller, operation="batches.create", key=idempotency_key, said=(said,))
    batch_id = new_batch_id()
    hopeless = (
        await judge(database, caller, input_file_id=request.input_file_id, window=window)
        if refuse_hopeless
        else None
    )
    try:
        async with database.begin() as session:
            await claim_key(session, ticket, batch_id)
            # Not before: a batch that was taken is answered again, however full it has become.
            if hopeless is not None:
                raise hopeless
            batch = await add(
                session,
                caller,
                max_batches_per_hour=max_batches_per_hour,
                id=batch_id,
                endpoint=request.endpoint,
                completion_window=request.completion_window,
                input_file_id=request.input_file_id,
                metadata_=request.metadata,
                output_expires_after_seconds=None if expiry is None else expiry.seconds,
                expires_at=func.now() + window,
            )
            pass_failpoint(Failpoint.CREATE_ADDING)
    except AlreadyMade as made:
        return await get(database, caller, batch_id=made.object_id)
    log.info("batch %s: created", batch.id)
    pass_failpoint(Failpoint.CREATE_BEFORE_BELL)
    await ring(bell.ring_validate, batch.pk)
    return wire.Batch.of(batch)


async def add(
    session: AsyncSession, caller: Caller, *, max_batches_per_hour: int, **values: object
) -> Batch:
    """Insert a batch, in the caller's transaction; `values` are its columns.

    Raises:
        BatchRateReached: the project has created as many in the last hour as it may.
    """
    await require_batch_allowed(
        session, caller.project_pk, max_batches_per_hour=max_batches_per_hour
    )
    columns = {"project_pk": caller.project_pk, "traceparent": current_traceparent()} | values
    batch: Batch | None = await session.scalar(insert(Batch).values(columns).returning(Batch))
    assert batch is not None  # noqa: S101  # an INSERT returns its row
    return batch


async def get(database: Database, caller: Caller, *, batch_id: str) -> wire.Batch:
    """Show a batch.

    Raises:
        BatchNotFound: there is none with this id.
    """
    async with database.statement() as session:
        return await show(session, caller, batch_id)


async def list_(
    database: Database, caller: Caller, *, query: ListBatches, wanted: BatchFilter = EVERY_BATCH
) -> wire.BatchList:
    """Show a page of the wanted batches, newest first.

    Raises:
        InvalidParameter: `after` names no batch.
    """
    statement = (
        counted_batches()
        .where(Batch.project_pk == caller.project_pk, *_conditions(wanted))
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
        pass_failpoint(Failpoint.CANCEL_MOVING)
        # Read again in any case: it may have moved between the look and the step.
        session.expire_all()
        shown = await show(session, caller, batch_id)
        if not moved and shown.status not in _CANCELLED:
            raise BatchNotCancellable(shown.status)
    if moved:
        pass_failpoint(Failpoint.CANCEL_BEFORE_BELL)
        await ring(bell.ring_finalize, batch_pk)
    return shown


async def show(session: AsyncSession, caller: Caller, batch_id: str) -> wire.Batch:
    """A batch as its owner sees it.

    Raises:
        BatchNotFound: there is none with this id.
    """
    row = None
    if could_be_id(batch_id):
        wanted = {"id": batch_id, "project_pk": caller.project_pk}
        row = (await session.execute(_SHOWN, wanted)).one_or_none()
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


def _conditions(wanted: BatchFilter) -> Iterator[ColumnElement[bool]]:
    if wanted.statuses:
        yield Batch.status.in_(wanted.statuses)
    for key, value in wanted.metadata.items():
        if "\0" in key + value:
            # Postgres knows no such text, so it can be asked for none.
            yield false()
            continue
        # Metadata may hold a NUL all the same, as JSON, and then Postgres refuses to look into it.
        is_readable = ~cast(Batch.metadata_, Text).regexp_match(_NUL)
        is_equal = Batch.metadata_.op("->>", return_type=Text())(key) == value
        yield case((is_readable, is_equal), else_=false())


def _is_theirs(caller: Caller, batch_id: str) -> ColumnElement[bool]:
    return (Batch.id == batch_id) & (Batch.project_pk == caller.project_pk)


async def _place_of(session: AsyncSession, caller: Caller, after: str) -> tuple[datetime, int]:
    try:
        batch = await find(session, caller, after)
    except BatchNotFound as error:
        message = f"Invalid 'after': no batch found with id '{error.batch_id}'."
        raise InvalidParameter(message, param="after", code="invalid_value") from None
    return batch.created_at, batch.pk
