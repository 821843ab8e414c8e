"""An upload in parts: announced, filled part by part in any order, and completed into one file.

The bytes of a part are those of a hidden file (`file_pk`, of status `part`), so that storing them,
removing them and reading them need no second way. A part is in this table once it is whole. When its
upload has ended, the sweep takes away what completing it has not used.
"""

import builtins
from datetime import datetime
from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Text,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, PrimaryKey


class UploadStatus(StrEnum):
    """What has become of an upload. A pending one that is past its `expires_at` counts as expired."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class MultipartUpload(Base):
    """One upload. `file_pk` is set by completing it, in the transaction that publishes the file."""

    __tablename__ = "uploads"

    pk: Mapped[PrimaryKey]
    id: Mapped[str] = mapped_column(Text, unique=True)
    project_pk: Mapped[int] = mapped_column(ForeignKey("projects.pk"))
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(Text)
    mime_type: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(BigInteger)
    file_expires_after_seconds: Mapped[int | None] = mapped_column(Integer)
    status: Mapped[str] = mapped_column(Text, server_default="pending")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    # No foreign key: the file may be deleted and forgotten.
    file_pk: Mapped[int | None] = mapped_column(BigInteger)
    # Of the ids of the parts it was completed from, in order: who asks for the same again is answered.
    parts_digest: Mapped[builtins.bytes | None] = mapped_column(LargeBinary)

    __table_args__ = (
        CheckConstraint(
            "status IN ('pending', 'completed', 'cancelled', 'expired')", name="status_known"
        ),
        CheckConstraint("(status = 'completed') = (file_pk IS NOT NULL)", name="file_of_completed"),
        CheckConstraint("bytes >= 0", name="bytes_positive"),
        Index("ix_uploads_pending", "expires_at", postgresql_where=text("status = 'pending'")),
        Index("ix_uploads_expires_at", "expires_at"),
        Index("ix_uploads_project_pk", "project_pk"),
    )


class UploadPart(Base):
    """One part, whole and durable."""

    __tablename__ = "upload_parts"

    pk: Mapped[PrimaryKey]
    id: Mapped[str] = mapped_column(Text, unique=True)
    upload_pk: Mapped[int] = mapped_column(ForeignKey("uploads.pk", ondelete="CASCADE"))
    file_pk: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_upload_parts_upload_pk", "upload_pk"),)
