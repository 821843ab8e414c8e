"""Projects have weights, and a claim finds running and runnable shards by an index.

A claim counted all open shards, however many there were; now it counts those that run. The index of open
shards is in the order in which they are claimed. Neither has a column that a lease's renewal writes, for
renewals must stay updates that touch no index.

A shard counts the leases that ran out in vain, and a batch the tries of its stage, so that what kills its
worker each time can be set aside.

Room that deleted rows leave is found after a fiftieth of a table has gone, not a fifth: that would be
hundreds of gigabytes of files, and is what the database would grow by.

Revision ID: 8e4b7a1c90d5
Revises: 3d9c48228c43
Create Date: 2026-11-23 19:55:02
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "8e4b7a1c90d5"
down_revision: str | None = "3d9c48228c43"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_OFTEN_VACUUMED = ("file_chunks", "results", "shards")
"""Whose rows come and go; what of them lies outside of the rows follows the table's setting."""


def upgrade() -> None:
    """Add the weight and the indexes."""
    op.add_column("projects", sa.Column("weight", sa.Double(), server_default="1", nullable=False))
    op.create_check_constraint(
        op.f("ck_projects_weight_sane"), "projects", "weight > 0 AND weight <= 1000"
    )
    op.create_index(
        "ix_batches_running",
        "batches",
        ["project_pk", "expires_at", "pk"],
        unique=False,
        postgresql_where=sa.text("status = 'in_progress'"),
    )
    op.create_index(
        "ix_batches_urgent",
        "batches",
        [sa.literal_column("((expires_at AT TIME ZONE 'UTC') - (expires_at - created_at) / 8)")],
        unique=False,
        postgresql_where=sa.text("status = 'in_progress'"),
    )
    op.drop_index(
        "ix_shards_open", table_name="shards", postgresql_where=sa.text("state <> 'done'")
    )
    op.create_index(
        "ix_shards_open",
        "shards",
        ["batch_pk", "no"],
        unique=False,
        postgresql_where=sa.text("state <> 'done'"),
    )
    op.create_index(
        "ix_shards_running",
        "shards",
        ["batch_pk"],
        unique=False,
        postgresql_where=sa.text("state = 'running'"),
    )
    for table in _OFTEN_VACUUMED:
        op.execute(f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = 0.02)")
    op.create_index(
        "ix_batches_leased",
        "batches",
        ["status"],
        unique=False,
        postgresql_where=sa.text("lease_owner IS NOT NULL"),
    )
    op.create_index(
        "ix_shards_done",
        "shards",
        ["batch_pk"],
        unique=False,
        postgresql_where=sa.text("state = 'done'"),
    )
    op.add_column("shards", sa.Column("lapses", sa.Integer(), server_default="0", nullable=False))
    op.add_column("batches", sa.Column("tries", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    """Take them back. All projects weigh the same again."""
    op.drop_column("batches", "tries")
    op.drop_column("shards", "lapses")
    for table in _OFTEN_VACUUMED:
        op.execute(f"ALTER TABLE {table} RESET (autovacuum_vacuum_scale_factor)")
    op.drop_index(
        "ix_batches_leased",
        table_name="batches",
        postgresql_where=sa.text("lease_owner IS NOT NULL"),
    )
    op.drop_index("ix_shards_done", table_name="shards", postgresql_where=sa.text("state = 'done'"))
    op.drop_index(
        "ix_shards_running", table_name="shards", postgresql_where=sa.text("state = 'running'")
    )
    op.drop_index(
        "ix_shards_open", table_name="shards", postgresql_where=sa.text("state <> 'done'")
    )
    op.create_index(
        "ix_shards_open",
        "shards",
        ["batch_pk", "state"],
        unique=False,
        postgresql_where=sa.text("state <> 'done'"),
    )
    for name in ("ix_batches_urgent", "ix_batches_running"):
        op.drop_index(
            name, table_name="batches", postgresql_where=sa.text("status = 'in_progress'")
        )
    op.drop_constraint(op.f("ck_projects_weight_sane"), "projects", type_="check")
    op.drop_column("projects", "weight")
