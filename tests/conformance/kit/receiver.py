"""A receiver of webhooks, on this machine: it keeps what arrives and answers what it is told."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Delivery:
    """One request that arrived."""

    path: str
    headers: Mapping[str, str]
    """By their names in small letters."""
    body: bytes


@dataclass
class Receiver:
    """Keeps deliveries by the path that they came to."""

    url: str = ""
    deliveries: list[Delivery] = field(default_factory=list)
    first_answers: dict[str, int] = field(default_factory=dict)
    """What the first try of each webhook to a path is answered with; all else gets 200."""
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, delivery: Delivery) -> int:
        """Keep a delivery, and say with which status to answer it."""
        with self._changed:
            tried = {(one.path, one.headers.get("webhook-id")) for one in self.deliveries}
            self.deliveries.append(delivery)
            self._changed.notify_all()
            if (delivery.path, delivery.headers.get("webhook-id")) in tried:
                return 200
            return self.first_answers.get(delivery.path, 200)

    def wait_for(
        self, path: str, fits: Callable[[Delivery], bool], *, count: int = 1, seconds: float = 60
    ) -> list[Delivery]:
        """So many deliveries to a path that fit, as soon as they are there."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                found = [one for one in self.deliveries if one.path == path and fits(one)]
                if len(found) >= count:
                    return found
                left = deadline - time.monotonic()
                assert left > 0, f"{len(found)} of {count} deliveries came within {seconds:g} s"
                self._changed.wait(left)


@contextmanager
def receiving(host: str = "127.0.0.1") -> Iterator[Receiver]:
    """A running receiver."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", "0")))
            status = receiver.take(Delivery(self.path, headers, body))
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("location", f"{receiver.url}/redirected")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer((host, 0), Handler)
    receiver.url = f"http://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
