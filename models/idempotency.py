"""Which request a client's `Idempotency-Key` stood for, so that a repeated one makes nothing new."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, LargeBinary, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class IdempotencyKey(Base):
    """One key of one project, for one operation. Written in the transaction that makes the object."""

    __tablename__ = "idempotency_keys"

    project_pk: Mapped[int] = mapped_column(ForeignKey("projects.pk"), primary_key=True)
    operation: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    request_digest: Mapped[bytes] = mapped_column(LargeBinary)
    object_id: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at"),)
