"""One call to the model server, and what its end means.

Promises: `Upstream.send` never raises for anything the server or the network does, it returns an
`Outcome`; the path is the batch's endpoint and the headers are ours, whatever a line holds; no body
is ever logged. What is retried follows the official SDK (`_base_client.py` of openai-python: 408,
409, 429, 5xx and connection errors; `x-should-retry`, `retry-after-ms`, `retry-after`).
"""

import contextlib
import importlib.metadata
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Self

import httpx
import msgspec
import orjson

from models.lines import Endpoint
from models.settings import UpstreamSettings
from worker.retry import Blame
from worker.transport import AiohttpTransport


class Verdict(Enum):
    """What to do with a line after a call."""

    SUCCEEDED = auto()
    """A 2xx with a JSON body: the output file."""

    REFUSED = auto()
    """A final answer that is not a success: the error file."""

    TRANSIENT = auto()
    """Try again; if it is given up, this is the last answer."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one call, in the wording of the Responses API."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended. With no HTTP answer `status_code` is null and `code` and `message` say why."""

    verdict: Verdict
    status_code: int | None = None
    response_id: str | None = None
    body: bytes = b""
    usage: Usage = NO_USAGE
    blame: Blame = Blame.UNCLEAR
    retry_after_seconds: float | None = None
    code: str = ""
    message: str = ""


class Upstream:
    """The model server."""

    def __init__(self, settings: UpstreamSettings, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport
        self._urls = {
            endpoint: httpx.URL(settings.upstream_url + endpoint.upstream_path)
            for endpoint in Endpoint
        }
        self._headers = {
            "accept": "application/json",
            "accept-encoding": "identity",
            "content-type": "application/json",
            "user-agent": f"overnight/{importlib.metadata.version('overnight')}",
        }
        if settings.upstream_api_key is not None:
            self._headers["authorization"] = (
                f"Bearer {settings.upstream_api_key.get_secret_value()}"
            )

    @classmethod
    def connect(cls, settings: UpstreamSettings) -> Self:
        """The server of the settings; no connection is opened yet."""
        transport = AiohttpTransport(
            total_seconds=settings.call_timeout_seconds,
            connect_seconds=settings.connect_timeout_seconds,
            max_response_bytes=settings.max_response_bytes,
        )
        return cls(settings, transport)

    async def send(self, endpoint: Endpoint, body: bytes, *, idempotency_key: str) -> Outcome:
        """Post one line's body; the key lets a server that can do so recognise a repeated call."""
        request = httpx.Request(
            "POST",
            self._urls[endpoint],
            headers=self._headers | {"idempotency-key": idempotency_key},
            content=body,
        )
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.TransportError as error:
            return _outcome_of_error(error)
        return _outcome_of_response(response)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()


_RETRIED = frozenset({408, 409, 429})
_AWAY = frozenset({502, 503, 504})


def _outcome_of_error(error: httpx.TransportError) -> Outcome:
    match error:
        case (
            httpx.ConnectError()
            | httpx.ConnectTimeout()
            | httpx.UnsupportedProtocol()
            | httpx.ProxyError()
        ):
            blame, code, message = (
                Blame.AWAY,
                "upstream_unreachable",
                "The model server could not be reached.",
            )
        case httpx.TimeoutException():
            blame, code, message = (
                Blame.UNCLEAR,
                "upstream_timeout",
                "The model server did not answer in time.",
            )
        case _:
            blame, code, message = (
                Blame.UNCLEAR,
                "upstream_disconnected",
                "The model server broke off its answer.",
            )
    return Outcome(Verdict.TRANSIENT, blame=blame, code=code, message=message)


def _outcome_of_response(response: httpx.Response) -> Outcome:
    status = response.status_code
    response_id = _response_id(response)
    body = response.content
    if 200 <= status < 300:  # the class of successes
        try:
            usage = _usage_of(body)
        except _BROKEN:
            return Outcome(
                Verdict.TRANSIENT,
                code="upstream_broken_answer",
                message="The model server's answer was not a JSON object.",
            )
        return Outcome(Verdict.SUCCEEDED, status, response_id, _on_one_line(body), usage)
    should_retry = response.headers.get("x-should-retry")
    is_transient = should_retry == "true" or (
        should_retry != "false" and (status in _RETRIED or status >= 500)  # server errors
    )
    retry_after = _retry_after_seconds(response.headers) if is_transient else None
    return Outcome(
        Verdict.TRANSIENT if is_transient else Verdict.REFUSED,
        status,
        response_id,
        _error_envelope(body, status),
        blame=_blame(status, retry_after),
        retry_after_seconds=retry_after,
    )


def _blame(status: int, retry_after: float | None) -> Blame:
    if status == 429 or (status == 503 and retry_after is not None):
        return Blame.BUSY
    return Blame.AWAY if status in _AWAY else Blame.UNCLEAR


def _response_id(response: httpx.Response) -> str | None:
    given = response.headers.get("x-request-id")
    return given if given and len(given) <= 200 and given.isprintable() else None


def _retry_after_seconds(headers: httpx.Headers) -> float | None:
    """The wait that the server asks for, whichever of the three forms it uses.

    None of at most zero seconds: that is no request to wait, and our own back-off is gentler.
    """
    seconds = _number(headers.get("retry-after-ms")) / 1000
    if not seconds > 0:
        seconds = _number(headers.get("retry-after"))
    if not seconds > 0:
        with contextlib.suppress(KeyError, ValueError, TypeError, OverflowError):
            moment = parsedate_to_datetime(headers["retry-after"])
            seconds = (moment - datetime.now(UTC)).total_seconds()
    return seconds if seconds > 0 else None


def _number(text: str | None) -> float:
    """A header's number; zero if it has none that can be waited for."""
    with contextlib.suppress(ValueError):
        number = float(text or "")
        return number if math.isfinite(number) else 0.0
    return 0.0


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


_BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_decode_body = msgspec.json.Decoder(_Body).decode
_decode_any_body = msgspec.json.Decoder(_AnyBody).decode
_MOST_TOKENS = 2**53


def _usage_of(body: bytes) -> Usage:
    """The usage of a 2xx body, which must be one JSON object; raises one of `_BROKEN` if it is not."""
    try:
        return _read_usage(body)
    except msgspec.DecodeError:
        # Text that a model or its server has cut within an emoji is JSON by its grammar, and paid for.
        return _read_usage(_LONE_SURROGATE.sub(_replacement, body))


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


def _read_usage(body: bytes) -> Usage:
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


def _on_one_line(body: bytes) -> bytes:
    """The same JSON with no raw line break, as JSON Lines needs it; valid JSON has them only as space."""
    if b"\n" in body or b"\r" in body:
        return body.translate(None, b"\r\n")
    return body


def _error_envelope(body: bytes, status: int) -> bytes:
    """The body of a failure as an object with `error`: as it came, or wrapped.

    Model servers also answer `{"detail": …}`, `{"message": …}`, HTML or nothing at all.
    """
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        given = None
    if isinstance(given, dict) and isinstance(given.get("error"), dict):
        return _on_one_line(body)
    message: object = None
    if isinstance(given, dict):
        message = given.get("message") or given.get("detail") or given.get("error")
    if not isinstance(message, str):
        message = (
            body[:1000].decode(errors="replace").strip() or f"The model server answered {status}."
        )
    kind = "invalid_request_error" if 400 <= status < 500 else "server_error"
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})
