"""multipart/form-data, read as it arrives: parts in any order, of any size, never kept.

Promises: at most one piece of the stream is in memory; whatever is not such a form is refused with a
sentence; a stream that can no longer fit is not read to its end.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, NamedTuple
from urllib.parse import unquote

from multipart import (  # type: ignore[import-untyped]  # it ships no types
    MultipartError,
    PushMultipartParser,
    parse_options_header,
)
from starlette.requests import Request

from models.errors import FileTooLarge, InvalidParameter
from models.lines import MAX_ECHO

MAX_FIELD_BYTES = 4096
OVERHEAD_BYTES = 1024 * 1024
"""Most that boundaries, headers and fields may add to the file's own bytes."""

_FORM = "multipart/form-data"
_MAX_PARTS = 32
_MAX_HEADER_BYTES = 16 * 1024
# Not allowed in forms (RFC 7578), but sent by older clients for names that are not ASCII.
_EXTENDED_NAME = re.compile(r"filename\*\s*=\s*\"?utf-8'[^']*'([^;\"]+)", re.ASCII | re.IGNORECASE)


class _Header(NamedTuple):
    name: str
    filename: str | None


# A part is its header, its bytes in pieces, and `None` for its end.
_Event = _Header | bytes | None


class Part:
    """One part of a form. Iterate over its bytes before asking for the next part."""

    def __init__(self, header: _Header, events: AsyncIterator[_Event]) -> None:
        self.name = header.name
        self.filename = header.filename
        self._events = events
        self._is_read = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield its bytes, piece by piece."""
        while not self._is_read:
            event = await anext(self._events)
            if isinstance(event, bytes):
                yield event
            else:
                self._is_read = True

    async def text(self) -> str:
        """The whole part as a short text.

        Raises:
            InvalidParameter: it is long, or no UTF-8.
        """
        name = self.name[:MAX_ECHO]
        raw = bytearray()
        async for piece in self:
            raw += piece
            if len(raw) > MAX_FIELD_BYTES:
                message = f"Invalid '{name}': it is longer than {MAX_FIELD_BYTES} bytes."
                raise InvalidParameter(message, param=name, code="string_above_max_length")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            message = f"Invalid '{name}': it is not valid UTF-8."
            raise InvalidParameter(message, param=name, code="invalid_value") from None


async def read_form(request: Request, *, max_file_bytes: int) -> AsyncGenerator[Part]:
    """Yield the parts of a request's form as they arrive.

    Raises:
        InvalidParameter: the request is no such form, or a broken one.
        FileTooLarge: it is longer than the largest file and the form around it.
    """
    parser = _parser_for(request.headers.get("content-type", ""))
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_file_bytes + OVERHEAD_BYTES:
        raise FileTooLarge(max_file_bytes)
    events = _events(parser, request.stream(), max_file_bytes)
    async for event in events:
        if isinstance(event, _Header):
            part = Part(event, events)
            yield part
            async for _ in part:
                pass  # whatever the caller left


async def _events(
    parser: PushMultipartParser, stream: AsyncIterator[bytes], max_file_bytes: int
) -> AsyncIterator[_Event]:
    received = 0
    try:
        async for piece in stream:
            received += len(piece)
            if received > max_file_bytes + OVERHEAD_BYTES:
                raise FileTooLarge(max_file_bytes)
            # An empty piece would tell the parser that the stream has ended.
            if piece:
                for event in parser.parse(piece):
                    yield event if event is None or isinstance(event, bytes) else _header(event)
        parser.close()
    except MultipartError as error:
        message = f"Could not parse the multipart form: {error.args[0]}."
        raise InvalidParameter(message) from error


def _parser_for(content_type: str) -> PushMultipartParser:
    kind, options = parse_options_header(content_type)
    if kind != _FORM:
        message = (
            f"Unsupported content type: '{kind[:MAX_ECHO]}'. This API method only accepts '{_FORM}'"
            " requests. Please try again with a supported content type."
        )
        raise InvalidParameter(message, code="unsupported_content_type")
    try:
        return PushMultipartParser(
            options.get("boundary", ""),
            # Latin-1 takes any byte; `_reread` puts right what was UTF-8.
            header_charset="latin-1",
            max_header_size=_MAX_HEADER_BYTES,
            max_segment_count=_MAX_PARTS,
        )
    except MultipartError as error:
        message = "The Content-Type header has no valid multipart boundary."
        raise InvalidParameter(message, code="unsupported_content_type") from error


def _reread(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "replace")


def _header(segment: Any) -> _Header:
    filename = None if segment.filename is None else _reread(segment.filename)
    if filename is None:
        disposition = next(v for name, v in segment.headerlist if name == "Content-Disposition")
        extended = _EXTENDED_NAME.search(disposition)
        filename = None if extended is None else unquote(extended[1], errors="replace")
    return _Header(_reread(segment.name or ""), filename)
