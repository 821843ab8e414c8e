"""Webhook endpoints: create, show, list, change, delete, rotate the secret, test.

Promises: nobody learns of another project's endpoint; a URL is taken only when a webhook may go there;
a secret is shown when it is made and never again; what a test tells of a receiver is the status of its
answer, or that there was none.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from api.params import (
    CreateWebhookEndpoint,
    ListWebhookEndpoints,
    RotateWebhookSecret,
    UpdateWebhookEndpoint,
    WebhookTest,
)
from models import Project, WebhookEndpoint, wire
from models.database import Database
from models.errors import InvalidParameter, TooManyWebhookEndpoints, WebhookEndpointNotFound
from models.ids import (
    could_be_id,
    new_batch_id,
    new_event_id,
    new_webhook_endpoint_id,
    new_webhook_id,
)
from models.lines import MAX_ECHO
from models.project import Caller
from models.receiver import Receiver
from models.signing import event_body, new_secret

MAX_ENDPOINTS = 20
_OLD_SECRET_LIFE = timedelta(hours=24)


async def create(
    database: Database, caller: Caller, receiver: Receiver, *, request: CreateWebhookEndpoint
) -> wire.WebhookEndpointWithSecret:
    """Register a receiver.

    Raises:
        InvalidParameter: no webhook may go to its URL.
        TooManyWebhookEndpoints: the project has enough of them.
    """
    await receiver.check(request.url)
    async with database.begin() as session:
        # One at a time in a project, so that the count holds.
        await session.execute(
            select(Project.pk)
            .where(Project.pk == caller.project_pk)
            .with_for_update(key_share=True)
        )
        count = await session.scalar(
            select(func.count()).where(WebhookEndpoint.project_pk == caller.project_pk)
        )
        if (count or 0) >= MAX_ENDPOINTS:
            raise TooManyWebhookEndpoints(MAX_ENDPOINTS)
        made = await session.scalar(
            insert(WebhookEndpoint)
            .values(
                id=new_webhook_endpoint_id(),
                project_pk=caller.project_pk,
                name=request.name,
                url=request.url,
                event_types=list(dict.fromkeys(request.event_types)),
                secret=new_secret(),
            )
            .returning(WebhookEndpoint)
        )
        assert made is not None  # noqa: S101  # an INSERT returns its row
        return wire.WebhookEndpointWithSecret.of(made)


async def get(database: Database, caller: Caller, *, endpoint_id: str) -> wire.WebhookEndpoint:
    """Show an endpoint, without its secret.

    Raises:
        WebhookEndpointNotFound: there is none with this id.
    """
    async with database.begin() as session:
        return wire.WebhookEndpoint.of(await _find(session, caller, endpoint_id))


async def list_(
    database: Database, caller: Caller, *, query: ListWebhookEndpoints
) -> wire.WebhookEndpointList:
    """Show a page of endpoints, newest first.

    Raises:
        InvalidParameter: `after` names no endpoint.
    """
    statement = (
        select(WebhookEndpoint)
        .where(WebhookEndpoint.project_pk == caller.project_pk)
        .order_by(WebhookEndpoint.created_at.desc(), WebhookEndpoint.pk.desc())
    )
    async with database.begin() as session:
        if query.after is not None:
            cursor = await _place_of(session, caller, query.after)
            place = tuple_(WebhookEndpoint.created_at, WebhookEndpoint.pk)
            statement = statement.where(place < cursor)
        found = list(await session.scalars(statement.limit(query.limit + 1)))
    page = [wire.WebhookEndpoint.of(endpoint) for endpoint in found[: query.limit]]
    return wire.WebhookEndpointList.of(page, has_more=bool(page) and len(found) > query.limit)


async def update_(
    database: Database,
    caller: Caller,
    receiver: Receiver,
    *,
    endpoint_id: str,
    request: UpdateWebhookEndpoint,
) -> wire.WebhookEndpoint:
    """Change what the request names. Nothing new is no change: `updated_at` stays.

    Raises:
        WebhookEndpointNotFound: there is none with this id.
        InvalidParameter: no webhook may go to its new URL.
    """
    async with database.begin() as session:
        endpoint = await _find(session, caller, endpoint_id)
    values = request.model_dump(exclude_unset=True)
    if "event_types" in values:
        values["event_types"] = list(dict.fromkeys(values["event_types"]))
    changes = {name: value for name, value in values.items() if value != getattr(endpoint, name)}
    if not changes:
        return wire.WebhookEndpoint.of(endpoint)
    if "url" in changes:
        await receiver.check(changes["url"])
    return wire.WebhookEndpoint.of(await _change(database, caller, endpoint_id, changes))


async def delete_(
    database: Database, caller: Caller, *, endpoint_id: str
) -> wire.WebhookEndpointDeleted:
    """Remove an endpoint, and with it all that was still to be told to it.

    Raises:
        WebhookEndpointNotFound: there is none with this id.
    """
    async with database.begin() as session:
        endpoint = await _find(session, caller, endpoint_id)
        await session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.pk == endpoint.pk))
    return wire.WebhookEndpointDeleted(id=endpoint.id)


async def rotate_secret(
    database: Database, caller: Caller, *, endpoint_id: str, request: RotateWebhookSecret
) -> wire.WebhookEndpointWithSecret:
    """Make a new secret. The one before it signs, too, for another day if that is asked for.

    Raises:
        WebhookEndpointNotFound: there is none with this id.
    """
    changes: dict[str, Any] = {
        "secret": new_secret(),
        "previous_secret": None,
        "previous_secret_until": None,
    }
    if request.keep_old_secret_active_for_24_hours:
        changes |= {
            # In SET, a column is what it was before.
            "previous_secret": WebhookEndpoint.secret,
            "previous_secret_until": func.now() + _OLD_SECRET_LIFE,
        }
    changed = await _change(database, caller, endpoint_id, changes)
    return wire.WebhookEndpointWithSecret.of(changed)


async def test(
    database: Database,
    caller: Caller,
    receiver: Receiver,
    *,
    endpoint_id: str,
    request: WebhookTest,
) -> wire.WebhookEndpointTest:
    """Send an event about a batch that does not exist, once.

    Raises:
        WebhookEndpointNotFound: there is none with this id.
        ReceiverUnreachable: it did not answer.
    """
    async with database.begin() as session:
        endpoint = await _find(session, caller, endpoint_id)
    status = await receiver.call(
        endpoint.url,
        webhook_id=new_webhook_id(),
        body=event_body(
            event_id=new_event_id(),
            event_type=request.event_type,
            created_at=datetime.now(UTC),
            batch_id=new_batch_id(),
        ),
        secrets=endpoint.active_secrets(datetime.now(UTC)),
    )
    return wire.WebhookEndpointTest(
        webhook_endpoint_id=endpoint.id, event_type=request.event_type, status_code=status
    )


async def _change(
    database: Database, caller: Caller, endpoint_id: str, changes: dict[str, Any]
) -> WebhookEndpoint:
    changed: WebhookEndpoint | None = None
    if could_be_id(endpoint_id):
        async with database.begin() as session:
            # Locked whole first: Postgres may lose the key's lock that an end of a batch holds (see
            # `models.queries`) while the row moves to another page, and a deletion would not wait for it.
            locked = select(WebhookEndpoint.pk).where(_is_theirs(caller, endpoint_id))
            await session.execute(locked.with_for_update())
            changed = await session.scalar(
                update(WebhookEndpoint)
                .where(_is_theirs(caller, endpoint_id))
                .values(changes | {"updated_at": func.now()})
                .returning(WebhookEndpoint)
            )
    if changed is None:
        raise WebhookEndpointNotFound(endpoint_id[:MAX_ECHO])
    return changed


async def _find(session: AsyncSession, caller: Caller, endpoint_id: str) -> WebhookEndpoint:
    found = None
    if could_be_id(endpoint_id):
        found = await session.scalar(select(WebhookEndpoint).where(_is_theirs(caller, endpoint_id)))
    if found is None:
        raise WebhookEndpointNotFound(endpoint_id[:MAX_ECHO])
    return found


def _is_theirs(caller: Caller, endpoint_id: str) -> ColumnElement[bool]:
    return (WebhookEndpoint.id == endpoint_id) & (WebhookEndpoint.project_pk == caller.project_pk)


async def _place_of(session: AsyncSession, caller: Caller, after: str) -> tuple[datetime, int]:
    try:
        endpoint = await _find(session, caller, after)
    except WebhookEndpointNotFound as error:
        message = f"Invalid 'after': no webhook endpoint found with id '{error.endpoint_id}'."
        raise InvalidParameter(message, param="after", code="invalid_value") from None
    return endpoint.created_at, endpoint.pk
