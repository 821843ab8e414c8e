"""Browsers have sessions, so that the dashboard need not keep a key.

Only hashes are kept, and a session ends with its key: each request asks for both.

Revision ID: c41f9d27ab60
Revises: 8e4b7a1c90d5
Create Date: 2026-11-24 12:30:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "c41f9d27ab60"
down_revision: str | None = "8e4b7a1c90d5"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Add the table of sessions."""
    op.create_table(
        "dashboard_sessions",
        sa.Column("token_digest", sa.LargeBinary(), nullable=False),
        sa.Column("project_pk", sa.BigInteger(), nullable=False),
        sa.Column("api_key_pk", sa.BigInteger(), nullable=True),
        sa.Column("settings_key_digest", sa.LargeBinary(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(api_key_pk IS NULL) <> (settings_key_digest IS NULL)",
            name=op.f("ck_dashboard_sessions_opened_by_one_key"),
        ),
        sa.ForeignKeyConstraint(
            ["api_key_pk"], ["api_keys.pk"], name=op.f("fk_dashboard_sessions_api_key_pk_api_keys")
        ),
        sa.ForeignKeyConstraint(
            ["project_pk"], ["projects.pk"], name=op.f("fk_dashboard_sessions_project_pk_projects")
        ),
        sa.PrimaryKeyConstraint("token_digest", name=op.f("pk_dashboard_sessions")),
    )
    op.create_index("ix_dashboard_sessions_expires_at", "dashboard_sessions", ["expires_at"])


def downgrade() -> None:
    """Drop the table of sessions."""
    op.drop_table("dashboard_sessions")
