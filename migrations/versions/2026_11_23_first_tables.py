"""The first tables: files in compressed chunks, batches, leased shards, results.

Revision ID: 41d9128d37d8
Revises:
Create Date: 2026-11-23 13:42:01
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "41d9128d37d8"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Create every table, and the guard of ended batches."""
    op.create_table(
        "files",
        sa.Column("pk", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("chunk_bytes", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), server_default="uploading", nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "touched_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("purged_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('uploading', 'processed')", name=op.f("ck_files_status_known")
        ),
        sa.CheckConstraint("bytes >= 0 AND chunk_bytes > 0", name=op.f("ck_files_sizes_positive")),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_files")),
        sa.UniqueConstraint("id", name=op.f("uq_files_id")),
    )
    op.create_index(
        "ix_files_deleted_at",
        "files",
        ["deleted_at"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NOT NULL AND purged_at IS NULL"),
    )
    op.create_index(
        "ix_files_purged_at",
        "files",
        ["purged_at"],
        unique=False,
        postgresql_where=sa.text("purged_at IS NOT NULL"),
    )
    op.create_index(
        "ix_files_expires_at",
        "files",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "ix_files_touched_at",
        "files",
        ["touched_at"],
        unique=False,
        postgresql_where=sa.text("status = 'uploading'"),
    )
    op.create_index(
        "ix_files_visible_newest",
        "files",
        ["created_at", "pk"],
        unique=False,
        postgresql_where=sa.text("status = 'processed' AND deleted_at IS NULL"),
    )
    op.create_table(
        "results",
        sa.Column("batch_pk", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("line_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("succeeded", sa.Boolean(), nullable=False),
        sa.Column("line", sa.LargeBinary(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False),
        sa.Column("total_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("batch_pk", "line_no", name=op.f("pk_results")),
    )
    op.create_table(
        "batches",
        sa.Column("pk", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("completion_window", sa.Text(), nullable=False),
        sa.Column("input_file_id", sa.Text(), nullable=False),
        sa.Column("input_file_pk", sa.BigInteger(), nullable=True),
        sa.Column("output_expires_after_seconds", sa.Integer(), nullable=True),
        sa.Column("metadata", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("status", sa.Text(), server_default="validating", nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("errors", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("output_file_id", sa.Text(), nullable=True),
        sa.Column("error_file_id", sa.Text(), nullable=True),
        sa.Column("total", sa.Integer(), server_default="0", nullable=False),
        sa.Column("completed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("usage", sa.JSON(none_as_null=True), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("in_progress_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finalizing_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelling_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(output_file_id IS NULL AND error_file_id IS NULL)"
            " OR status IN ('completed', 'expired', 'cancelled')",
            name=op.f("ck_batches_file_ids_only_at_the_end"),
        ),
        sa.CheckConstraint(
            "(status = 'cancelled') = (cancelled_at IS NOT NULL)",
            name=op.f("ck_batches_cancelled_at"),
        ),
        sa.CheckConstraint(
            "(status = 'completed') = (completed_at IS NOT NULL)",
            name=op.f("ck_batches_completed_at"),
        ),
        sa.CheckConstraint(
            "(status = 'expired') = (expired_at IS NOT NULL)", name=op.f("ck_batches_expired_at")
        ),
        sa.CheckConstraint(
            "(status = 'failed') = (failed_at IS NOT NULL)", name=op.f("ck_batches_failed_at")
        ),
        sa.CheckConstraint(
            "(status IN ('cancelling', 'cancelled')) = (cancelling_at IS NOT NULL)",
            name=op.f("ck_batches_cancelling_at"),
        ),
        sa.CheckConstraint(
            "(status IN ('finalizing', 'completed', 'expired')) = (finalizing_at IS NOT NULL)",
            name=op.f("ck_batches_finalizing_at"),
        ),
        sa.CheckConstraint(
            "status <> 'completed' OR completed + failed = total",
            name=op.f("ck_batches_all_lines_counted"),
        ),
        sa.CheckConstraint(
            "status <> 'in_progress' OR in_progress_at IS NOT NULL",
            name=op.f("ck_batches_in_progress_at"),
        ),
        sa.CheckConstraint(
            "status IN ('validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired',"
            " 'cancelling', 'cancelled')",
            name=op.f("ck_batches_status_known"),
        ),
        sa.CheckConstraint(
            "(lease_owner IS NULL) = (lease_until IS NULL)", name=op.f("ck_batches_lease_whole")
        ),
        sa.CheckConstraint(
            "completed >= 0 AND failed >= 0 AND completed + failed <= total",
            name=op.f("ck_batches_counts_sane"),
        ),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_batches")),
        sa.UniqueConstraint("id", name=op.f("uq_batches_id")),
    )
    op.create_index("ix_batches_input_file_pk", "batches", ["input_file_pk"], unique=False)
    op.create_index(
        "ix_batches_newest",
        "batches",
        [sa.literal_column("created_at DESC"), sa.literal_column("pk DESC")],
        unique=False,
    )
    op.create_index(
        "ix_batches_open",
        "batches",
        ["status", "expires_at"],
        unique=False,
        postgresql_where=sa.text(
            "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
        ),
    )
    op.create_table(
        "file_chunks",
        sa.Column("file_pk", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["file_pk"], ["files.pk"], name=op.f("fk_file_chunks_file_pk_files"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("file_pk", "no", name=op.f("pk_file_chunks")),
    )
    op.create_table(
        "shards",
        sa.Column("pk", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("batch_pk", sa.BigInteger(), nullable=False),
        sa.Column("no", sa.Integer(), nullable=False),
        sa.Column("line_numbers", sa.ARRAY(sa.Integer()), nullable=False),
        sa.Column("offsets", sa.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("lengths", sa.ARRAY(sa.Integer()), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("claims", sa.Integer(), server_default="0", nullable=False),
        sa.Column("succeeded", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "(state = 'running') = (lease_owner IS NOT NULL)"
            " AND (lease_owner IS NULL) = (lease_until IS NULL)",
            name=op.f("ck_shards_lease_only_while_running"),
        ),
        sa.CheckConstraint(
            "state <> 'done' OR succeeded + failed = size",
            name=op.f("ck_shards_done_means_all_counted"),
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'done')", name=op.f("ck_shards_state_known")
        ),
        sa.CheckConstraint(
            "size > 0 AND cardinality(line_numbers) = size AND cardinality(offsets) = size"
            " AND cardinality(lengths) = size",
            name=op.f("ck_shards_lines_whole"),
        ),
        sa.CheckConstraint(
            "succeeded >= 0 AND failed >= 0 AND succeeded + failed <= size",
            name=op.f("ck_shards_counts_sane"),
        ),
        sa.ForeignKeyConstraint(
            ["batch_pk"],
            ["batches.pk"],
            name=op.f("fk_shards_batch_pk_batches"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_shards")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_index(
        "ix_shards_open",
        "shards",
        ["batch_pk", "state"],
        unique=False,
        postgresql_where=sa.text("state <> 'done'"),
    )
    op.create_index("uq_shards_batch_pk_no", "shards", ["batch_pk", "no"], unique=True)
    # Chunks are compressed before they come here, and lines are written once and read once: spare the
    # server its own, slow compression.
    op.execute("ALTER TABLE file_chunks ALTER COLUMN data SET STORAGE EXTERNAL")
    op.execute("ALTER TABLE results ALTER COLUMN line SET STORAGE EXTERNAL")
    op.execute(
        """
        CREATE FUNCTION refuse_change_of_ended_batch() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'batch % has ended as % and cannot change', OLD.id, OLD.status;
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER ended_batches_never_change BEFORE UPDATE ON batches FOR EACH ROW
        WHEN (OLD.status IN ('failed', 'completed', 'expired', 'cancelled'))
        EXECUTE FUNCTION refuse_change_of_ended_batch()
        """
    )


def downgrade() -> None:
    """Drop everything."""
    op.drop_index("uq_shards_batch_pk_no", table_name="shards")
    op.drop_index(
        "ix_shards_open", table_name="shards", postgresql_where=sa.text("state <> 'done'")
    )
    op.drop_table("shards")
    op.drop_table("file_chunks")
    op.drop_index(
        "ix_batches_open",
        table_name="batches",
        postgresql_where=sa.text(
            "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
        ),
    )
    op.drop_index("ix_batches_newest", table_name="batches")
    op.drop_index("ix_batches_input_file_pk", table_name="batches")
    op.drop_table("batches")
    op.execute("DROP FUNCTION refuse_change_of_ended_batch()")
    op.drop_table("results")
    op.drop_index(
        "ix_files_visible_newest",
        table_name="files",
        postgresql_where=sa.text("status = 'processed' AND deleted_at IS NULL"),
    )
    op.drop_index(
        "ix_files_touched_at", table_name="files", postgresql_where=sa.text("status = 'uploading'")
    )
    op.drop_index(
        "ix_files_expires_at", table_name="files", postgresql_where=sa.text("deleted_at IS NULL")
    )
    op.drop_index(
        "ix_files_purged_at",
        table_name="files",
        postgresql_where=sa.text("purged_at IS NOT NULL"),
    )
    op.drop_index(
        "ix_files_deleted_at",
        table_name="files",
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.drop_table("files")
