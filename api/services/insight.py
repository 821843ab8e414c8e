"""What one batch's results tell: its history, what failed and why, and any line beside its answer.

Extensions. Promises: a question reads results, or files, of one batch; no more than a line or a bounded
number of error lines is in memory, and no transaction is held while a file is read. While the batch runs
the answers come from the results so far, afterwards from its files, as long as they are kept.
"""

import asyncio
from collections.abc import AsyncIterator

import msgspec
from sqlalchemy import func, select

from api.services import batches, partial
from api.services.batches import find
from models import Batch, File, Result, Shard
from models.database import Database
from models.errors import BatchLineNotFound, FileNotFound, InputUnreadable
from models.history import history_of
from models.ids import request_id
from models.lifecycle import FINAL
from models.lines import request_id_of
from models.project import Caller
from models.queries import file_is_visible
from models.reading import LineReader
from models.storage import read_lines, read_places
from models.wire_extensions import (
    BatchFailures,
    BatchHistory,
    BatchLine,
    FailedLine,
    FailureGroup,
)

_MOST_FAILURES = 5000
_MOST_FAILURE_BYTES = 8 * 1024 * 1024
_EXAMPLES = 5
_MAX_MESSAGE = 500
_MAX_GROUPS = 50
_SHOWN_BYTES = 256 * 1024
_MAX_LINE_BYTES = 1024 * 1024 * 1024


async def history(database: Database, caller: Caller, *, batch_id: str) -> BatchHistory:
    """How a batch went so far, or over all.

    Raises:
        BatchNotFound: there is none with this id.
    """
    async with database.begin() as session:
        batch = await find(session, caller, batch_id)
        if batch.status in FINAL:
            kept = await session.scalar(select(Batch.history).where(Batch.pk == batch.pk))
        elif batch.in_progress_at is None:
            kept = None
        else:
            begins_at = batch.in_progress_at.timestamp()
            kept = await history_of(session, batch.pk, begins_at=begins_at, so_far=True)
    return BatchHistory(batch_id=batch_id) if kept is None else BatchHistory.of(batch_id, kept)


class _Error(msgspec.Struct):
    code: str | None = None
    message: str | None = None
    type: str | None = None


class _Body(msgspec.Struct):
    error: _Error | str | None = None


class _Response(msgspec.Struct):
    status_code: int
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Failed(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Failed).decode
_decode_body = msgspec.json.Decoder(_Body).decode


async def failures(database: Database, caller: Caller, *, batch_id: str) -> BatchFailures:
    """The failed lines by their codes, most first: of the first few thousand of them.

    Raises:
        BatchNotFound: there is none with this id.
        FileNotFound: the batch has ended, and its error file has been deleted since.
    """
    async with database.statement() as session:
        total = (await batches.show(session, caller, batch_id)).request_counts.total
    lines = await partial.read(
        database, caller, batch_id=batch_id, kind=partial.Kind.ERRORS, offset=0
    )
    groups: dict[tuple[str, int | None], FailureGroup] = {}
    named: dict[str, FailedLine] = {}
    count = size = 0
    is_whole = True
    async for line in _lines(lines.pieces):
        if count == _MOST_FAILURES or size > _MOST_FAILURE_BYTES:
            is_whole = False
            break
        count, size = count + 1, size + len(line)
        custom_id, code, status_code, message = _fault(line)
        group = groups.get((code, status_code))
        if group is None:
            if len(groups) == _MAX_GROUPS:
                is_whole = False
                continue
            group = groups[code, status_code] = FailureGroup(
                code=code, status_code=status_code, message=message, count=0, examples=[]
            )
        group.count += 1
        if len(group.examples) < _EXAMPLES:
            example = FailedLine(line=0, custom_id=custom_id)
            group.examples.append(example)
            named[request_id_of(line).decode()] = example
    await asyncio.to_thread(_number, named, batch_id, total)
    data = sorted(groups.values(), key=lambda group: -group.count)
    return BatchFailures(batch_id=batch_id, lines_read=count, is_whole=is_whole, data=data)


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    reader = LineReader(max_line_bytes=_MAX_LINE_BYTES)
    async for piece in pieces:
        for lines in reader.feed(piece):
            for line in lines:
                yield line.raw
    for lines in reader.end():
        for line in lines:
            yield line.raw


