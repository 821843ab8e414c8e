"""The webhook side of the kit: a receiver here, and an endpoint of the server that points to it."""

import base64
import hashlib
import hmac
import json
import os
from contextlib import ExitStack
from typing import Any

import httpx

from tests.conformance.kit.expect import NotApplicable, ok
from tests.conformance.kit.receiver import Delivery, receiving
from tests.conformance.kit.server import Server

EVENT_TYPES = ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]
_HOST = os.environ.get("WEBHOOK_HOST", "127.0.0.1")
"""An address of this machine that the server can reach."""


class Hooks:
    """A receiver, and one endpoint for all events of the batches of `kit.runs`."""

    PATH = "/all"

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stack = ExitStack()
        self.receiver = self._stack.enter_context(receiving(_HOST))
        self.registered = self._post(self.PATH)

    def _post(self, path: str, **changes: Any) -> httpx.Response:
        body = {"name": f"kit{path}", "url": self.receiver.url + path, "event_types": EVENT_TYPES}
        return self._server.post("webhook_endpoints", body | changes)

    def endpoint(self) -> dict[str, Any]:
        """The endpoint for all events.

        Raises:
            NotApplicable: the server is not allowed to call this machine.
        """
        return self._taken(self.registered)

    def new_endpoint(self, path: str, **changes: Any) -> dict[str, Any]:
        """Another endpoint at this receiver, for the rarest of events unless told otherwise."""
        return self._taken(self._post(path, **({"event_types": ["batch.expired"]} | changes)))

    def _taken(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code == 400 and response.json()["error"]["param"] == "url":
            message = f"the server may not call {self.receiver.url}: {response.json()['error']}"
            raise NotApplicable(message)
        endpoint: dict[str, Any] = ok(response)
        return endpoint

    def delivery(self, event_type: str, batch_id: str) -> Delivery:
        """The delivery that tells of a batch's end."""
        self.endpoint()

        def tells_of_it(delivery: Delivery) -> bool:
            event = json.loads(delivery.body)
            found: bool = event["type"] == event_type and event["data"]["id"] == batch_id
            return found

        return self.receiver.wait_for(self.PATH, tells_of_it)[0]

    def close(self) -> None:
        """Remove the endpoint, and receive no more."""
        if self.registered.status_code == 200:
            self._server.http.delete(f"webhook_endpoints/{self.registered.json()['id']}")
        self._stack.close()


def signature(secret: str, delivery: Delivery) -> str:
    """The one signature of a delivery under a secret."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    headers = delivery.headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + delivery.body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
