"""A result: the finished output line of one input line. Pending means that there is no row.

The primary key is the promise: a line has at most one result. Rows are only ever inserted, by
`worker.recorder`, and are dropped when the batch's files stand.
"""

from datetime import datetime

from sqlalchemy import REAL, BigInteger, Boolean, Integer, LargeBinary, func, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, BigInt


class Result(Base):
    """`line` is the JSON line as it goes into the output (`succeeded`) or the error file, with its newline.

    No foreign key to the batch: its check would cost more than the insert, and batches are not deleted.
    """

    __tablename__ = "results"

    batch_pk: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    line_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    succeeded: Mapped[bool] = mapped_column(Boolean)
    line: Mapped[bytes] = mapped_column(LargeBinary)
    input_tokens: Mapped[BigInt]
    cached_tokens: Mapped[BigInt]
    output_tokens: Mapped[BigInt]
    reasoning_tokens: Mapped[BigInt]
    total_tokens: Mapped[BigInt]
    # How long its last call took; null or zero if that is not known. What `models.history` tells from.
    seconds: Mapped[float | None] = mapped_column(REAL)
    recorded_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # The transaction that wrote the row: it gives partial results an order that stays, see the module
    # `api.services.partial`. A plain number, for SQLAlchemy knows no xid8.
    recorded_xid: Mapped[BigInt] = mapped_column(
        server_default=text("(pg_current_xact_id()::text::bigint)")
    )
