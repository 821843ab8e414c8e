"""The model servers that lines may be sent to, and which model goes to which. Pure.

Promises: `Upstreams.find` is the only place where a model's name becomes a server, for validating and for
running alike; no key and no header's value is ever shown by a repr.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from pydantic import SecretStr

from models.hours import ActiveHours
from models.lines import MAX_ECHO, Endpoint, LineError

DEFAULT_NAME = "default"
"""The name of the one server that the environment describes."""


def check_base_url(value: str, *, place_for_keys: str) -> str:
    """A model server's base URL without a slash at its end.

    Raises:
        ValueError: it cannot be one, or holds a secret that belongs elsewhere.
    """
    url = value.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole:
        message = "it must be a URL such as http://localhost:8000/v1"
        raise ValueError(message)
    if parts.username or parts.password:
        message = f"it must hold no user or password; a key belongs into {place_for_keys}"
        raise ValueError(message)
    if not url.endswith("/v1") or parts.query or parts.fragment:
        message = f"it must end in /v1, as in {parts.scheme}://{parts.netloc}/v1"
        raise ValueError(message)
    return url


def check_key(value: str) -> SecretStr:
    """A key as it can stand in a header; secrets that come from files often end in a newline.

    Raises:
        ValueError: it holds something that no header can.
    """
    key = value.strip()
    if not (key.isascii() and key.isprintable()):
        message = "it may hold visible ASCII characters only"
        raise ValueError(message)
    return SecretStr(key)


def find_metrics_url(value: str, base_url: str) -> str | None:
    """Where a server publishes its queue: `auto` is beside its `/v1`, `off` is nowhere.

    Raises:
        ValueError: it is neither, and no URL.
    """
    value = value.strip()
    if value == "off":
        return None
    if value == "auto":
        return f"{base_url.removesuffix('/v1')}/metrics"
    try:
        parts = urlsplit(value)
        is_whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole:
        message = "it must be 'auto', 'off', or a URL such as http://localhost:8000/metrics"
        raise ValueError(message)
    if parts.username or parts.password:
        message = "it must hold no user or password"
        raise ValueError(message)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowLimits:
    """How much may be asked of a server, or of one model there, by all workers together."""

    max_in_flight: int | None = None
    """Most calls in flight; null for no limit."""

    adaptive: bool = True
    """Whether the calls in flight are found by trying; if not, they are `max_in_flight` exactly."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def __post_init__(self) -> None:
        if not self.adaptive and self.max_in_flight is None:
            message = "without adaptive, max_in_flight must say how many calls there are"
            raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelServer:
    """One OpenAI-compatible server, and how it may be called."""

    name: str
    url: str
    """The base URL, ending in `/v1`."""

    call_timeout_seconds: float
    connect_timeout_seconds: float
    max_response_bytes: int
    api_key: SecretStr | None = None
    headers: Mapping[str, SecretStr] = field(default_factory=dict)
    flow: FlowLimits = FlowLimits()
    """Of all its models together."""

    active_hours: ActiveHours | None = None
    """When a call to it may begin; null for always."""

    metrics_url: str | None = None
    """Where it may publish its queue; null if nobody is to look."""

    endpoints: frozenset[Endpoint] = frozenset(Endpoint)

    @property
    def max_in_flight(self) -> int | None:
        """Most calls in flight there; null for no limit."""
        return self.flow.max_in_flight

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine: no proxy of the environment leads there."""
        host = urlsplit(self.url).hostname or ""
        return (
            host == "localhost"
            or host.endswith(".localhost")
            or host == "::1"
            or host.startswith("127.")
        )

    def own_headers(self) -> dict[str, str]:
        """The headers that this server wants of every caller, its key among them; names in lower case."""
        headers = {name: value.get_secret_value() for name, value in self.headers.items()}
        if self.api_key is not None:
            headers["authorization"] = f"Bearer {self.api_key.get_secret_value()}"
        return headers


@dataclass(frozen=True, slots=True)
class Route:
    """Where a model's lines go."""

    server: ModelServer
    model: str | None = None
    """The model's name there; null if it is the one that the line has."""

    flow: FlowLimits | None = None
    """The model's limits, if it has some of its own; those it leaves out are its server's."""


@dataclass(frozen=True, slots=True)
class ModelFilter:
    """Some models: those that are named, or all but those."""

    names: tuple[str, ...] = ()
    are_meant: bool = False

    def without(self, names: Collection[str]) -> Self:
        """The same but for these models."""
        if self.are_meant:
            return type(self)(
                tuple(each for each in self.names if each not in names), are_meant=True
            )
        return type(self)((*self.names, *names))


EVERY_MODEL = ModelFilter()


@dataclass(frozen=True, slots=True)
class Upstreams:
    """All model servers, and the way of each model's name to one of them."""

    servers: Mapping[str, ModelServer]
    default: ModelServer | None
    """Where a model goes that no route names; null to refuse it."""

    routes: Mapping[str, Route] = field(default_factory=dict)
    """By model name or alias."""

    @classmethod
    def single(cls, server: ModelServer) -> Self:
        """One server that takes every model."""
        return cls({server.name: server}, default=server)

    def find(self, endpoint: Endpoint, model: str | None) -> Route | LineError:
        """The way for lines of this model (null: they name none), or why there is none."""
        route = self._route(model)
        if route is None:
            return _no_model() if model is None else _unknown(model)
        if endpoint not in route.server.endpoints:
            return _not_allowed(endpoint, model, route.server.endpoints)
        return route

    def _route(self, model: str | None) -> Route | None:
        route = None if model is None else self.routes.get(model)
        if route is None and self.default is not None:
            route = Route(self.default, flow=self._flow_there(self.default, model))
        return route

    def _flow_there(self, server: ModelServer, model: str | None) -> FlowLimits | None:
        # A line may name a model as its server does, although the file has it by another name.
        return next(
            (
                each.flow
                for name, each in self.routes.items()
                if each.server.name == server.name and (each.model or name) == model
            ),
            None,
        )

    def models_without(self, busy: Collection[str]) -> ModelFilter:
        """The models that go to none of these servers; those that go nowhere are among them."""
        if self.default is not None and self.default.name in busy:
            names = [name for name, each in self.routes.items() if each.server.name not in busy]
            return ModelFilter(tuple(names), are_meant=True)
        names = [name for name, each in self.routes.items() if each.server.name in busy]
        return ModelFilter(tuple(names))

    def call_timeout_seconds(self, model: str | None) -> float:
        """Longest time that one call for this model may take; zero if it goes nowhere."""
        route = self._route(model)
        return 0.0 if route is None else route.server.call_timeout_seconds


def _no_model() -> LineError:
    # For the endpoints where a line may name none, if nobody says which server then has the choice.
    return LineError("invalid_request", "Model parameter is required.", "body.model")


def _unknown(model: str) -> LineError:
    message = f"The provided model '{model[:MAX_ECHO]}' is not supported by the Batch API."
    return LineError("model_not_found", message, "body.model")


def _not_allowed(endpoint: Endpoint, model: str | None, allowed: frozenset[Endpoint]) -> LineError:
    *words, last = [f"'{each.value}'" for each in Endpoint if each in allowed]
    comma = "," if len(words) > 1 else ""
    listed = f"{', '.join(words)}{comma} and {last}" if words else last
    of_model = "" if model is None else f" for the model '{model[:MAX_ECHO]}'"
    message = f"Invalid value: '{endpoint.value}'. Supported values{of_model} are: {listed}."
    return LineError("invalid_value", message, "url")
