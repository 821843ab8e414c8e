"""Settings that every process shares: where the database, the broker and the model server are.

Read from the environment (`OVERNIGHT_…`), once, at the edge of a process; passed in from there.
"""

from typing import Annotated
from urllib.parse import urlsplit

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
        message = "it must hold no user or password; a key belongs into OVERNIGHT_UPSTREAM_API_KEY"
        raise ValueError(message)
    if not url.endswith("/v1") or parts.query or parts.fragment:
        message = f"it must end in /v1, as in {parts.scheme}://{parts.netloc}/v1"
        raise ValueError(message)
    return url


def _header_value(value: SecretStr) -> SecretStr:
    """A key as it can stand in a header; secrets that come from files often end in a newline."""
    key = value.get_secret_value().strip()
    if not (key.isascii() and key.isprintable()):
        message = "it may hold visible ASCII characters only"
        raise ValueError(message)
    return SecretStr(key)


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
    """The OpenAI-compatible model server that the lines are sent to."""

    model_config = ENV

    upstream_url: Annotated[str, AfterValidator(_upstream_url)] = Field(
        description="Base URL of the model server, ending in /v1."
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

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine: no proxy of the environment leads there."""
        host = urlsplit(self.upstream_url).hostname or ""
        return (
            host == "localhost"
            or host.endswith(".localhost")
            or host == "::1"
            or host.startswith("127.")
        )
