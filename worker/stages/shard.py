"""Stage 2: cut a batch into shards, and set it running.

Promises: all shards and `in_progress` appear in one transaction, or nothing does. If the process
dies before it, the batch is validated again; after it, the sweep rings for its shards.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from sqlalchemy.ext.asyncio import AsyncSession

from models.batch import Batch
from models.chunk_cache import KEPT_BYTES
from models.database import Database
from models.failpoints import Failpoint, pass_failpoint
from models.lifecycle import BatchStatus
from models.prefix import Prefix
from models.queries import advance
from models.quota import require_enqueuable
from worker.settings import ValidateSettings

_WINDOW_BYTES = KEPT_BYTES // 2


@dataclass(slots=True)
class Piece:
    """The places of one shard's lines, in the order in which they are called."""

    line_numbers: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    size_bytes: int = 0


class ShardCutter:
    """Deals lines out to shards, closing one at `lines` lines or `size_bytes` bytes.

    Lines whose prompts begin alike follow one another, so that the model server's prefix cache hits:
    groups in the order of their first line, in them the longer beginnings likewise, and then
    the lines of the file. A file whose groups lie together already is dealt out as it is.

    That is done within windows of 16 MB of lines, and no shard reaches over the end of such a window. The
    lines of a group may lie all over it, so each shard reads most of the window; over a whole file of
    200 MB that would be fifty times the file and more. Of a window, a process keeps every chunk
    (`ChunkCache`, which holds two windows), and so reads it once: all processes together, the file as
    often as there are processes. With 50 prompts in turn and lines of 4 KB, a group has 80 lines a
    window, and a prefix is computed once for those instead of 80 times.
    """

    def __init__(self, *, lines: int, size_bytes: int, window_bytes: int = _WINDOW_BYTES) -> None:
        self._lines = lines
        self._size_bytes = size_bytes
        self._window_bytes = window_bytes
        # Arrays: 50,000 lines take two megabytes.
        self._line_numbers = array("i")
        self._offsets = array("q")
        self._lengths = array("i")
        self._prefixes = (array("q"), array("q"), array("q"))

    @property
    def total(self) -> int:
        """How many lines have been added."""
        return len(self._line_numbers)

    def add(self, line_no: int, offset: int, length: int, prefix: Prefix | None = None) -> None:
        """Take the next line of the file."""
        self._line_numbers.append(line_no)
        self._offsets.append(offset)
        self._lengths.append(length)
        for column, number in zip(self._prefixes, prefix or _NO_PREFIX, strict=True):
            column.append(number)

    def deal(self) -> list[Piece]:
        """All lines, dealt out to shards."""
        pieces: list[Piece] = []
        is_cut = True
        for window in self._windows():
            order = self._order(window)
            is_cut = is_cut or order is not window
            for index in order:
                if is_cut or self._is_full(pieces[-1]):
                    pieces.append(Piece())
                    is_cut = False
                last = pieces[-1]
                last.line_numbers.append(self._line_numbers[index])
                last.offsets.append(self._offsets[index])
                last.lengths.append(self._lengths[index])
                last.size_bytes += self._lengths[index]
            is_cut = order is not window
        return pieces

    def _is_full(self, piece: Piece) -> bool:
        return len(piece.lengths) >= self._lines or piece.size_bytes >= self._size_bytes

    def _windows(self) -> Iterator[range]:
        begin = size = 0
        for index, length in enumerate(self._lengths):
            if size and size + length > self._window_bytes:
                yield range(begin, index)
                begin, size = index, 0
            size += length
        if size:
            yield range(begin, self.total)

    def _order(self, window: range) -> Iterable[int]:
        """The window's lines by group; the window itself if they lie so already."""
        first, second, third = self._prefixes
        seen: dict[int, int] = {}
        ranks: list[tuple[int, int, int, int]] = []
        for index in window:
            if third[index] == 0:
                ranks.append((index, index, index, index))
                continue
            ranks.append(
                (
                    seen.setdefault(first[index], index),
                    seen.setdefault(second[index], index),
                    seen.setdefault(third[index], index),
                    index,
                )
            )
        if all(one <= next_ for one, next_ in pairwise(ranks)):
            return window
        ranks.sort()
        return [index for _, _, _, index in ranks]


_NO_PREFIX = Prefix(0, 0, 0)


async def start_batch(
    database: Database,
    batch: Batch,
    *,
    model: str | None,
    tokens: int,
    shards: list[Piece],
    settings: ValidateSettings,
) -> bool:
    """Write the shards and move the batch to `in_progress`; `False` if it has moved elsewhere.

    Raises:
        EnqueuedLimitReached: its project would have too much enqueued for this model.
    """
    total = sum(len(shard.line_numbers) for shard in shards)
    async with database.begin() as session:
        await require_enqueuable(
            session,
            batch,
            model=model,
            lines=total,
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
            total=total,
            enqueued_tokens=tokens,
        )
        if started:
            pass_failpoint(Failpoint.VALIDATE_MOVING)
            await _insert_shards(session, batch.pk, shards)
            pass_failpoint(Failpoint.VALIDATE_ADDING_SHARDS)
    return started


async def _insert_shards(session: AsyncSession, batch_pk: int, pieces: list[Piece]) -> None:
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
