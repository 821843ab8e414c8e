"""One call to the model server, and what its end means.

Promises: `Upstream.send` never raises for anything the server or the network does, it returns an
`Outcome`; the path is the batch's endpoint and the headers are ours, whatever a line holds; no body
is ever logged. What is retried follows the official SDK (`_base_client.py` of openai-python: 408,
409, 429, 5xx and connection errors; `x-should-retry`, `retry-after-ms`, `retry-after`).
"""

import contextlib
import importlib.metadata
import logging
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Self
from urllib.parse import quote

import httpx

from models.faults import describe
from models.lines import Endpoint
from models.upstreams import ModelServer
from worker.answer import NO_USAGE, BrokenAnswer, Usage, error_envelope, on_one_line, read_usage
from worker.flow.rate_headers import RateHint, read_rate_headers
from worker.retry import Blame
from worker.transport import AiohttpTransport

log = logging.getLogger(__name__)

_UNFORESEEN = "The batch engine failed to process this request."


class Verdict(Enum):
    """What to do with a line after a call."""

    SUCCEEDED = auto()
    """A 2xx with a JSON body: the output file."""

    REFUSED = auto()
    """A final answer that is not a success: the error file."""

    TRANSIENT = auto()
    """Try again; if it is given up, this is the last answer."""


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
    rate_hint: RateHint | None = None
    """What the server's headers said of its rate limits."""


class Upstream:
    """A model server."""

    def __init__(self, server: ModelServer, transport: httpx.AsyncBaseTransport) -> None:
        self.server = server
        self._transport = transport
        self._urls = {
            endpoint: httpx.URL(server.url + endpoint.upstream_path) for endpoint in Endpoint
        }
        self._headers = {
            "accept": "application/json",
            "accept-encoding": "identity",
            "content-type": "application/json",
            "user-agent": _user_agent(),
        } | server.own_headers()

    @classmethod
    def connect(cls, server: ModelServer) -> Self:
        """A server of the settings; no connection is opened yet."""
        transport = AiohttpTransport(
            total_seconds=server.call_timeout_seconds,
            connect_seconds=server.connect_timeout_seconds,
            max_response_bytes=server.max_response_bytes,
            trust_env=not server.is_local,
        )
        return cls(server, transport)

    async def send(
        self,
        endpoint: Endpoint,
        body: bytes,
        *,
        idempotency_key: str,
        traceparent: str | None = None,
    ) -> Outcome:
        """Post one line's body; the key lets a server that can do so recognise a repeated call.

        `traceparent` is the call's own span, for a server that traces, too.
        """
        headers = self._headers | {"idempotency-key": idempotency_key}
        if traceparent is not None:
            headers["traceparent"] = traceparent
        request = httpx.Request("POST", self._urls[endpoint], headers=headers, content=body)
        return await self._exchange(request, is_video=endpoint is Endpoint.VIDEOS)

    async def retrieve_video(self, video_id: str) -> Outcome:
        """Get a video that an earlier call has begun."""
        url = httpx.URL(f"{self._urls[Endpoint.VIDEOS]}/{quote(video_id, safe='')}")
        return await self._exchange(httpx.Request("GET", url, headers=self._headers), is_video=True)

    async def _exchange(self, request: httpx.Request, *, is_video: bool) -> Outcome:
        try:
            response = await self._transport.handle_async_request(request)
            outcome = _outcome_of_response(response)
            if is_video and outcome.verdict is Verdict.SUCCEEDED:
                return replace(outcome, retry_after_seconds=_poll_after_seconds(response.headers))
            return outcome
        except httpx.TransportError as error:
            return _outcome_of_error(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, no line may be lost over it
            log.error("a call failed in an unforeseen way: %s", describe(error))  # noqa: TRY400
            return Outcome(Verdict.TRANSIENT, code="internal_error", message=_UNFORESEEN)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()


def _user_agent() -> str:
    try:
        return f"overnight/{importlib.metadata.version('overnight')}"
    except importlib.metadata.PackageNotFoundError:
        # Run from a source tree that nobody has installed.
        return "overnight"


_RETRIED = frozenset({408, 409, 429})
_AWAY = frozenset({502, 503})


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
            usage = read_usage(body)
        except BrokenAnswer:
            return Outcome(
                Verdict.TRANSIENT,
                code="upstream_broken_answer",
                message="The model server's answer was not a JSON object.",
            )
        return Outcome(
            Verdict.SUCCEEDED,
            status,
            response_id,
            on_one_line(body),
            usage,
            rate_hint=_rate_hint(response),
        )
    should_retry = response.headers.get("x-should-retry")
    is_transient = should_retry == "true" or (
        should_retry != "false" and (status in _RETRIED or status >= 500)  # server errors
    )
    retry_after = _retry_after_seconds(response.headers) if is_transient else None
    return Outcome(
        Verdict.TRANSIENT if is_transient else Verdict.REFUSED,
        status,
        response_id,
        error_envelope(body, status),
        blame=_blame(status, retry_after),
        retry_after_seconds=retry_after,
        rate_hint=_rate_hint(response),
    )


def _rate_hint(response: httpx.Response) -> RateHint | None:
    # Most servers send none, and asking httpx for each header that there might be takes long.
    if any(name[:11].lower() == b"x-ratelimit" for name, _ in response.headers.raw):
        return read_rate_headers(response.headers)
    return None


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


def _poll_after_seconds(headers: httpx.Headers) -> float | None:
    """When to ask again for what is not finished; the last form is the one that OpenAI's clients read."""
    milliseconds = _number(headers.get("openai-poll-after-ms"))
    return _retry_after_seconds(headers) or (milliseconds / 1000 if milliseconds > 0 else None)


def _number(text: str | None) -> float:
    """A header's number; zero if it has none that can be waited for."""
    with contextlib.suppress(ValueError):
        number = float(text or "")
        return number if math.isfinite(number) else 0.0
    return 0.0
