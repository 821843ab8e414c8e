"""A shard: a few hundred lines of one batch that one worker calls under one lease.

It names its lines by number and place in the input, so that lines can be grouped in any way, and
that a worker reads just the pieces of the file it needs. It lives until its batch's files stand.
"""

from datetime import datetime

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    Text,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, BigInt, PrimaryKey
from models.lifecycle import ShardState


class Shard(Base):
    """`line_numbers[i]` is at bytes `offsets[i]` to `offsets[i] + lengths[i]` of the input file.

    `succeeded` and `failed` are the numbers of result rows written under its lease; they are
    changed only in the transaction that inserts those rows.
    """

    __tablename__ = "shards"

    pk: Mapped[PrimaryKey]
    batch_pk: Mapped[int] = mapped_column(ForeignKey("batches.pk", ondelete="CASCADE"))
    no: Mapped[int] = mapped_column(Integer)
    line_numbers: Mapped[list[int]] = mapped_column(ARRAY(Integer))
    offsets: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    lengths: Mapped[list[int]] = mapped_column(ARRAY(Integer))
    size: Mapped[int] = mapped_column(Integer)

    state: Mapped[str] = mapped_column(Text, server_default=ShardState.QUEUED)
    lease_owner: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[datetime | None]
    claims: Mapped[int] = mapped_column(Integer, server_default="0")
    succeeded: Mapped[int] = mapped_column(Integer, server_default="0")
    failed: Mapped[int] = mapped_column(Integer, server_default="0")
    # Leases in a row that ran out with nothing recorded: what a line that kills its worker leaves.
    lapses: Mapped[int] = mapped_column(Integer, server_default="0")

    # What the progress of a batch is told from, written by `worker.recorder` as it goes along: the
    # tokens of the counted lines; calls in flight, which mean something only while the lease lives;
    # calls that were made again; and how fast lines ended, as of `lines_per_second_at`.
    input_tokens: Mapped[BigInt] = mapped_column(server_default="0")
    cached_tokens: Mapped[BigInt] = mapped_column(server_default="0")
    output_tokens: Mapped[BigInt] = mapped_column(server_default="0")
    reasoning_tokens: Mapped[BigInt] = mapped_column(server_default="0")
    total_tokens: Mapped[BigInt] = mapped_column(server_default="0")
    in_flight: Mapped[int] = mapped_column(Integer, server_default="0")
    retries: Mapped[int] = mapped_column(Integer, server_default="0")
    lines_per_second: Mapped[float] = mapped_column(Double, server_default="0")
    lines_per_second_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("state IN ('queued', 'running', 'done')", name="state_known"),
        CheckConstraint(
            "(state = 'running') = (lease_owner IS NOT NULL)"
            " AND (lease_owner IS NULL) = (lease_until IS NULL)",
            name="lease_only_while_running",
        ),
        CheckConstraint(
            "succeeded >= 0 AND failed >= 0 AND succeeded + failed <= size", name="counts_sane"
        ),
        CheckConstraint(
            "state <> 'done' OR succeeded + failed = size", name="done_means_all_counted"
        ),
        CheckConstraint(
            "size > 0 AND cardinality(line_numbers) = size AND cardinality(offsets) = size"
            " AND cardinality(lengths) = size",
            name="lines_whole",
        ),
        Index("uq_shards_batch_pk_no", "batch_pk", "no", unique=True),
        # What a claim looks for: the first runnable shard of a batch, and how many of it run.
        Index("ix_shards_open", "batch_pk", "no", postgresql_where=text("state <> 'done'")),
        Index("ix_shards_running", "batch_pk", postgresql_where=text("state = 'running'")),
        # What the sweep looks for: batches that may be done.
        Index("ix_shards_done", "batch_pk", postgresql_where=text("state = 'done'")),
        # Counters and leases change often and no index covers them: leave room for HOT updates.
        {"postgresql_with": {"fillfactor": "50"}},
    )
