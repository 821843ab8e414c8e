"""Settings that every process shares: where the database, the broker and the model servers are.

Read from the environment (`OVERNIGHT_…`), once, at the edge of a process; passed in from there.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationInfo,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.hours import ActiveHours, find_time_zone
from models.upstreams import (
    DEFAULT_NAME,
    FlowLimits,
    ModelServer,
    Upstreams,
    check_base_url,
    check_key,
    find_metrics_url,
)
from models.upstreams_file import read_upstreams

ENV = SettingsConfigDict(
    env_prefix="OVERNIGHT_",
    extra="ignore",
    env_ignore_empty=True,
    # A value that is refused may hold a password; the error names the setting, and that is enough.
    hide_input_in_errors=True,
)


def _postgres_url(value: SecretStr, info: ValidationInfo) -> SecretStr:
    scheme, separator, rest = value.get_secret_value().partition("://")
    if not separator or scheme.split("+")[0] not in {"postgresql", "postgres"}:
        message = f"{info.field_name} must begin with postgresql://"
        raise ValueError(message)
    return SecretStr(f"postgresql+psycopg://{rest}")


def _upstream_url(value: str) -> str:
    return check_base_url(value, place_for_keys="OVERNIGHT_UPSTREAM_API_KEY")


def _header_value(value: SecretStr) -> SecretStr:
    return check_key(value.get_secret_value())


def _active_hours(value: str) -> str:
    ActiveHours.parse([value])
    return value


def _time_zone(value: str) -> str:
    return find_time_zone(value).key


def _metrics(value: str) -> str:
    find_metrics_url(value, "")
    return value


class DatabaseSettings(BaseSettings):
    """The database: the truth."""

    model_config = ENV

    database_url: Annotated[SecretStr, AfterValidator(_postgres_url)] = Field(
        description="The Postgres database, as postgresql://user:password@host:port/name."
    )
    database_pool_size: int = Field(
        # Finalizing takes three at a time.
        default=8,
        ge=4,
        le=200,
        description="Connections that one process keeps open at most.",
    )
    database_statement_seconds: float = Field(
        default=30, gt=0, description="A statement that takes longer is given up."
    )


class BrokerSettings(BaseSettings):
    """The broker: the doorbell. It may lose everything at any time; that only delays work."""

    model_config = ENV

    redis_url: SecretStr = Field(
        description="Redis or Valkey, as redis://host:6379/0 or redis+socket:///path."
    )


class MetricsSettings(BaseSettings):
    """Where a worker serves its metrics. (The API serves its own beside everything else.)"""

    model_config = ENV

    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port on which a worker serves its metrics for Prometheus"
        " ([which](observability.md)), those of all its processes; none without it.",
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        description="Address that it listens on for that; 0.0.0.0 in a container.",
    )


class WebhookSettings(BaseSettings):
    """Whom webhooks may call, and for how long."""

    model_config = ENV

    webhook_allow_private: bool = Field(
        default=False,
        description="Let webhooks go to any address, private ones and this machine's own included,"
        " and by plain HTTP. For development, or where every key's holder is trusted.",
    )
    webhook_timeout_seconds: float = Field(
        default=10,
        gt=0,
        le=60,
        description="Longest time that a receiver may take, from its name to its answer.",
    )


class UpstreamSettings(BaseSettings):
    """The OpenAI-compatible model servers that the lines are sent to: one by its URL, or those of a file.

    A file is read here, once, and a mistake in it is one of this setting.
    """

    model_config = ENV

    config: Path | None = Field(
        default=None,
        description="A file of several model servers ([how](model-servers.md)); the URL and the key"
        " below are then not used.",
    )
    upstream_url: Annotated[str, AfterValidator(_upstream_url)] | None = Field(
        default=None,
        description="Base URL of the model server, ending in /v1. Required without a file.",
    )
    upstream_api_key: Annotated[SecretStr, AfterValidator(_header_value)] | None = Field(
        default=None,
        description="Sent to the model server as a bearer key; none is sent without it.",
    )
    upstream_max_in_flight: int | None = Field(
        default=None,
        gt=0,
        le=10_000,
        description="Most calls in flight there, over all workers and processes. This and what follows"
        " is for the server of the URL; a file says it for each of its servers.",
    )
    upstream_adaptive: bool = Field(
        default=True,
        description="Find by trying how many calls in flight the server can use. If false, they are"
        " as many as the setting above says, which is then required.",
    )
    upstream_requests_per_minute: float | None = Field(
        default=None,
        gt=0,
        le=1e12,
        allow_inf_nan=False,
        description="Most calls begun in a minute, over all workers.",
    )
    upstream_tokens_per_minute: float | None = Field(
        default=None,
        gt=0,
        le=1e12,
        allow_inf_nan=False,
        description="Most tokens asked for in a minute, over all workers.",
    )
    upstream_active_hours: Annotated[str, AfterValidator(_active_hours)] | None = Field(
        default=None,
        description="When calls may begin, such as `22:00-06:00` or `mon-fri 19:00-07:00; sat,sun"
        " 00:00-24:00`; always without it.",
    )
    upstream_time_zone: Annotated[str, AfterValidator(_time_zone)] = Field(
        default="UTC",
        description="The time zone of those hours, by its IANA name.",
    )
    upstream_metrics: Annotated[str, AfterValidator(_metrics)] = Field(
        default="auto",
        description="Where the server publishes its queue for Prometheus: a URL, `auto` for `/metrics`"
        " beside its `/v1`, or `off`.",
    )
    call_timeout_seconds: float = Field(
        default=600, gt=0, description="Longest time one call may take, from first byte to last."
    )
    connect_timeout_seconds: float = Field(
        default=10, gt=0, description="Longest time that opening a connection may take."
    )
    max_response_bytes: int = Field(
        default=64 * 1024 * 1024, gt=0, description="A longer answer is given up as broken."
    )

    _upstreams: Upstreams = PrivateAttr()

    @model_validator(mode="after")
    def _read(self) -> Self:
        if self.config is None and self.upstream_url is None:
            message = (
                "OVERNIGHT_UPSTREAM_URL is not set: it is your model server's base URL."
                " (Several servers: name a file of them by OVERNIGHT_CONFIG.)"
            )
            raise ValueError(message)
        server = ModelServer(
            name=DEFAULT_NAME,
            url=self.upstream_url or "",
            api_key=self.upstream_api_key,
            call_timeout_seconds=self.call_timeout_seconds,
            connect_timeout_seconds=self.connect_timeout_seconds,
            max_response_bytes=self.max_response_bytes,
        )
        self._upstreams = (
            Upstreams.single(self._with_limits(server))
            if self.config is None
            else read_upstreams(self.config, server, os.environ)
        )
        return self

    def _with_limits(self, server: ModelServer) -> ModelServer:
        if not self.upstream_adaptive and self.upstream_max_in_flight is None:
            message = (
                "OVERNIGHT_UPSTREAM_ADAPTIVE=false needs OVERNIGHT_UPSTREAM_MAX_IN_FLIGHT, which is"
                " then the number of calls."
            )
            raise ValueError(message)
        hours = self.upstream_active_hours
        return replace(
            server,
            flow=FlowLimits(
                max_in_flight=self.upstream_max_in_flight,
                adaptive=self.upstream_adaptive,
                requests_per_minute=self.upstream_requests_per_minute,
                tokens_per_minute=self.upstream_tokens_per_minute,
            ),
            active_hours=None
            if hours is None
            else ActiveHours.parse([hours], self.upstream_time_zone),
            metrics_url=find_metrics_url(self.upstream_metrics, server.url),
        )

    def upstreams(self) -> Upstreams:
        """The model servers, and which model goes to which."""
        return self._upstreams
