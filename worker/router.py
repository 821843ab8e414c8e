"""From a batch's endpoint and model to the model server that its lines are sent to.

Promises: a body keeps its bytes unless the server knows the model by another name; then its members keep
theirs, each in the place where it stood, and only `model` has another value.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import msgspec
import orjson

from models.lines import Endpoint, LineError
from models.upstreams import FlowLimits, Upstreams
from worker.upstream import Upstream

_decode_members: Callable[[bytes], dict[str, msgspec.Raw]] = msgspec.json.Decoder(
    dict[str, msgspec.Raw]
).decode


@dataclass(frozen=True, slots=True)
class Target:
    """A connected model server, and the model's name there if it is another than the line's."""

    upstream: Upstream
    model: str | None = None
    flow: FlowLimits | None = None
    """The model's own limits, if it has some."""

    @property
    def server_name(self) -> str:
        """The server's name in the settings."""
        return self.upstream.server.name

    def body_of(self, body: bytes) -> bytes:
        """A line's body as this server is to get it."""
        return body if self.model is None else rename_model(body, self.model)


class Router:
    """Every model server of the settings, connected when it is first called."""

    def __init__(self, upstreams: Upstreams, connected: Mapping[str, Upstream]) -> None:
        self.upstreams = upstreams
        self._connected = connected

    @classmethod
    def connect(cls, upstreams: Upstreams) -> Self:
        """The servers of the settings; no connection is opened yet."""
        connected = {name: Upstream.connect(each) for name, each in upstreams.servers.items()}
        return cls(upstreams, connected)

    @classmethod
    def single(cls, upstream: Upstream) -> Self:
        """One server that takes every model."""
        server = upstream.server
        return cls(Upstreams.single(server), {server.name: upstream})

    def find(self, endpoint: Endpoint, model: str | None) -> Target | LineError:
        """Where lines of this model go, or why they cannot go anywhere."""
        found = self.upstreams.find(endpoint, model)
        if isinstance(found, LineError):
            return found
        return Target(self._connected[found.server.name], found.model, found.flow)

    async def aclose(self) -> None:
        """Close every connection."""
        for upstream in self._connected.values():
            await upstream.aclose()


def rename_model(body: bytes, model: str) -> bytes:
    """The same JSON object with this model in it; as it is if it names none.

    Of a member that stands there twice the last one counts, as it did when the line was validated.
    """
    members = _decode_members(body)
    if "model" not in members:
        return body
    members["model"] = msgspec.Raw(orjson.dumps(model))
    return b"{%b}" % b", ".join(
        b"%b: %b" % (orjson.dumps(name), bytes(value)) for name, value in members.items()
    )
