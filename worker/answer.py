"""The body of a model server's answer: what it cost, and how it goes into an output line. Pure.

Promises: a good body keeps its bytes, but for line breaks between its tokens; whatever a failure's
body is, what is made of it is one JSON object with `error` in it.
"""

import re
from dataclasses import dataclass

import msgspec
import orjson


class BrokenAnswer(Exception):
    """A body that is not one JSON object."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one call, in the wording of the Responses API."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0


NO_USAGE = Usage()


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    """Every endpoint's own wording at once: chat, completions, embeddings, responses."""

    input_tokens: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    prompt_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


class _AnyBody(msgspec.Struct):
    """A body whose `usage` is of no known form."""


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_any_body = msgspec.json.Decoder(_AnyBody).decode
_MOST_TOKENS = 2**53


def read_usage(body: bytes) -> Usage:
    """The usage of a success; nothing where it has none of a known form.

    Raises:
        BrokenAnswer: the body is not one JSON object.
    """
    try:
        try:
            return _read(body)
        except msgspec.DecodeError:
            # Text that was cut within an emoji is JSON by its grammar, and has been paid for.
            return _read(_LONE_SURROGATE.sub(_replacement, body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenAnswer from error


# Every escape sequence, so that the one after an escaped backslash is not taken for one; the group is
# a \uD8xx or \uDCxx without its other half.
_LONE_SURROGATE = re.compile(
    rb"""\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}
           |(u[dD][89a-fA-F][0-9a-fA-F]{2})
           |.)""",
    re.DOTALL | re.VERBOSE,
)


def _replacement(escape: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if escape[1] else escape[0]


def _read(body: bytes) -> Usage:
    # msgspec checks the grammar of what it skips, but not its UTF-8.
    if not body.isascii():
        body.decode()
    try:
        usage = _decode_body(body).usage
    except msgspec.ValidationError:
        _decode_any_body(body)
        return NO_USAGE
    if usage is None:
        return NO_USAGE
    input_details = usage.input_tokens_details or usage.prompt_tokens_details
    output_details = usage.output_tokens_details or usage.completion_tokens_details
    input_tokens = _tokens(usage.input_tokens or usage.prompt_tokens)
    output_tokens = _tokens(usage.output_tokens or usage.completion_tokens)
    return Usage(
        input_tokens=input_tokens,
        cached_tokens=_tokens(input_details.cached_tokens if input_details else None),
        output_tokens=output_tokens,
        reasoning_tokens=_tokens(output_details.reasoning_tokens if output_details else None),
        total_tokens=_tokens(usage.total_tokens) or input_tokens + output_tokens,
    )


def _tokens(count: int | None) -> int:
    return min(max(count or 0, 0), _MOST_TOKENS)


@dataclass(frozen=True, slots=True)
class Job:
    """What an answer says of work that may go on after it; empty where it says nothing."""

    id: str = ""
    status: str = ""


class _Job(msgspec.Struct):
    """Unparsed, because these may be of any form and size."""

    id: msgspec.Raw = msgspec.Raw(b"null")
    status: msgspec.Raw = msgspec.Raw(b"null")


_decode_job = msgspec.json.Decoder(_Job).decode
_decode_text = msgspec.json.Decoder(str).decode
_MOST_TEXT_BYTES = 4096


def read_job(body: bytes) -> Job:
    """The id and status in a success that `read_usage` has read."""
    try:
        job = _decode_job(body)
    except msgspec.DecodeError:
        job = _decode_job(_LONE_SURROGATE.sub(_replacement, body))
    return Job(_short_text(job.id), _short_text(job.status))


def _short_text(written: msgspec.Raw) -> str:
    raw = bytes(written)
    if not raw.startswith(b'"') or len(raw) > _MOST_TEXT_BYTES:
        return ""
    return _decode_text(raw)


def on_one_line(body: bytes) -> bytes:
    """The same JSON with no raw line break, as JSON Lines needs it; valid JSON has them only as space."""
    if b"\n" in body or b"\r" in body:
        return body.translate(None, b"\r\n")
    return body


def error_envelope(body: bytes, status: int) -> bytes:
    """The body of a failure as an object with `error`: as it came, or wrapped.

    Model servers also answer `{"detail": …}`, `{"message": …}`, HTML or nothing at all.
    """
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        given = None
    if isinstance(given, dict) and isinstance(given.get("error"), dict):
        return on_one_line(body)
    message: object = None
    if isinstance(given, dict):
        message = given.get("message") or given.get("detail") or given.get("error")
    if not isinstance(message, str):
        message = (
            body[:1000].decode(errors="replace").strip() or f"The model server answered {status}."
        )
    kind = "invalid_request_error" if 400 <= status < 500 else "server_error"
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})
