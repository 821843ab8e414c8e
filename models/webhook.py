"""Webhooks: where a project wants to hear of its batches, and what is still to be told.

A delivery is written in the transaction that ends the batch, so that no event is lost; it is tried
until it succeeds or its time is over. The secret must be kept as it is: it signs.
"""

from datetime import datetime
from typing import Literal, get_args

from sqlalchemy import ARRAY, CheckConstraint, ForeignKey, Index, Integer, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, PrimaryKey
from models.lifecycle import BatchStatus

EventType = Literal["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)


def event_type_of(end: BatchStatus) -> str:
    """The event of a batch that has entered a final status."""
    return f"batch.{end.value}"


class WebhookEndpoint(Base):
    """One receiver. After a rotation the previous secret signs, too, until `previous_secret_until`."""

    __tablename__ = "webhook_endpoints"

    pk: Mapped[PrimaryKey]
    id: Mapped[str] = mapped_column(Text, unique=True)
    project_pk: Mapped[int] = mapped_column(ForeignKey("projects.pk"))
    name: Mapped[str] = mapped_column(Text)
    url: Mapped[str] = mapped_column(Text)
    event_types: Mapped[list[str]] = mapped_column(ARRAY(Text))
    secret: Mapped[str] = mapped_column(Text)
    previous_secret: Mapped[str | None] = mapped_column(Text)
    previous_secret_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        CheckConstraint(
            "(previous_secret IS NULL) = (previous_secret_until IS NULL)", name="previous_whole"
        ),
        Index(
            "ix_webhook_endpoints_newest", "project_pk", text("created_at DESC"), text("pk DESC")
        ),
    )

    def active_secrets(self, now: datetime) -> list[str]:
        """What signs at this time, the newest first."""
        until = self.previous_secret_until
        if self.previous_secret is None or until is None or until <= now:
            return [self.secret]
        return [self.secret, self.previous_secret]


class WebhookDelivery(Base):
    """One event on its way to one receiver. `webhook_id` is the same at every try."""

    __tablename__ = "webhook_deliveries"

    pk: Mapped[PrimaryKey]
    endpoint_pk: Mapped[int] = mapped_column(ForeignKey("webhook_endpoints.pk", ondelete="CASCADE"))
    webhook_id: Mapped[str] = mapped_column(Text, unique=True)
    event_id: Mapped[str] = mapped_column(Text)
    event_type: Mapped[str] = mapped_column(Text)
    batch_id: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    state: Mapped[str] = mapped_column(Text, server_default="pending")
    tries: Mapped[int] = mapped_column(Integer, server_default="0")
    next_try_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]
    lease_owner: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[datetime | None]
    last_status: Mapped[int | None] = mapped_column(Integer)

    __table_args__ = (
        CheckConstraint("state IN ('pending', 'delivered', 'given_up')", name="state_known"),
        CheckConstraint("(state = 'pending') = (ended_at IS NULL)", name="ended_at"),
        CheckConstraint("(lease_owner IS NULL) = (lease_until IS NULL)", name="lease_whole"),
        Index("ix_webhook_deliveries_endpoint_pk", "endpoint_pk"),
        # Which of an endpoint's own is next.
        Index(
            "ix_webhook_deliveries_turn",
            "endpoint_pk",
            "next_try_at",
            "pk",
            postgresql_where=text("state = 'pending'"),
        ),
        Index(
            "ix_webhook_deliveries_due", "next_try_at", postgresql_where=text("state = 'pending'")
        ),
        Index(
            "ix_webhook_deliveries_ended_at",
            "ended_at",
            postgresql_where=text("state <> 'pending'"),
        ),
    )
