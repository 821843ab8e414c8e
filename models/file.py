"""An uploaded or written file, and the compressed pieces that hold its bytes.

A file is invisible while it is `uploading`; deletion hides it at once and keeps its bytes until no
batch needs them any more, when the sweep takes them away. Its row stays for a day longer: a client
that deletes a page of files still finds its place in the list.
"""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, Index, Integer, LargeBinary, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, BigInt, PrimaryKey
from models.project import DEFAULT_PROJECT_PK


class FileStatus(StrEnum):
    """Whether all bytes have arrived. `part` is whole, but only a part of an upload: never visible."""

    UPLOADING = "uploading"
    PART = "part"
    PROCESSED = "processed"


class File(Base):
    """One file. `bytes` is the exact size of the content as the client sees it."""

    __tablename__ = "files"

    pk: Mapped[PrimaryKey]
    id: Mapped[str] = mapped_column(Text, unique=True)
    # The default is for processes of the release before, while both are there.
    project_pk: Mapped[int] = mapped_column(
        ForeignKey("projects.pk"), server_default=str(DEFAULT_PROJECT_PK)
    )
    purpose: Mapped[str] = mapped_column(Text)
    filename: Mapped[str] = mapped_column(Text)
    bytes: Mapped[BigInt] = mapped_column(server_default="0")
    chunk_bytes: Mapped[int] = mapped_column(Integer)
    status: Mapped[str] = mapped_column(Text, server_default=FileStatus.UPLOADING)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    touched_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    purged_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("status IN ('uploading', 'part', 'processed')", name="status_known"),
        CheckConstraint("bytes >= 0 AND chunk_bytes > 0", name="sizes_positive"),
        # The list, newest first (and, read backwards, oldest first).
        Index(
            "ix_files_visible_newest",
            "project_pk",
            "created_at",
            "pk",
            postgresql_where=text("status = 'processed' AND deleted_at IS NULL"),
        ),
        # What the sweep looks for.
        Index("ix_files_expires_at", "expires_at", postgresql_where=text("deleted_at IS NULL")),
        Index(
            "ix_files_deleted_at",
            "deleted_at",
            postgresql_where=text("deleted_at IS NOT NULL AND purged_at IS NULL"),
        ),
        Index("ix_files_purged_at", "purged_at", postgresql_where=text("purged_at IS NOT NULL")),
        Index("ix_files_touched_at", "touched_at", postgresql_where=text("status = 'uploading'")),
    )


class FileChunk(Base):
    """Piece `no` of a file: bytes `no * chunk_bytes` onwards, compressed with zstd.

    Every piece but the last holds exactly `chunk_bytes` bytes, so that a position in the file names
    its piece without an index.
    """

    __tablename__ = "file_chunks"

    file_pk: Mapped[int] = mapped_column(
        ForeignKey("files.pk", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    data: Mapped[bytes] = mapped_column(LargeBinary)
