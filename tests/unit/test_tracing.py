"""Traces go where the environment says, and nothing is loaded where it says nothing."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from models import tracing

_BODIES: list[bytes] = []


class _Collector(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        _BODIES.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[str]:
    """The address of something that takes traces."""
    _BODIES.clear()
    with HTTPServer(("127.0.0.1", 0), _Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_spans_are_sent_by_the_end(collector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
    tracing.start_tracing()
    assert tracing.is_tracing()
    try:
        with (
            pytest.raises(ValueError, match="secret"),
            tracing.span("shard", batch="batch_1", line=7),
        ):
            raise ValueError("a secret")
    finally:
        tracing.stop_tracing()
    assert not tracing.is_tracing()
    (body,) = _BODIES
    for word in (b"service.name", b"overnight", b"shard", b"batch_1", b"ValueError"):
        assert word in body
    assert b"secret" not in body


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "")]
)
def test_off(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    tracing.start_tracing()
    assert not tracing.is_tracing()
    with tracing.span("shard") as span:
        span.tell(batch="batch_1")
        assert tracing.current_traceparent() is None
    assert tracing.begin_span("shard") is tracing.NO_SPAN


def test_off_nothing_of_it_is_loaded() -> None:
    """But for what redis-py loads by itself where it is installed."""
    code = (
        "import sys, worker.app; from models.tracing import start_tracing; start_tracing();"
        "print(sys.modules.keys() & {'opentelemetry.sdk.trace', 'opentelemetry.exporter', 'requests'})"
    )
    settings = {
        "OVERNIGHT_REDIS_URL": "redis://127.0.0.1:9/0",
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
