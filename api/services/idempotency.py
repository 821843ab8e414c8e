"""Requests that may be repeated: an extension.

Promises: of any number of equal requests with one key, at the same time or one after the other, one
makes its object and all answer it; a key stands for one request only; it is written in the very
transaction that makes the object, so a request that was refused or lost leaves no trace of it.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from models import IdempotencyKey
from models.database import Database
from models.errors import IdempotencyKeyReused, Unavailable
from models.failpoints import Failpoint, pass_failpoint
from models.project import Caller

_TRIES = 5


@dataclass(frozen=True, slots=True)
class Ticket:
    """A client's key, what it was sent for, and what that request said."""

    project_pk: int
    operation: str
    key: str
    digest: bytes


class AlreadyMade(Exception):
    """The object of an equal request is there; what this one has begun is to be rolled back."""

    def __init__(self, object_id: str) -> None:
        super().__init__(object_id)
        self.object_id = object_id


def ticket_for(
    caller: Caller, *, operation: str, key: str | None, said: tuple[bytes, ...]
) -> Ticket | None:
    """The ticket of a request that said this; `None` without a key."""
    if key is None:
        return None
    digest = hashlib.sha256()
    for part in said:
        digest.update(len(part).to_bytes(8, "big") + part)
    return Ticket(caller.project_pk, operation, key, digest.digest())


async def find_made(database: Database, ticket: Ticket | None) -> str | None:
    """The object that an equal request has made, for answering before doing the work again.

    Raises:
        IdempotencyKeyReused: the key has stood for another request.
    """
    if ticket is None:
        return None
    async with database.statement() as session:
        return await _made(session, ticket)


async def claim_key(
    session: AsyncSession,
    ticket: Ticket | None,
    object_id: str,
    *,
    is_there: Callable[[AsyncSession, str], Awaitable[bool]] | None = None,
) -> None:
    """Let the key stand for the object that is about to be made in this transaction.

    While an equal request is under way this waits for its end. An object that was made, but of which
    `is_there` says that it has been deleted since, is made anew.

    Raises:
        AlreadyMade: an equal request has made its object.
        IdempotencyKeyReused: the key has stood for another request.
    """
    if ticket is None:
        return
    for _ in range(_TRIES):
        claimed = await session.scalar(
            insert(IdempotencyKey)
            .values(
                project_pk=ticket.project_pk,
                operation=ticket.operation,
                key=ticket.key,
                request_digest=ticket.digest,
                object_id=object_id,
            )
            .on_conflict_do_nothing()
            .returning(IdempotencyKey.key)
        )
        if claimed is not None:
            pass_failpoint(Failpoint.KEY_CLAIMING)
            return
        made = await _made(session, ticket)
        if made is None:
            continue  # the sweep has just taken it away
        if is_there is None or await is_there(session, made):
            raise AlreadyMade(made)
        if await _replace(session, ticket, made, object_id):
            return
    what = "idempotency key"
    raise Unavailable(what)


async def _made(session: AsyncSession, ticket: Ticket) -> str | None:
    statement = select(IdempotencyKey.request_digest, IdempotencyKey.object_id)
    row = (await session.execute(statement.where(_is_it(ticket)))).one_or_none()
    if row is None:
        return None
    if row.request_digest != ticket.digest:
        raise IdempotencyKeyReused
    return str(row.object_id)


async def _replace(session: AsyncSession, ticket: Ticket, gone: str, object_id: str) -> bool:
    """Let the key stand for another object; `False` if somebody else has been quicker."""
    replaced = await session.scalar(
        update(IdempotencyKey)
        .where(_is_it(ticket), IdempotencyKey.object_id == gone)
        .values(object_id=object_id, created_at=func.now())
        .returning(IdempotencyKey.key)
        .execution_options(synchronize_session=False)
    )
    return replaced is not None


def _is_it(ticket: Ticket) -> ColumnElement[bool]:
    return (
        (IdempotencyKey.project_pk == ticket.project_pk)
        & (IdempotencyKey.operation == ticket.operation)
        & (IdempotencyKey.key == ticket.key)
    )
