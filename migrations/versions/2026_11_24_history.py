"""A result tells when it was recorded and how long its call took; a batch keeps how it went.

From these a batch's history is told while it runs. Its results are dropped at its end, and what they told
stays in the batch's row. Earlier results have no time of a call, and earlier batches no history.

Both columns of `results` come without a rewrite of the table: one is empty, the other has one value.

Revision ID: 5b8e02d7f3a1
Revises: c41f9d27ab60
Create Date: 2026-11-24 12:55:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "5b8e02d7f3a1"
down_revision: str | None = "c41f9d27ab60"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("results", sa.Column("seconds", sa.REAL(), nullable=True))
    op.add_column(
        "results",
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
    )
    op.add_column("batches", sa.Column("history", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Drop the columns."""
    op.drop_column("batches", "history")
    op.drop_column("results", "recorded_at")
    op.drop_column("results", "seconds")
