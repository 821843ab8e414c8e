"""Deliveries of webhooks in the database: which are due, who is at them, what came of it.

A delivery is leased like a shard: taken only where nobody holds it, ended only by its holder, and free
again by the database's clock alone when its holder died. A lease lasts longer than a try can take, so
that two workers never send the same delivery at the same time.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import delete, exists, func, or_, select, text
from sqlalchemy.sql.elements import ColumnElement

from models.database import Database
from models.webhook import WebhookDelivery

_REMEMBERED = timedelta(days=7)
_FORGOTTEN_AT_ONCE = 1000


@dataclass(slots=True)
class Outbox:
    """The deliveries that this process is sending. Nobody waits for them but `drain`."""

    in_flight: set[asyncio.Task[None]] = field(default_factory=set)
    claiming: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held from counting `in_flight` to adding to it."""

    def start(self, delivery: Coroutine[None, None, None]) -> None:
        """Send one in the background."""
        task = asyncio.create_task(delivery)
        self.in_flight.add(task)
        task.add_done_callback(self.in_flight.discard)

    async def drain(self, *, seconds: float) -> None:
        """Wait until all have ended, for so long at most. Those that have not are sent again later."""
        if self.in_flight:
            await asyncio.wait(self.in_flight, timeout=seconds)


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery whose lease is ours, with all that it takes to send it."""

    pk: int
    webhook_id: str
    event_id: str
    event_type: str
    batch_id: str
    created_at: datetime
    tries: int
    """This one included."""

    lease_owner: str
    url: str
    secrets: Sequence[str]
    """The newest first."""


# In turns: the first of every endpoint before the second of any, and only the first few of each, those that
# are being sent included, so that one that is dead and has thousands waiting does not keep the others from
# theirs. Endpoint by endpoint, by an index: the cost grows with the endpoints, not with what waits.
_CLAIM = text(
    """
    WITH due AS MATERIALIZED (
        SELECT first.pk, first.turn
        FROM webhook_endpoints CROSS JOIN LATERAL (
            SELECT pk, lease_until, row_number() OVER (ORDER BY next_try_at, pk) AS turn
            FROM webhook_deliveries
            WHERE endpoint_pk = webhook_endpoints.pk AND state = 'pending' AND next_try_at <= now()
            ORDER BY next_try_at, pk
            LIMIT :per_endpoint
        ) AS first
        WHERE lease_until IS NULL OR lease_until <= now()
    ), next AS MATERIALIZED (
        SELECT deliveries.pk
        FROM webhook_deliveries AS deliveries JOIN due USING (pk)
        WHERE state = 'pending' AND next_try_at <= now()
          AND (lease_until IS NULL OR lease_until <= now())
        ORDER BY due.turn, next_try_at, pk
        LIMIT :at_most
        FOR UPDATE OF deliveries SKIP LOCKED
    )
    UPDATE webhook_deliveries AS deliveries
    SET tries = tries + 1, lease_owner = :owner || '#' || (tries + 1),
        lease_until = clock_timestamp() + make_interval(secs => :lease_seconds)
    FROM next, webhook_endpoints AS endpoints
    WHERE deliveries.pk = next.pk AND endpoints.pk = deliveries.endpoint_pk
    RETURNING deliveries.pk, webhook_id, event_id, event_type, batch_id, deliveries.created_at, tries,
        lease_owner, url, secret,
        CASE WHEN previous_secret_until > now() THEN previous_secret END AS previous_secret
    """
)


async def claim_deliveries(
    database: Database, *, owner: str, lease_seconds: float, at_most: int, per_endpoint: int
) -> list[ClaimedDelivery]:
    """Take the leases of deliveries that are due."""
    values = {
        "owner": owner,
        "lease_seconds": lease_seconds,
        "at_most": at_most,
        "per_endpoint": per_endpoint,
    }
    async with database.begin() as session:
        rows = (await session.execute(_CLAIM, values)).all()
    return [
        ClaimedDelivery(
            pk=row.pk,
            webhook_id=row.webhook_id,
            event_id=row.event_id,
            event_type=row.event_type,
            batch_id=row.batch_id,
            created_at=row.created_at,
            tries=row.tries,
            lease_owner=row.lease_owner,
            url=row.url,
            secrets=[each for each in (row.secret, row.previous_secret) if each is not None],
        )
        for row in rows
    ]


# In SET, a column is what it was before.
_RECORD = text(
    """
    UPDATE webhook_deliveries
    SET lease_owner = NULL, lease_until = NULL, last_status = :status,
        state = CASE WHEN :is_delivered THEN 'delivered'
            WHEN now() < created_at + make_interval(secs => :give_up_seconds) THEN 'pending'
            ELSE 'given_up' END,
        ended_at = CASE WHEN :is_delivered
            OR now() >= created_at + make_interval(secs => :give_up_seconds) THEN now() END,
        -- The last try is made when the time is up, not some hours before.
        next_try_at = least(now() + make_interval(secs => :wait_seconds),
            created_at + make_interval(secs => :give_up_seconds))
    WHERE pk = :pk AND state = 'pending' AND lease_owner = :lease_owner
    RETURNING state
    """
)


async def record_try(
    database: Database,
    delivery: ClaimedDelivery,
    *,
    status: int | None,
    is_delivered: bool,
    wait_seconds: float,
    give_up_seconds: float,
) -> str | None:
    """Write down what came of a try; the delivery's state, or `None` if it is no longer ours."""
    values = {
        "pk": delivery.pk,
        "lease_owner": delivery.lease_owner,
        "status": status,
        "is_delivered": is_delivered,
        "wait_seconds": wait_seconds,
        "give_up_seconds": give_up_seconds,
    }
    async with database.begin() as session:
        state: str | None = await session.scalar(_RECORD, values)
    return state


async def is_any_due(database: Database) -> bool:
    """Whether a delivery waits for somebody to send it."""
    async with database.statement() as session:
        return bool(await session.scalar(select(exists().where(_is_due()))))


def _is_due() -> ColumnElement[bool]:
    return (
        (WebhookDelivery.state == "pending")
        & (WebhookDelivery.next_try_at <= func.now())
        & or_(WebhookDelivery.lease_until.is_(None), WebhookDelivery.lease_until <= func.now())
    )


async def forget_ended(database: Database) -> None:
    """Remove deliveries that ended a week ago."""
    old = (
        select(WebhookDelivery.pk)
        .where(
            WebhookDelivery.state != "pending",
            WebhookDelivery.ended_at < func.now() - _REMEMBERED,
        )
        .limit(_FORGOTTEN_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    async with database.begin() as session:
        await session.execute(
            delete(WebhookDelivery)
            .where(WebhookDelivery.pk.in_(old))
            .execution_options(synchronize_session=False)
        )
