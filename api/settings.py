"""Settings of the API, read from `OVERNIGHT_…`.

Promises: a duration that nobody can read is refused at start, not at the first request.
"""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings

from api.windows import Windows
from models.settings import ENV


def _comma_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _windows(value: str) -> str:
    Windows(_comma_list(value))
    return value


def _keys(value: SecretStr) -> SecretStr:
    keys = _comma_list(value.get_secret_value())
    if not keys:
        message = "name at least one key"
        raise ValueError(message)
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        message = "a key may hold only visible ASCII characters"
        raise ValueError(message)
    return value


class ApiSettings(BaseSettings):
    """What the API accepts, and from whom."""

    model_config = ENV

    api_key: Annotated[SecretStr, AfterValidator(_keys)] | None = Field(
        default=None,
        description="A bearer key for the project `default`; several are separated by commas. Without"
        " it only keys of `overnight keys create` are accepted.",
    )
    max_file_bytes: int = Field(
        default=200 * 1024 * 1024, gt=0, description="Largest file of purpose batch."
    )
    max_other_file_bytes: int = Field(
        default=512 * 1024 * 1024, gt=0, description="Largest file of any other purpose."
    )
    max_upload_bytes: int = Field(
        default=8 * 1024**3,
        gt=0,
        description="Largest upload in parts, of any purpose but batch.",
    )
    max_part_bytes: int = Field(
        default=64 * 1024 * 1024, gt=0, description="Largest part of an upload in parts."
    )
    upload_life_seconds: int = Field(
        default=3600, gt=0, description="Time that there is to complete an upload in parts."
    )
    max_stored_bytes: int = Field(
        default=2_500_000_000_000,
        ge=0,
        le=2**63 - 1,
        description="Most bytes that a project may store, unless it has a limit of its own"
        " ([projects](tenants.md)); 0 is no limit.",
    )
    max_batches_per_hour: int = Field(
        default=2000,
        ge=0,
        le=2**31 - 1,
        description="Most batches that a project may create in an hour, unless it has a limit of its"
        " own; 0 is no limit.",
    )
    refuse_hopeless: bool = Field(
        default=False,
        description="Refuse a batch (429) if at the rate seen lately the lines before it alone, of its"
        " model and over all projects, take longer than its window"
        " ([extensions](extensions.md#hopeless-batches)).",
    )
    file_retention_days: float = Field(
        default=30,
        gt=0,
        le=36_500,
        description="Life of a file of purpose batch, unless its upload says otherwise.",
    )
    completion_windows: Annotated[str, AfterValidator(_windows)] = Field(
        default="24h",
        description="Windows that a batch may ask for, separated by commas: durations (30s, 15m, 24h,"
        " 7d), ranges of them (10s-30d), or `any` for each from 10s to 365d.",
    )
    unknown_parameters: Literal["refuse", "ignore"] = Field(
        default="refuse",
        description="What happens to a request with a parameter that is not known.",
    )
    client_silence_seconds: float = Field(
        default=60,
        gt=0,
        description="A client that for so long sends nothing of its request, or takes nothing of its"
        " answer, is cut off; also the time that there is for a request's head.",
    )
    client_min_bytes_per_second: float = Field(
        default=500,
        ge=0,
        description="A client whose request, over all and after the time above, arrives more slowly is cut"
        " off; 0 is no limit.",
    )
    max_uploads_at_once: int = Field(
        default=100,
        ge=0,
        description="Most uploads (files and parts of files) that a project may have under way in one"
        " process of the API; 0 is no limit.",
    )
    dashboard: bool = Field(
        default=True,
        description="Serve the [dashboard](dashboard.md) at `/`. Without it `/` says in JSON what this is,"
        " and no session of a browser is accepted.",
    )
    dashboard_session_hours: float = Field(
        default=24,
        gt=0,
        le=24 * 365,
        description="Life of a browser's session; then the dashboard asks for the key again.",
    )

    def accepted_keys(self) -> list[str]:
        """The accepted keys, besides those in the database."""
        return [] if self.api_key is None else _comma_list(self.api_key.get_secret_value())

    def windows(self) -> Windows:
        """The windows that a batch may ask for, by the word for each."""
        return Windows(_comma_list(self.completion_windows))

    def file_retention(self) -> timedelta:
        """Life of a file of purpose batch, unless its upload says otherwise."""
        return timedelta(days=self.file_retention_days)

    def max_upload_bytes_of(self, purpose: str) -> int:
        """Largest upload in parts of this purpose."""
        return self.max_file_bytes if purpose == "batch" else self.max_upload_bytes

    def max_bytes_of(self, purpose: str | None) -> int:
        """Largest file of this purpose; of any purpose while it is not known."""
        if purpose is None:
            return max(self.max_file_bytes, self.max_other_file_bytes)
        return self.max_file_bytes if purpose == "batch" else self.max_other_file_bytes
