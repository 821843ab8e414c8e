"""Webhooks as a receiver sees them: from a running engine, signed, retried, and after a restart."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from openai import OpenAI

from tests.factories import json_lines
from tests.fixtures.engine import KEY, Engine, engine_in, wait_for


class Receiver:
    """An HTTP server that keeps what arrives; `failures` says how many of the next are refused."""

    def __init__(self, port: int = 0) -> None:
        self.arrived: list[tuple[dict[str, str], bytes]] = []
        self.failures = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name that the standard library asks for
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.arrived.append(({k.lower(): v for k, v in self.headers.items()}, body))
                status = 500 if receiver.failures else 200
                receiver.failures = max(0, receiver.failures - 1)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Listen no more; once more does no harm."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait_for(self, batch_id: str) -> list[tuple[dict[str, str], bytes]]:
        """What has come about a batch, as soon as there is anything."""

        def about_it() -> list[tuple[dict[str, str], bytes]]:
            return [each for each in self.arrived if batch_id.encode() in each[1]]

        found: list[tuple[dict[str, str], bytes]] = wait_for(f"an event of {batch_id}", about_it)
        return found


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    settings = {
        "OVERNIGHT_COMPLETION_WINDOWS": "24h,12s",
        "OVERNIGHT_WEBHOOK_ALLOW_PRIVATE": "true",
        "OVERNIGHT_WEBHOOK_FIRST_WAIT_SECONDS": "1",
        "OVERNIGHT_WEBHOOK_LONGEST_WAIT_SECONDS": "1",
        # A stop waits for the tries in flight.
        "OVERNIGHT_WEBHOOK_TIMEOUT_SECONDS": "5",
    }
    with engine_in(tmp_path_factory.mktemp("engine"), **settings) as running:
        yield running


def register(engine: Engine, port: int) -> str:
    """Have all events sent to this port; the secret."""
    body = {
        "name": "receiver",
        "url": f"http://127.0.0.1:{port}/hook",
        "event_types": ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"],
    }
    with engine.client as client:
        answer = client.post("webhook_endpoints", json=body).raise_for_status().json()
    return str(answer["signing_secret"])


def unwrap(secret: str, arrived: tuple[dict[str, str], bytes]) -> tuple[str, str]:
    """The type and the batch of an event, by the official SDK."""
    headers, body = arrived
    event: Any = OpenAI(api_key=KEY).webhooks.unwrap(body, headers, secret=secret)
    return event.type, event.data.id


def test_every_end_of_a_batch(engine: Engine, receiver: Receiver) -> None:
    secret = register(engine, receiver.port)
    with engine.client as client:
        form: dict[str, Any] = {
            "data": {"purpose": "batch"},
            "files": {"file": ("in.jsonl", json_lines({"custom_id": "no method"}))},
        }
        upload = client.post("files", **form).raise_for_status().json()["id"]
        body = {
            "input_file_id": upload,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        failed = client.post("batches", json=body).raise_for_status().json()["id"]
        cancelled = engine.create_batch(5000)
        client.post(f"batches/{cancelled}/cancel").raise_for_status()
    completed = engine.create_batch(3)
    expired = engine.create_batch(5000, window="12s")
    told = {
        "batch.failed": failed,
        "batch.cancelled": cancelled,
        "batch.completed": completed,
        "batch.expired": expired,
    }
    for event_type, batch_id in told.items():
        (arrived,) = receiver.wait_for(batch_id)
        assert unwrap(secret, arrived) == (event_type, batch_id)
        # Who is told can see it.
        assert engine.batch(batch_id)["status"] == event_type.removeprefix("batch.")


def test_what_fails_is_tried_again_under_the_same_name(engine: Engine, receiver: Receiver) -> None:
    secret = register(engine, receiver.port)
    receiver.failures = 2
    batch_id = engine.create_batch(1)
    wait_for("three tries", lambda: len(receiver.wait_for(batch_id)) >= 3)
    tries = receiver.wait_for(batch_id)
    assert len({headers["webhook-id"] for headers, _ in tries}) == 1
    assert [unwrap(secret, each) for each in tries] == [("batch.completed", batch_id)] * 3


@pytest.fixture(scope="module")
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        yield listener.getsockname()[1]


def test_a_receiver_that_never_answers_holds_up_nobody(
    engine: Engine, receiver: Receiver, silent_port: int
) -> None:
    """There is one control process; with it waiting, each batch would take the time of a try."""
    for _ in range(5):
        register(engine, silent_port)
    secret = register(engine, receiver.port)
    for _ in range(3):
        batch_id = engine.create_batch(1)
        engine.wait_for_end(batch_id, seconds=20)
        (arrived,) = receiver.wait_for(batch_id)
        assert unwrap(secret, arrived) == ("batch.completed", batch_id)


def test_what_was_not_delivered_before_a_restart_is_delivered_after_it(
    engine: Engine, receiver: Receiver, silent_port: int
) -> None:
    """Stopped while others are in flight, too: to the port that never answers."""
    register(engine, silent_port)
    port = receiver.port
    secret = register(engine, port)
    receiver.close()
    batch_id = engine.create_batch(1)
    engine.wait_for_end(batch_id)
    assert engine.stop() == 0

    returned = Receiver(port)
    try:
        engine.start()
        (arrived,) = returned.wait_for(batch_id)
        assert unwrap(secret, arrived) == ("batch.completed", batch_id)
    finally:
        returned.close()
