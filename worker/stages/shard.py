"""Stage 2: cut a batch into shards, and set it running.

Promises: all shards and `in_progress` appear in one transaction, or nothing does. If the process
dies before it, the batch is validated again; after it, the sweep rings for its shards.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncSession

from models.batch import Batch
from models.database import Database
from models.lifecycle import BatchStatus
from models.queries import advance
from models.quota import require_enqueuable
from worker.settings import ValidateSettings


@dataclass(slots=True)
class _Piece:
    line_numbers: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    size_bytes: int = 0


class ShardCutter:
    """Deals lines out to shards, in file order, closing one at `lines` lines or `size_bytes` bytes."""

    def __init__(self, *, lines: int, size_bytes: int) -> None:
        self._lines = lines
        self._size_bytes = size_bytes
        self.shards: list[_Piece] = []
        self.total = 0

    def add(self, line_no: int, offset: int, length: int) -> None:
        """Give the next line a place."""
        self.total += 1
        last = self.shards[-1] if self.shards else None
        if last is None or len(last.lengths) >= self._lines or last.size_bytes >= self._size_bytes:
            last = _Piece()
            self.shards.append(last)
        last.line_numbers.append(line_no)
        last.offsets.append(offset)
        last.lengths.append(length)
        last.size_bytes += length

    def line_numbers(self) -> Iterator[int]:
        """The numbers of all lines that have a place."""
        return itertools.chain.from_iterable(piece.line_numbers for piece in self.shards)


async def start_batch(
    database: Database,
    batch: Batch,
    *,
    model: str | None,
    tokens: int,
    cutter: ShardCutter,
    settings: ValidateSettings,
) -> bool:
    """Write the shards and move the batch to `in_progress`; `False` if it has moved elsewhere.

    Raises:
        EnqueuedLimitReached: its project would have too much enqueued for this model.
    """
    async with database.begin() as session:
        await require_enqueuable(
            session,
            batch,
            model=model,
            lines=cutter.total,
            tokens=tokens,
            max_lines=settings.max_enqueued_lines,
            max_tokens=settings.max_enqueued_tokens,
        )
        started = await advance(
            session,
            batch.pk,
            BatchStatus.IN_PROGRESS,
            Batch.lease_owner == batch.lease_owner,
            model=model,
            total=cutter.total,
            enqueued_tokens=tokens,
        )
        if started:
            await _insert_shards(session, batch.pk, cutter.shards)
    return started


async def _insert_shards(session: AsyncSession, batch_pk: int, pieces: list[_Piece]) -> None:
    connection = await session.connection()
    rows = [
        {
            "batch_pk": batch_pk,
            "no": no,
            "line_numbers": _array(piece.line_numbers),
            "offsets": _array(piece.offsets),
            "lengths": _array(piece.lengths),
            "size": len(piece.line_numbers),
        }
        for no, piece in enumerate(pieces)
    ]
    if rows:
        await connection.exec_driver_sql(_INSERT, rows)


_INSERT = """
    INSERT INTO shards (batch_pk, no, line_numbers, offsets, lengths, size)
    VALUES (%(batch_pk)s, %(no)s, %(line_numbers)s::text::int[], %(offsets)s::text::bigint[],
            %(lengths)s::text::int[], %(size)s)
"""


def _array(numbers: list[int]) -> str:
    """An array as Postgres writes it: psycopg would turn number by number, for half a second in all."""
    return "{" + ",".join(map(str, numbers)) + "}"
