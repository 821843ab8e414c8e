"""Projects own everything; and tables for keys, uploads in parts, webhooks and idempotency keys.

What was there before belongs to the default project, and so does what processes of the release before
write while both run: hence the default of `project_pk`.

Revision ID: 3d9c48228c43
Revises: 41d9128d37d8
Create Date: 2026-11-23 16:33:31
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "3d9c48228c43"
down_revision: str | None = "41d9128d37d8"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Add the tables, make the default project, and give it everything."""
    op.create_table(
        "projects",
        sa.Column("pk", sa.BigInteger(), sa.Identity(always=True, start=2), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("max_batches_per_hour", sa.Integer(), nullable=True),
        sa.Column("max_enqueued_lines", sa.BigInteger(), nullable=True),
        sa.Column("max_enqueued_tokens", sa.BigInteger(), nullable=True),
        sa.Column("max_stored_bytes", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "max_batches_per_hour >= 0 AND max_enqueued_lines >= 0"
            " AND max_enqueued_tokens >= 0 AND max_stored_bytes >= 0",
            name=op.f("ck_projects_limits_positive"),
        ),
        sa.CheckConstraint(
            "pk <> 1 OR archived_at IS NULL", name=op.f("ck_projects_default_not_archived")
        ),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_projects")),
        sa.UniqueConstraint("id", name=op.f("uq_projects_id")),
        sa.UniqueConstraint("name", name=op.f("uq_projects_name")),
    )
    op.execute(
        "INSERT INTO projects (pk, id, name) OVERRIDING SYSTEM VALUE"
        " VALUES (1, 'proj_default', 'default')"
    )
    op.create_table(
        "api_keys",
        sa.Column("pk", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_pk", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("lookup", sa.Text(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["project_pk"], ["projects.pk"], name=op.f("fk_api_keys_project_pk_projects")
        ),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("id", name=op.f("uq_api_keys_id")),
        sa.UniqueConstraint("lookup", name=op.f("uq_api_keys_lookup")),
    )
    op.create_index(
        "ix_api_keys_project_pk",
        "api_keys",
        ["project_pk"],
        unique=False,
        postgresql_where=sa.text("revoked_at IS NULL"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("project_pk", sa.BigInteger(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_digest", sa.LargeBinary(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["project_pk"], ["projects.pk"], name=op.f("fk_idempotency_keys_project_pk_projects")
        ),
        sa.PrimaryKeyConstraint("project_pk", "operation", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(
        "ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"], unique=False
    )
    op.create_table(
        "uploads",
        sa.Column("pk", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_pk", sa.BigInteger(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("mime_type", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("file_expires_after_seconds", sa.Integer(), nullable=True),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("file_pk", sa.BigInteger(), nullable=True),
        sa.Column("parts_digest", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint(
            "(status = 'completed') = (file_pk IS NOT NULL)",
            name=op.f("ck_uploads_file_of_completed"),
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'completed', 'cancelled', 'expired')",
            name=op.f("ck_uploads_status_known"),
        ),
        sa.CheckConstraint("bytes >= 0", name=op.f("ck_uploads_bytes_positive")),
        sa.ForeignKeyConstraint(
            ["project_pk"], ["projects.pk"], name=op.f("fk_uploads_project_pk_projects")
        ),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_uploads")),
        sa.UniqueConstraint("id", name=op.f("uq_uploads_id")),
    )
    op.create_index(
        "ix_uploads_pending",
        "uploads",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index("ix_uploads_expires_at", "uploads", ["expires_at"], unique=False)
    op.create_index("ix_uploads_project_pk", "uploads", ["project_pk"], unique=False)
    op.create_table(
        "webhook_endpoints",
        sa.Column("pk", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_pk", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event_types", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("previous_secret", sa.Text(), nullable=True),
        sa.Column("previous_secret_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "(previous_secret IS NULL) = (previous_secret_until IS NULL)",
            name=op.f("ck_webhook_endpoints_previous_whole"),
        ),
        sa.ForeignKeyConstraint(
            ["project_pk"], ["projects.pk"], name=op.f("fk_webhook_endpoints_project_pk_projects")
        ),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_webhook_endpoints")),
        sa.UniqueConstraint("id", name=op.f("uq_webhook_endpoints_id")),
    )
    op.create_index(
        "ix_webhook_endpoints_newest",
        "webhook_endpoints",
        ["project_pk", sa.literal_column("created_at DESC"), sa.literal_column("pk DESC")],
        unique=False,
    )
    op.create_table(
        "upload_parts",
        sa.Column("pk", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("upload_pk", sa.BigInteger(), nullable=False),
        sa.Column("file_pk", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["upload_pk"],
            ["uploads.pk"],
            name=op.f("fk_upload_parts_upload_pk_uploads"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_upload_parts")),
        sa.UniqueConstraint("id", name=op.f("uq_upload_parts_id")),
    )
    op.create_index("ix_upload_parts_upload_pk", "upload_parts", ["upload_pk"], unique=False)
    op.create_table(
        "webhook_deliveries",
        sa.Column("pk", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("endpoint_pk", sa.BigInteger(), nullable=False),
        sa.Column("webhook_id", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "next_try_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.CheckConstraint(
            "(state = 'pending') = (ended_at IS NULL)", name=op.f("ck_webhook_deliveries_ended_at")
        ),
        sa.CheckConstraint(
            "state IN ('pending', 'delivered', 'given_up')",
            name=op.f("ck_webhook_deliveries_state_known"),
        ),
        sa.CheckConstraint(
            "(lease_owner IS NULL) = (lease_until IS NULL)",
            name=op.f("ck_webhook_deliveries_lease_whole"),
        ),
        sa.ForeignKeyConstraint(
            ["endpoint_pk"],
            ["webhook_endpoints.pk"],
            name=op.f("fk_webhook_deliveries_endpoint_pk_webhook_endpoints"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_webhook_deliveries")),
        sa.UniqueConstraint("webhook_id", name=op.f("uq_webhook_deliveries_webhook_id")),
    )
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["next_try_at"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "ix_webhook_deliveries_ended_at",
        "webhook_deliveries",
        ["ended_at"],
        unique=False,
        postgresql_where=sa.text("state <> 'pending'"),
    )
    op.create_index(
        "ix_webhook_deliveries_endpoint_pk", "webhook_deliveries", ["endpoint_pk"], unique=False
    )
    op.create_index(
        "ix_webhook_deliveries_turn",
        "webhook_deliveries",
        ["endpoint_pk", "next_try_at", "pk"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.add_column(
        "batches", sa.Column("project_pk", sa.BigInteger(), server_default="1", nullable=False)
    )
    op.add_column(
        "batches", sa.Column("enqueued_tokens", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.add_column("batches", sa.Column("retry_of", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("batches", sa.Column("retries", sa.Integer(), server_default="0", nullable=False))
    for name in (
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "reasoning_tokens",
        "total_tokens",
    ):
        op.add_column(
            "shards", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)
        )
    for name in ("in_flight", "retries"):
        op.add_column("shards", sa.Column(name, sa.Integer(), server_default="0", nullable=False))
    op.add_column(
        "shards",
        sa.Column("lines_per_second", sa.Double(), server_default="0", nullable=False),
    )
    op.add_column(
        "shards", sa.Column("lines_per_second_at", sa.DateTime(timezone=True), nullable=True)
    )
    # Rows that are there get the number of this very transaction, without being written again.
    op.add_column(
        "results",
        sa.Column(
            "recorded_xid",
            sa.BigInteger(),
            server_default=sa.text("(pg_current_xact_id()::text::bigint)"),
            nullable=False,
        ),
    )
    op.drop_index(op.f("ix_batches_newest"), table_name="batches")
    op.create_index(
        "ix_batches_newest",
        "batches",
        ["project_pk", sa.literal_column("created_at DESC"), sa.literal_column("pk DESC")],
        unique=False,
    )
    op.create_foreign_key(
        op.f("fk_batches_project_pk_projects"), "batches", "projects", ["project_pk"], ["pk"]
    )
    op.add_column(
        "files", sa.Column("project_pk", sa.BigInteger(), server_default="1", nullable=False)
    )
    op.drop_index(
        op.f("ix_files_visible_newest"),
        table_name="files",
        postgresql_where="((status = 'processed'::text) AND (deleted_at IS NULL))",
    )
    op.create_index(
        "ix_files_visible_newest",
        "files",
        ["project_pk", "created_at", "pk"],
        unique=False,
        postgresql_where=sa.text("status = 'processed' AND deleted_at IS NULL"),
    )
    op.create_foreign_key(
        op.f("fk_files_project_pk_projects"), "files", "projects", ["project_pk"], ["pk"]
    )
    op.drop_constraint(op.f("ck_files_status_known"), "files", type_="check")
    op.create_check_constraint(
        op.f("ck_files_status_known"), "files", "status IN ('uploading', 'part', 'processed')"
    )


def downgrade() -> None:
    """Drop them again. What belonged to other projects becomes everybody's."""
    op.execute("DELETE FROM files WHERE status = 'part'")
    op.drop_constraint(op.f("ck_files_status_known"), "files", type_="check")
    op.create_check_constraint(
        op.f("ck_files_status_known"), "files", "status IN ('uploading', 'processed')"
    )
    op.drop_constraint(op.f("fk_files_project_pk_projects"), "files", type_="foreignkey")
    op.drop_index(
        "ix_files_visible_newest",
        table_name="files",
        postgresql_where=sa.text("status = 'processed' AND deleted_at IS NULL"),
    )
    op.create_index(
        op.f("ix_files_visible_newest"),
        "files",
        ["created_at", "pk"],
        unique=False,
        postgresql_where="((status = 'processed'::text) AND (deleted_at IS NULL))",
    )
    op.drop_column("files", "project_pk")
    op.drop_constraint(op.f("fk_batches_project_pk_projects"), "batches", type_="foreignkey")
    op.drop_index("ix_batches_newest", table_name="batches")
    op.create_index(
        op.f("ix_batches_newest"),
        "batches",
        [sa.literal_column("created_at DESC"), sa.literal_column("pk DESC")],
        unique=False,
    )
    op.drop_column("results", "recorded_xid")
    for name in (
        "lines_per_second_at",
        "lines_per_second",
        "retries",
        "in_flight",
        "total_tokens",
        "reasoning_tokens",
        "output_tokens",
        "cached_tokens",
        "input_tokens",
    ):
        op.drop_column("shards", name)
    op.drop_column("batches", "retries")
    op.drop_column("batches", "paused_at")
    op.drop_column("batches", "retry_of")
    op.drop_column("batches", "enqueued_tokens")
    op.drop_column("batches", "project_pk")
    op.drop_index(
        "ix_webhook_deliveries_turn",
        table_name="webhook_deliveries",
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.drop_index("ix_webhook_deliveries_endpoint_pk", table_name="webhook_deliveries")
    op.drop_index(
        "ix_webhook_deliveries_ended_at",
        table_name="webhook_deliveries",
        postgresql_where=sa.text("state <> 'pending'"),
    )
    op.drop_index(
        "ix_webhook_deliveries_due",
        table_name="webhook_deliveries",
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.drop_table("webhook_deliveries")
    op.drop_index("ix_upload_parts_upload_pk", table_name="upload_parts")
    op.drop_table("upload_parts")
    op.drop_index("ix_webhook_endpoints_newest", table_name="webhook_endpoints")
    op.drop_table("webhook_endpoints")
    op.drop_index("ix_uploads_project_pk", table_name="uploads")
    op.drop_index("ix_uploads_expires_at", table_name="uploads")
    op.drop_index(
        "ix_uploads_pending", table_name="uploads", postgresql_where=sa.text("status = 'pending'")
    )
    op.drop_table("uploads")
    op.drop_index("ix_idempotency_keys_created_at", table_name="idempotency_keys")
    op.drop_table("idempotency_keys")
    op.drop_index(
        "ix_api_keys_project_pk",
        table_name="api_keys",
        postgresql_where=sa.text("revoked_at IS NULL"),
    )
    op.drop_table("api_keys")
    op.drop_table("projects")
