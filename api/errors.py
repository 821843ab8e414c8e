"""The one place where a refusal becomes an HTTP status and OpenAI's error envelope.

Promises: every error of the domain has its row here; every answer that is not a success has the
envelope, unknown routes and validation included; nothing of a traceback, a statement or another
client's data ever reaches a client.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy import exc as sql
from starlette.exceptions import HTTPException
from starlette.types import Scope

from api.grammar import refusal_of
from models import errors, wire
from models.faults import describe
from models.lines import MAX_ECHO

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 5
_LONGEST_SDK_WAIT_SECONDS = 60
_UNKNOWN_URL = (
    "Unknown request URL: {method} {path}. Please check the URL for typos, or see the docs at"
    " https://platform.openai.com/docs/api-reference/."
)
_SERVER_ERROR = "The server had an error while processing your request. Sorry about that!"


class Unauthorized(Exception):
    """No key, or a wrong one."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class ForeignPage(Exception):
    """A browser's session, used by a page that is not the dashboard."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How an error looks from outside; `message` replaces its own words where those are for us."""

    status: int
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    message: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


_BROKEN = Shape(500, type="server_error", message=_SERVER_ERROR)
_AWAY = Shape(503, type="server_error", headers={"retry-after": str(RETRY_AFTER_SECONDS)})

SHAPES: Mapping[type[Exception], Shape] = {
    errors.FileNotFound: Shape(404, param="id"),
    errors.BatchNotFound: Shape(404),
    errors.BatchLineNotFound: Shape(404, param="line"),
    errors.OperatorOnly: Shape(403, code="operator_only"),
    errors.UploadNotFound: Shape(404, param="id"),
    errors.ModelNotFound: Shape(404, code="model_not_found", param="model"),
    errors.WebhookEndpointNotFound: Shape(404),
    errors.TooManyWebhookEndpoints: Shape(400, code="webhook_endpoint_limit_exceeded"),
    # One sentence for every reason, so that it tells nothing of what is behind an address.
    errors.ReceiverUnreachable: Shape(
        400, code="webhook_endpoint_unreachable", message="The webhook endpoint did not answer."
    ),
    # Both official SDKs try a 409 again unless they are told that it is of no use.
    errors.BatchNotCancellable: Shape(409, headers={"x-should-retry": "false"}),
    errors.BatchNotChangeable: Shape(409, headers={"x-should-retry": "false"}),
    errors.NothingToRetry: Shape(409, headers={"x-should-retry": "false"}),
    errors.IdempotencyKeyReused: Shape(
        409, code="idempotency_key_reused", headers={"x-should-retry": "false"}
    ),
    errors.UploadHasEnded: Shape(400, param="id"),
    errors.InvalidParameter: Shape(400),
    errors.FileTooLarge: Shape(400),
    errors.NotJsonLines: Shape(400),
    errors.StorageLimitReached: Shape(400, code="storage_limit_exceeded"),
    errors.BatchRateReached: Shape(429, type="requests", code="rate_limit_exceeded"),
    errors.TooManyUploads: Shape(429, type="requests", code="rate_limit_exceeded"),
    errors.BatchHopeless: Shape(429, type="requests", code="rate_limit_exceeded"),
    errors.PurposeNotReadable: Shape(400),
    errors.InputUnreadable: _BROKEN,
    errors.LeaseLost: _BROKEN,
    errors.EnqueuedLimitReached: _BROKEN,
    errors.Unavailable: _AWAY,
    ForeignPage: Shape(403, code="foreign_page"),
    Unauthorized: Shape(401, headers={"www-authenticate": 'Bearer realm="Overnight"'}),
}


def shape_of(error: type[Exception]) -> Shape:
    """The row of an error's class, or of the nearest class above it."""
    return next((SHAPES[kind] for kind in error.__mro__ if kind in SHAPES), _BROKEN)


def envelope(
    status: int,
    message: str,
    *,
    type_: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """OpenAI's error envelope as a response."""
    body = wire.ErrorBody(message=message, type=type_, param=param, code=code)
    return JSONResponse(
        wire.ErrorEnvelope(error=body).model_dump(), status, headers=dict(headers or {})
    )


def render(error: Exception) -> JSONResponse:
    """An error of the domain as a response."""
    shape = shape_of(type(error))
    return envelope(
        shape.status,
        shape.message or str(error),
        type_=shape.type,
        code=getattr(error, "code", None) or shape.code,
        param=getattr(error, "param", None) or shape.param,
        headers={**shape.headers, **_when_to_try_again(error)},
    )


def _when_to_try_again(error: Exception) -> dict[str, str]:
    """Both official SDKs wait as long as they are told, up to a limit of their own (60 or 120 s).

    Beyond it the older one would try twice within seconds, and the newer not at all.
    """
    seconds: int | None = getattr(error, "retry_after_seconds", None)
    if seconds is None:
        return {}
    told = {"retry-after": str(seconds)}
    return told if seconds <= _LONGEST_SDK_WAIT_SECONDS else told | {"x-should-retry": "false"}


def is_outage(error: BaseException) -> bool:
    """Whether the database is away, full, overloaded or being failed over, rather than misused."""
    if isinstance(error, sql.TimeoutError | psycopg.OperationalError | psycopg.InterfaceError):
        return True
    if not isinstance(error, sql.DBAPIError):
        return False
    if error.connection_invalidated or isinstance(error, sql.OperationalError | sql.InterfaceError):
        return True
    # Read-only: a standby that was promoted away; 40: deadlock; 53: disk full, too many connections.
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    return sqlstate == "25006" or sqlstate[:2] in {"08", "40", "53", "57", "58"}


def unexpected(error: Exception, scope: Scope) -> JSONResponse:
    """The response to an error that nobody foresaw, or to a database that is away; logged."""
    place = f"{scope.get('method')} {_route_of(scope)} ({request_id_of(scope)})"
    if is_outage(error):
        cause = getattr(error, "orig", None) or error
        log.warning("database away: %s: %s", place, type(cause).__name__)
        return render(errors.Unavailable("database"))
    log.error("failed: %s: %s", place, describe(error))
    return envelope(500, _SERVER_ERROR, type_="server_error")


def request_id_of(scope: Scope) -> str | None:
    """The `x-request-id` of this request's answer."""
    found: str | None = scope.get("state", {}).get("request_id")
    return found


def _route_of(scope: Scope) -> str:
    # The pattern, not the path: ids are not secret, but a mistyped path may hold anything.
    return str(getattr(scope.get("route"), "path", "an unknown route"))


def install(app: FastAPI) -> None:
    """Teach the application to answer every refusal with the envelope."""
    app.add_exception_handler(errors.OvernightError, _on_domain_error)
    app.add_exception_handler(Unauthorized, _on_domain_error)
    app.add_exception_handler(ForeignPage, _on_domain_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)


async def _on_domain_error(request: Request, error: Exception) -> JSONResponse:
    response = render(error)
    if response.status_code >= 500:
        place = f"{_route_of(request.scope)} ({request_id_of(request.scope)})"
        log.error("failed: %s: %s", place, error)
    return response


async def _on_validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101  # what it is registered for
    # Each place begins with where it was found: query, path, header.
    return render(refusal_of([fault | {"loc": fault["loc"][1:]} for fault in error.errors()]))


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101  # what it is registered for
    if error.status_code in {404, 405}:
        url = {"method": request.method, "path": request.url.path[:MAX_ECHO]}
        return envelope(404, _UNKNOWN_URL.format(**url), code="unknown_url")
    return envelope(error.status_code, error.detail, headers=error.headers)
