"""A batch: what was asked, where it stands, and what came of it.

The checks repeat the life cycle's promises in the database; a trigger (see the first migration)
refuses any change to a row whose status is final.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    Text,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, PrimaryKey
from models.lifecycle import BatchStatus
from models.project import DEFAULT_PROJECT_PK

_KNOWN = ", ".join(f"'{status}'" for status in BatchStatus)


class Batch(Base):
    """One batch. `total`, `completed`, `failed` and `usage` are frozen when it ends.

    While it runs, `completed` and `failed` are the sums over its shards (`models.queries`). The lease
    is that of the stage (validating or finalizing) at work on it, not of its shards.
    """

    __tablename__ = "batches"

    pk: Mapped[PrimaryKey]
    id: Mapped[str] = mapped_column(Text, unique=True)
    # The default is for processes of the release before, while both are there.
    project_pk: Mapped[int] = mapped_column(
        ForeignKey("projects.pk"), server_default=str(DEFAULT_PROJECT_PK)
    )
    endpoint: Mapped[str] = mapped_column(Text)
    completion_window: Mapped[str] = mapped_column(Text)
    input_file_id: Mapped[str] = mapped_column(Text)
    # No foreign key: the file may be deleted and purged once the batch has ended.
    input_file_pk: Mapped[int | None] = mapped_column(BigInteger)
    output_expires_after_seconds: Mapped[int | None] = mapped_column(Integer)
    # JSON, not JSONB: JSONB refuses the \u0000 that a client's string may hold.
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata", JSON(none_as_null=True))

    status: Mapped[str] = mapped_column(Text, server_default=BatchStatus.VALIDATING)
    model: Mapped[str | None] = mapped_column(Text)
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    output_file_id: Mapped[str | None] = mapped_column(Text)
    error_file_id: Mapped[str | None] = mapped_column(Text)
    total: Mapped[int] = mapped_column(Integer, server_default="0")
    completed: Mapped[int] = mapped_column(Integer, server_default="0")
    failed: Mapped[int] = mapped_column(Integer, server_default="0")
    # Of the prompts, by a stated approximation: what counts against a project's limit while it runs.
    enqueued_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # The batch whose failed lines this one tries again.
    retry_of: Mapped[str | None] = mapped_column(Text)
    # Calls that were made again; kept when the shards, which count them, are dropped.
    retries: Mapped[int] = mapped_column(Integer, server_default="0")
    usage: Mapped[dict[str, int] | None] = mapped_column(JSON(none_as_null=True))

    # How it went (`models.history`), kept when its results are dropped. A few kilobytes, which nobody
    # needs who asks for the batch.
    history: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), deferred=True)

    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    in_progress_at: Mapped[datetime | None]
    finalizing_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    expired_at: Mapped[datetime | None]
    cancelling_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]

    # While set, no shard of the batch is claimed; its window goes on.
    paused_at: Mapped[datetime | None]
    # The span that created it, if it was traced (`models.tracing`): other processes' are its children.
    traceparent: Mapped[str | None] = mapped_column(Text)
    lease_owner: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[datetime | None]
    # How often the present stage (validating or finalizing) was begun and did not end.
    tries: Mapped[int] = mapped_column(Integer, server_default="0")

    __table_args__ = (
        CheckConstraint(f"status IN ({_KNOWN})", name="status_known"),
        CheckConstraint("(status = 'completed') = (completed_at IS NOT NULL)", name="completed_at"),
        CheckConstraint("(status = 'failed') = (failed_at IS NOT NULL)", name="failed_at"),
        CheckConstraint("(status = 'expired') = (expired_at IS NOT NULL)", name="expired_at"),
        CheckConstraint("(status = 'cancelled') = (cancelled_at IS NOT NULL)", name="cancelled_at"),
        CheckConstraint(
            "(status IN ('cancelling', 'cancelled')) = (cancelling_at IS NOT NULL)",
            name="cancelling_at",
        ),
        CheckConstraint(
            "(status IN ('finalizing', 'completed', 'expired')) = (finalizing_at IS NOT NULL)",
            name="finalizing_at",
        ),
        CheckConstraint(
            "status <> 'in_progress' OR in_progress_at IS NOT NULL", name="in_progress_at"
        ),
        CheckConstraint(
            "(output_file_id IS NULL AND error_file_id IS NULL)"
            " OR status IN ('completed', 'expired', 'cancelled')",
            name="file_ids_only_at_the_end",
        ),
        CheckConstraint(
            "status <> 'completed' OR completed + failed = total", name="all_lines_counted"
        ),
        CheckConstraint(
            "completed >= 0 AND failed >= 0 AND completed + failed <= total", name="counts_sane"
        ),
        CheckConstraint("(lease_owner IS NULL) = (lease_until IS NULL)", name="lease_whole"),
        Index("ix_batches_newest", "project_pk", text("created_at DESC"), text("pk DESC")),
        # What the sweep and the claim look for: batches that have not ended.
        Index(
            "ix_batches_open",
            "status",
            "expires_at",
            postgresql_where=text(
                "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
            ),
        ),
        # The claim's own: a project's batches in the order in which they end, and those of which less
        # than an eighth of the window is left. (A timestamp with time zone less an interval would
        # depend on the session's time zone, and so could not be indexed.)
        Index(
            "ix_batches_running",
            "project_pk",
            "expires_at",
            "pk",
            postgresql_where=text("status = 'in_progress'"),
        ),
        Index(
            "ix_batches_urgent",
            text("((expires_at AT TIME ZONE 'UTC') - (expires_at - created_at) / 8)"),
            postgresql_where=text("status = 'in_progress'"),
        ),
        # The few whose stage is being worked on, or was by a worker that died. No column that a renewal
        # of the lease writes.
        Index("ix_batches_leased", "status", postgresql_where=text("lease_owner IS NOT NULL")),
        Index("ix_batches_input_file_pk", "input_file_pk"),
    )