def _fault(line: bytes) -> tuple[str, str, int | None, str]:
    """The custom id, the code, the status and the words of an error line."""
    try:
        failed = _decode(line)
    except msgspec.MsgspecError:
        return "", "unreadable", None, "This error line cannot be read."
    error, status_code = failed.error, None
    if failed.response is not None:
        status_code = failed.response.status_code
        error = _error_of(failed.response)
    code = (error and (error.code or error.type)) or (
        "no_answer" if status_code is None else f"http_{status_code}"
    )
    message = (error and error.message) or f"The model server answered {status_code}."
    return failed.custom_id, code[:_MAX_MESSAGE], status_code, message[:_MAX_MESSAGE]


def _error_of(response: _Response) -> _Error | None:
    try:
        error = _decode_body(response.body).error
    except msgspec.MsgspecError:
        return None
    return _Error(message=error) if isinstance(error, str) else error


def _number(named: dict[str, FailedLine], batch_id: str, total: int) -> None:
    """Find the numbers of lines by their ids, which are made from them."""
    left = len(named)
    for line_no in range(1, total + 1):
        if not left:
            return
        example = named.get(request_id(batch_id, line_no))
        if example is not None:
            example.line = line_no
            left -= 1


async def line(database: Database, caller: Caller, *, batch_id: str, line_no: int) -> BatchLine:
    """One line, and what was answered if it has been.

    Raises:
        BatchNotFound: there is none with this id.
        BatchLineNotFound: its input has no such line.
        FileNotFound: its input, or the file of its results, has been deleted.
    """
    async with database.begin() as session:
        batch = await find(session, caller, batch_id)
        is_input = (File.pk == batch.input_file_pk) | (File.id == batch.input_file_id)
        file = await session.scalar(
            select(File).where(is_input, file_is_visible(caller.project_pk))
        )
    if file is None:
        raise FileNotFound(batch.input_file_id)
    request = await _request(database, batch, file, line_no)
    answer, succeeded, seconds = await _answer(database, caller, batch, line_no)
    return BatchLine(
        batch_id=batch.id,
        line=line_no,
        request=_shown(request),
        request_is_cut=len(request) > _SHOWN_BYTES,
        answer=None if answer is None else _shown(answer),
        answer_is_cut=answer is not None and len(answer) > _SHOWN_BYTES,
        succeeded=succeeded,
        seconds=seconds,
    )


def _shown(raw: bytes) -> str:
    return raw[:_SHOWN_BYTES].decode(errors="replace")


async def _request(database: Database, batch: Batch, file: File, line_no: int) -> bytes:
    place = await _place(database, batch, line_no)
    try:
        if place is not None:
            async for _, raw in read_places(database, file, [place]):
                return raw
        async for lines in read_lines(database, file, max_line_bytes=_MAX_LINE_BYTES):
            if lines[-1].line_no >= line_no:
                return next(each.raw for each in lines if each.line_no == line_no)
    except (InputUnreadable, StopIteration):
        raise BatchLineNotFound(batch.id, line_no) from None
    raise BatchLineNotFound(batch.id, line_no)


async def _place(database: Database, batch: Batch, line_no: int) -> tuple[int, int, int] | None:
    """Where the line is in the input: known as long as the batch has shards."""
    at = func.array_position(Shard.line_numbers, line_no)
    async with database.statement() as session:
        row = (
            await session.execute(
                select(Shard.offsets[at], Shard.lengths[at])
                .where(Shard.batch_pk == batch.pk, at.is_not(None))
                .limit(1)
            )
        ).one_or_none()
    return None if row is None else (line_no, row[0], row[1])


async def _answer(
    database: Database, caller: Caller, batch: Batch, line_no: int
) -> tuple[bytes | None, bool | None, float | None]:
    async with database.statement() as session:
        row = (
            await session.execute(
                select(Result.line, Result.succeeded, Result.seconds).where(
                    Result.batch_pk == batch.pk, Result.line_no == line_no
                )
            )
        ).one_or_none()
    if row is not None:
        return row.line.rstrip(b"\n"), row.succeeded, row.seconds
    wanted = request_id(batch.id, line_no).encode()
    for kind in partial.Kind if batch.status in FINAL else ():
        found = await partial.read(database, caller, batch_id=batch.id, kind=kind, offset=0)
        async for raw in _lines(found.pieces):
            if request_id_of(raw) == wanted:
                return raw, kind is partial.Kind.OUTPUT, None
    return None, None, None
