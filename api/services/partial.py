"""The results of a batch while it runs, in an order that stays: an extension.

Several shards write at once, so neither line numbers nor times give an order in which nothing appears
before what was served already: a transaction may begin early and commit late. Each row therefore
bears the number of the transaction that wrote it, and only rows are served whose number is below that
of every transaction still under way. To those none can be added any more; by (transaction, line
number) they come in the same order at every request, and what is recorded later comes behind them.
The price: a long writing transaction anywhere on the server, such as another batch's finalizing,
holds new rows back until it ends; and a database that was restored from a dump counts transactions
anew, so that a batch which ran at the time of the dump may show its older rows only at its end.

Promises: a page of rows in memory, and no transaction held while a client is slow; if the batch ends
in mid-answer, the rest comes from its file. After the end its finished file is served, whole: it is in
the order of the input, in which a place in the order of recording means nothing.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import ARRAY, BigInteger, Integer, Text, bindparam, cast, func, select

from api.services import batches, files
from models import Batch, File, Result
from models.database import Database
from models.errors import Unavailable
from models.ids import request_id
from models.lifecycle import FINAL
from models.lines import request_id_of
from models.project import Caller
from models.storage import read_lines, read_range

_PAGE_BYTES = 2 * 1024 * 1024
_PAGE_ROWS = 1000
_MAX_LINE_BYTES = 1024 * 1024 * 1024


class Kind(StrEnum):
    """Which of a batch's two files."""

    OUTPUT = "output"
    ERRORS = "errors"


@dataclass(frozen=True, slots=True)
class Lines:
    """JSON lines, and the number of the last of them if more are to come."""

    pieces: AsyncIterator[bytes]
    last_line: int | None = None


async def read(
    database: Database, caller: Caller, *, batch_id: str, kind: Kind, offset: int
) -> Lines:
    """The lines of one kind behind the first `offset` of them; all, once the batch has ended.

    Raises:
        BatchNotFound: there is none with this id.
        FileNotFound: the batch has ended, and its file has been deleted since.
    """
    async with database.begin() as session:
        batch = await batches.find(session, caller, batch_id)
    if batch.status in FINAL:
        file = await _finished_file(database, caller, batch, kind)
        return Lines(_nothing() if file is None else read_range(database, file))
    pages = await _plan(database, batch.pk, kind, offset)
    last_line = offset + sum(map(len, pages))
    return Lines(_recorded(database, caller, batch, kind, pages), last_line)


async def _plan(database: Database, batch_pk: int, kind: Kind, offset: int) -> list[list[int]]:
    """The line numbers, in the order of their answer, in pages that fit into memory."""
    oldest_running = func.pg_snapshot_xmin(func.pg_current_snapshot())
    statement = (
        select(Result.line_no, func.octet_length(Result.line))
        .where(
            Result.batch_pk == batch_pk,
            Result.succeeded == (kind is Kind.OUTPUT),
            Result.recorded_xid < cast(cast(oldest_running, Text), BigInteger),
        )
        .order_by(Result.recorded_xid, Result.line_no)
        .offset(offset)
        .execution_options(yield_per=_PAGE_ROWS)
    )
    pages: list[list[int]] = []
    size = _PAGE_BYTES
    async with database.begin() as session:
        async for rows in (await session.stream(statement)).partitions():
            for line_no, length in rows:
                if size + length > _PAGE_BYTES or len(pages[-1]) == _PAGE_ROWS:
                    pages.append([])
                    size = 0
                pages[-1].append(line_no)
                size += length
    return pages


async def _recorded(
    database: Database, caller: Caller, batch: Batch, kind: Kind, pages: list[list[int]]
) -> AsyncIterator[bytes]:
    for index, page in enumerate(pages):
        wanted = bindparam("line_numbers", page, type_=ARRAY(Integer))
        async with database.statement() as session:
            rows = await session.execute(
                select(Result.line_no, Result.line).where(
                    Result.batch_pk == batch.pk, Result.line_no == func.any(wanted)
                )
            )
            found: dict[int, bytes] = {row.line_no: row.line for row in rows}
        if len(found) < len(page):
            rest = {request_id(batch.id, line_no) for some in pages[index:] for line_no in some}
            async for line in _from_file(database, caller, batch, kind, rest):
                yield line
            return
        yield b"".join(found.pop(line_no) for line_no in page)


async def _from_file(
    database: Database, caller: Caller, batch: Batch, kind: Kind, wanted: set[str]
) -> AsyncIterator[bytes]:
    """Those lines of the finished file: the batch has ended, and its results are there now."""
    async with database.begin() as session:
        batch = await batches.find(session, caller, batch.id)
    file = await _finished_file(database, caller, batch, kind)
    if file is None:
        # They were recorded, so there is a file; the answer has begun, so it can only be cut off.
        what = f"{kind} of batch {batch.id}"
        raise Unavailable(what)
    ids = {each.encode() for each in wanted}
    async for lines in read_lines(database, file, max_line_bytes=_MAX_LINE_BYTES):
        for line in lines:
            if request_id_of(line.raw) in ids:
                yield line.raw + b"\n"


async def _finished_file(
    database: Database, caller: Caller, batch: Batch, kind: Kind
) -> File | None:
    file_id = batch.output_file_id if kind is Kind.OUTPUT else batch.error_file_id
    return None if file_id is None else await files.open_content(database, caller, file_id=file_id)


async def _nothing() -> AsyncIterator[bytes]:
    pieces: tuple[bytes, ...] = ()
    for piece in pieces:
        yield piece
