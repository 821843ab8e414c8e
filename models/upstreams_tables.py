"""The tables of `overnight.toml`, each key with what it may hold.

Promises: what a refusal says repeats nothing that may be a secret: of a header only its name.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

from models.hours import ActiveHours, find_time_zone
from models.lines import Endpoint
from models.upstreams import check_base_url, find_metrics_url

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# Each belongs to a connection or to the call itself, not to a server.
_RESERVED_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "idempotency-key",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def hint(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about a word that is not known: the nearest that is, if one is near."""
    nearest = difflib.get_close_matches(word, [str(each) for each in known], n=1)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""


def _url(value: str) -> str:
    return check_base_url(value, place_for_keys="api_key_env or api_key_file")


def _variable(value: str) -> str:
    if not _VARIABLE.fullmatch(value):
        message = "it must be the name of an environment variable"
        raise ValueError(message)
    return value


def _headers(headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
    lowered: dict[str, SecretStr] = {}
    for name, secret in headers.items():
        value, small = secret.get_secret_value(), name.lower()
        if not _TOKEN.fullmatch(name):
            message = f"{name!r} cannot be the name of a header"
        elif small in _RESERVED_HEADERS:
            message = f"'{name}' is Overnight's own to set"
        elif small in lowered:
            message = f"'{name}' is there twice"
        elif not (value.isascii() and value.isprintable() and value == value.strip() and value):
            message = f"the value of '{name}' may hold visible ASCII characters only"
        else:
            lowered[small] = secret
            continue
        raise ValueError(message)
    return lowered


def _endpoints(values: list[str]) -> list[str]:
    if not values:
        message = "it must name one at least; leave it out to allow all"
        raise ValueError(message)
    for value in values:
        if value not in set(Endpoint):
            message = f"there is no '{value}'{hint(value, Endpoint)}"
            raise ValueError(message)
    return values


def _model_name(value: str) -> str:
    if not value or len(value) > 256 or not value.isprintable() or value != value.strip():
        message = f"{value[:256]!r} cannot be the name of a model"
        raise ValueError(message)
    return value


def _server_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        message = "a server's name has letters, digits, '-' and '_', and 64 of them at most"
        raise ValueError(message)
    return value


def _active_hours(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        message = "it must be a text such as '22:00-06:00', or a list of such"
        raise ValueError(message)
    ActiveHours.parse(texts)
    return texts


def _time_zone(value: str) -> str:
    return find_time_zone(value).key


def _switch(value: Any) -> Any:
    """What people mean by `true` and `false`."""
    return {True: "auto", False: "off"}[value] if isinstance(value, bool) else value


def _metrics(value: str) -> str:
    find_metrics_url(value, "")
    return value


_ServerName = Annotated[str, AfterValidator(_server_name)]
_ModelName = Annotated[str, AfterValidator(_model_name)]
_Seconds = Annotated[float, Field(gt=0, le=7 * 24 * 3600, allow_inf_nan=False)]

_Rate = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]


class Table(BaseModel):
    """TOML has types of its own, so nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class FlowTable(Table):
    """How much may be asked, of a server or of a model; null if it is not said."""

    max_in_flight: Annotated[int, Field(gt=0, le=10_000)] | None = None
    adaptive: bool | None = None
    requests_per_minute: _Rate | None = None
    tokens_per_minute: _Rate | None = None

    @model_validator(mode="after")
    def _exact_number(self) -> "FlowTable":
        if self.adaptive is False and self.max_in_flight is None:
            message = "adaptive = false needs max_in_flight, which is then the number of calls"
            raise ValueError(message)
        return self


class ServerTable(FlowTable):
    """`[upstreams.NAME]`: a model server."""

    url: Annotated[str, AfterValidator(_url)]
    api_key_env: Annotated[str, AfterValidator(_variable)] | None = None
    api_key_file: Annotated[str, Field(min_length=1)] | None = None
    headers: Annotated[dict[str, SecretStr], AfterValidator(_headers)] = {}
    call_timeout_seconds: _Seconds | None = None
    connect_timeout_seconds: _Seconds | None = None
    endpoints: Annotated[list[str], AfterValidator(_endpoints)] | None = None
    active_hours: Annotated[list[str], BeforeValidator(_active_hours)] | None = None
    time_zone: Annotated[str, AfterValidator(_time_zone)] | None = None
    metrics: Annotated[str, BeforeValidator(_switch), AfterValidator(_metrics)] = "auto"

    @model_validator(mode="after")
    def _one_key(self) -> "ServerTable":
        given = [self.api_key_env, self.api_key_file, self.headers.get("authorization")]
        if len([each for each in given if each is not None]) > 1:
            message = "give one of api_key_env, api_key_file and an authorization header"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _zone_of_hours(self) -> "ServerTable":
        if self.time_zone is not None and self.active_hours is None:
            message = "time_zone is that of active_hours, which is not there"
            raise ValueError(message)
        return self


class ModelTable(FlowTable):
    """`[models.NAME]`: a model, the server that has it, and its other names."""

    upstream: str
    aliases: list[_ModelName] = []
    upstream_model: _ModelName | None = None


class UpstreamsFile(Table):
    """The whole file."""

    default: str | None = None
    upstreams: dict[_ServerName, ServerTable]
    models: dict[_ModelName, ModelTable] = {}
