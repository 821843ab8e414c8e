"""A batch keeps the span that created it, so that what other processes do for it is of the same trace.

Null unless the API traces; nothing else reads it.

Revision ID: 7d20c5e8a914
Revises: 5b8e02d7f3a1
Create Date: 2026-11-24 12:55:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "7d20c5e8a914"
down_revision: str | None = "5b8e02d7f3a1"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("batches", sa.Column("traceparent", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drop it; traces of batches at work then end where they are."""
    op.drop_column("batches", "traceparent")
