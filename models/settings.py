"""Settings that every process shares: where the database, the broker and the model servers are.

Read from the environment (`OVERNIGHT_…`), once, at the edge of a process; passed in from there.
"""

import os
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

from models.upstreams import DEFAULT_NAME, ModelServer, Upstreams, check_base_url, check_key
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
            Upstreams.single(server)
            if self.config is None
            else read_upstreams(self.config, server, os.environ)
        )
        return self

    def upstreams(self) -> Upstreams:
        """The model servers, and which model goes to which."""
        return self._upstreams
