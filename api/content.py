"""A file's content as an HTTP answer: whole or one byte range (RFC 9110), streamed.

Promises: the announced length is what is sent; several ranges, or a unit other than bytes, get the
whole file; a file name of any letters is safe in a header; a client that stalls holds little memory.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from models import File

_PATIENCE_SECONDS = 1.0
_ONE_RANGE = re.compile(r"bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})", re.ASCII | re.IGNORECASE)
_PLAIN = re.compile(r"[^A-Za-z0-9._ -]", re.ASCII)


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes from `start` up to, not including, `stop`."""

    start: int
    stop: int


class Unsatisfiable(Exception):
    """The range begins behind the end of the content."""


def parse_range(header: str | None, size: int) -> Span | None:
    """The one range that is asked for; `None` when the whole content is to be sent.

    Raises:
        Unsatisfiable: it touches none of the content's bytes.
    """
    match = _ONE_RANGE.fullmatch(header.strip()) if header is not None else None
    if match is None or match[0].rstrip().endswith("=-") or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, stop = max(size - int(match[2]), 0), size
    else:
        start = int(match[1])
        stop = min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None  # no valid range at all, so the header counts as absent
    if start >= size or start >= stop:
        raise Unsatisfiable
    return Span(start, stop)


def content_disposition(filename: str) -> str:
    """`attachment` with the name in ASCII, and in UTF-8 where that loses something (RFC 6266)."""
    plain = _PLAIN.sub("_", filename)
    header = f'attachment; filename="{plain}"'
    if plain == filename:
        return header
    return f"{header}; filename*=UTF-8''{quote(filename, safe='')}"


def content_response(
    request: Request, file: File, read: Callable[[int, int], AsyncGenerator[bytes]]
) -> Response:
    """The answer to GET or HEAD; `read` yields the bytes between two positions.

    Raises:
        HTTPException: 416, the range lies outside of the file.
    """
    # Content never changes under an id, so the id is all that a validator needs.
    etag = f'"{file.id}"'
    if_range = request.headers.get("if-range")
    wanted = request.headers.get("range") if if_range in {None, etag} else None
    try:
        span = parse_range(wanted, file.bytes)
    except Unsatisfiable:
        headers = {"content-range": f"bytes */{file.bytes}"}
        message = f"The requested range lies outside of the file's {file.bytes} bytes."
        raise HTTPException(416, message, headers) from None
    start, stop = (0, file.bytes) if span is None else (span.start, span.stop)
    headers = {
        "accept-ranges": "bytes",
        "content-disposition": content_disposition(file.filename),
        "content-length": str(stop - start),
        "etag": etag,
    }
    if span is not None:
        headers["content-range"] = f"bytes {start}-{stop - 1}/{file.bytes}"
    status, kind = (200 if span is None else 206), "application/octet-stream"
    if request.method == "HEAD":
        return Response(None, status, headers, kind)
    return StreamingResponse(let_go_while_stalled(read, start, stop), status, headers, kind)


async def let_go_while_stalled(
    read: Callable[[int, int], AsyncGenerator[bytes]],
    start: int,
    stop: int,
    *,
    patience_seconds: float = _PATIENCE_SECONDS,
) -> AsyncGenerator[bytes]:
    """The bytes between two positions; what was read ahead is forgotten while the client takes none.

    It is read again when the client goes on, so that those who stall, however many, hold little memory.
    """
    loop = asyncio.get_running_loop()
    position = start
    while position < stop:
        pieces = read(position, stop)
        letting_go: list[asyncio.Task[None]] = []
        try:
            async for piece in pieces:
                position += len(piece)
                timer = loop.call_later(patience_seconds, _let_go, pieces, letting_go)
                try:
                    yield piece
                finally:
                    timer.cancel()
                if letting_go:
                    break
            else:
                return
        finally:
            await asyncio.gather(*letting_go)
            await pieces.aclose()


def _let_go(pieces: AsyncGenerator[bytes], letting_go: list[asyncio.Task[None]]) -> None:
    letting_go.append(asyncio.get_running_loop().create_task(pieces.aclose()))
