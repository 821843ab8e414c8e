"""What is told of the API's requests: their count by route and status, and their traces.

Promises: a label is a route's pattern, a method of HTTP or a status, never a word of the client.
"""

from contextlib import AbstractContextManager, nullcontext

from starlette.datastructures import Headers
from starlette.types import Scope

from models import metrics
from models.tracing import NO_SPAN, TracedSpan, is_tracing, span

_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_UNKNOWN = "unknown"
_NOT_TRACED = frozenset({"/healthz", "/readyz", "/metrics"})

_requests = metrics.HTTP_REQUESTS.counter()
_durations = metrics.HTTP_DURATION.histogram(metrics.FAST_SECONDS)


def route_of(scope: Scope) -> str:
    """The pattern of the route that the request was found to be for; the router leaves it there."""
    return getattr(scope.get("route"), "path", _UNKNOWN)


def count_request(scope: Scope, status: int, seconds: float) -> None:
    """A request has been answered, or (status 0) its client has gone."""
    method = scope["method"] if scope["method"] in _METHODS else _UNKNOWN
    route = route_of(scope)
    _requests.labels(method, route, str(status)).inc()
    _durations.labels(method, route).observe(seconds)


def traced_request(scope: Scope) -> AbstractContextManager[TracedSpan]:
    """A span for the request, a child of the client's if it says that it has one."""
    if not is_tracing() or scope["path"] in _NOT_TRACED:
        return nullcontext(NO_SPAN)
    parent = Headers(scope=scope).get("traceparent")
    return span(scope["method"], parent=parent, kind="server", request=scope["state"]["request_id"])
