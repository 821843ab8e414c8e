"""Parts joined to one file: their chunks are given to it as they are, or it is written anew.

Promises: where the parts' sizes allow it, no byte is copied, and joining eight gigabytes is a statement
over some ten thousand keys; otherwise the copy is made a few chunks at a time.
"""

from collections.abc import AsyncGenerator, Sequence
from itertools import accumulate

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from models import storage
from models.database import Database
from models.errors import InputUnreadable
from models.file import File

_PARTS_AT_ONCE = 16

_MOVE = text(
    """
    UPDATE file_chunks SET file_pk = :file_pk, no = no + moving.first
    FROM unnest(CAST(:part_pks AS bigint[]), CAST(:firsts AS integer[])) AS moving (part_pk, first)
    WHERE file_chunks.file_pk = moving.part_pk
    """
)


def fit_together(parts: Sequence[File]) -> bool:
    """Whether the parts' chunks, one part after the other, are those of a file as they stand."""
    return all(part.chunk_bytes == storage.CHUNK_BYTES for part in parts) and all(
        part.bytes % storage.CHUNK_BYTES == 0 for part in parts[:-1]
    )


async def move_chunks(session: AsyncSession, parts: Sequence[File], file_pk: int) -> None:
    """Give the chunks of parts that fit together to one file, in the caller's transaction.

    Only keys change: the bytes lie outside of the rows, and Postgres leaves them where they are.

    Raises:
        InputUnreadable: some chunk is not there any more.
    """
    first = 0
    for begin in range(0, len(parts), _PARTS_AT_ONCE):
        few = parts[begin : begin + _PARTS_AT_ONCE]
        counts = [-(-part.bytes // storage.CHUNK_BYTES) for part in few]
        *firsts, end = accumulate(counts, initial=first)
        moved = await session.execute(
            _MOVE, {"file_pk": file_pk, "part_pks": [part.pk for part in few], "firsts": firsts}
        )
        if moved.rowcount != end - first:  # type: ignore[attr-defined]  # a CursorResult for an UPDATE
            message = f"parts of file {file_pk} have lost chunks"
            raise InputUnreadable(message)
        first = end


async def read_through(database: Database, parts: Sequence[File]) -> AsyncGenerator[bytes]:
    """Yield the bytes of the parts, one part after the other, in pieces.

    Raises:
        InputUnreadable: some chunk is not there any more.
    """
    for part in parts:
        async for piece in storage.read_range(database, part):
            yield piece
