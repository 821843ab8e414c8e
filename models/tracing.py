"""Traces for OpenTelemetry: of a batch's creation, its stages and shards, and each call to a model server.

Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` says where to send them; then OpenTelemetry's own variables hold,
all of them. Promises: while it is off nothing that traces is imported, and a call costs a comparison;
a trace tells ids, numbers, statuses and names of the settings, never a prompt, an answer or a key; what
cannot be sent is dropped, and nothing waits for it.
"""

import logging
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger(__name__)

Kind = Literal["internal", "server", "client"]

_PLACES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_HEADER = "traceparent"


class _State:
    """What this process traces with; nothing while it is off."""

    provider: "TracerProvider | None" = None
    tracer: "Tracer | None" = None


def start_tracing() -> None:
    """Trace from here on, if the environment says where to. After a fork, each process starts its own."""
    if _State.tracer is not None or not any(os.environ.get(name) for name in _PLACES):
        return
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    try:
        # Imported only where it is wanted: an optional extra, which takes a quarter of a second.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        log.warning("no traces: install overnight[tracing], or unset %s", " and ".join(_PLACES))
        return
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "overnight"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace_with(provider)


def trace_with(provider: "TracerProvider | None") -> None:
    """Trace with this; with nothing, no more."""
    _State.provider = provider
    _State.tracer = None if provider is None else provider.get_tracer("overnight")


def stop_tracing() -> None:
    """Send what is left, for a few seconds at most, and trace no more."""
    provider, _State.provider, _State.tracer = _State.provider, None, None
    if provider is not None:
        provider.shutdown()


def is_tracing() -> bool:
    """Whether traces are on."""
    return _State.tracer is not None


class TracedSpan:
    """A span, or none: what is told to that is forgotten."""

    __slots__ = ("_span",)

    def __init__(self, span: "Span | None" = None) -> None:
        self._span = span

    def tell(self, **attributes: str | int | None) -> None:
        """Add attributes; their names are `overnight.…`."""
        if self._span is not None:
            self._span.set_attributes(_named(attributes))

    def tell_answer(self, status_code: int | None, failure: str = "") -> None:
        """How an HTTP exchange ended: its status, or why there is none."""
        if self._span is None:
            return
        if status_code is not None:
            self._span.set_attribute("http.response.status_code", status_code)
        if failure:
            self._span.set_attribute("error.type", failure)
            self._span.set_status(_error())

    def rename(self, name: str) -> None:
        """Give it another name."""
        if self._span is not None:
            self._span.update_name(name)

    def end(self) -> None:
        """It is over."""
        if self._span is not None:
            self._span.end()


NO_SPAN = TracedSpan()


def begin_span(
    name: str, *, parent: str | None = None, kind: Kind = "internal", **attributes: str | int | None
) -> TracedSpan:
    """Begin a span, the current one of this context from here on; whoever began it ends it.

    `parent` is a `traceparent`, of another process; without one it is the current span.
    """
    if _State.tracer is None:
        return NO_SPAN
    from opentelemetry import context, trace  # noqa: PLC0415  # see above

    span = _begin(_State.tracer, name, parent, kind, attributes)
    context.attach(trace.set_span_in_context(span))
    return TracedSpan(span)


@contextmanager
def span(
    name: str, *, parent: str | None = None, kind: Kind = "internal", **attributes: str | int | None
) -> Generator[TracedSpan]:
    """The same for a block: its span ends with it, and so does its being the current one."""
    if _State.tracer is None:
        yield NO_SPAN
        return
    from opentelemetry import trace  # noqa: PLC0415  # see above

    begun = _begin(_State.tracer, name, parent, kind, attributes)
    # An exception's own words might hold anything.
    with trace.use_span(
        begun, end_on_exit=True, record_exception=False, set_status_on_exception=False
    ):
        try:
            yield TracedSpan(begun)
        except BaseException as error:
            begun.set_attribute("error.type", type(error).__name__)
            begun.set_status(_error())
            raise


def current_traceparent() -> str | None:
    """The current span, as other processes are told of it."""
    if _State.tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415  # see above
        TraceContextTextMapPropagator,
    )

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(_HEADER)


def _begin(
    tracer: "Tracer",
    name: str,
    parent: str | None,
    kind: Kind,
    attributes: Mapping[str, str | int | None],
) -> "Span":
    from opentelemetry.trace import SpanKind  # noqa: PLC0415  # see above
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    context = None
    if parent is not None:
        context = TraceContextTextMapPropagator().extract({_HEADER: parent})
    return tracer.start_span(
        name, context=context, kind=SpanKind[kind.upper()], attributes=_named(attributes)
    )


def _named(attributes: Mapping[str, str | int | None]) -> dict[str, Any]:
    return {f"overnight.{name}": value for name, value in attributes.items() if value is not None}


def _error() -> Any:
    from opentelemetry.trace import StatusCode  # noqa: PLC0415  # see above

    return StatusCode.ERROR
