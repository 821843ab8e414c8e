"""Settings that every process shares: where the database, the broker and the model server are.

Read from the environment (`OVERNIGHT_…`), once, at the edge of a process; passed in from there.
"""

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

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
    url = value.rstrip("/")
    if not url.startswith(("http://", "https://")):
        message = "it must begin with http:// or https://"
        raise ValueError(message)
    if not url.endswith("/v1"):
        message = f"it must end in /v1, as in {url}/v1"
        raise ValueError(message)
    return url


class DatabaseSettings(BaseSettings):
    """The database: the truth."""

    model_config = ENV

    database_url: Annotated[SecretStr, AfterValidator(_postgres_url)] = Field(
        description="The Postgres database, as postgresql://user:password@host:port/name."
    )
    database_pool_size: int = Field(
        default=8, ge=1, le=200, description="Connections that one process keeps open at most."
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


class UpstreamSettings(BaseSettings):
    """The OpenAI-compatible model server that the lines are sent to."""

    model_config = ENV

    upstream_url: Annotated[str, AfterValidator(_upstream_url)] = Field(
        description="Base URL of the model server, ending in /v1."
    )
    upstream_api_key: SecretStr | None = Field(
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
