"""Settings of the workers, one class per owner; read from `OVERNIGHT_…`."""

from dataclasses import dataclass, field
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings

from models.settings import (
    ENV,
    BrokerSettings,
    DatabaseSettings,
    UpstreamSettings,
    WebhookSettings,
)


class ValidateSettings(BaseSettings):
    """What an input file may hold, and how it is cut into shards."""

    model_config = ENV

    max_lines: int = Field(default=50_000, gt=0, description="Most requests in one batch.")
    max_embedding_inputs: int = Field(
        default=50_000, gt=0, description="Most embedding inputs over all requests of one batch."
    )
    max_line_bytes: int = Field(
        default=32 * 1024 * 1024, gt=0, description="Longest line of an input file, in bytes."
    )
    max_batch_errors: int = Field(
        default=1000, gt=0, description="Most entries that `errors.data` of a failed batch lists."
    )
    max_enqueued_lines: int = Field(
        default=0,
        ge=0,
        le=2**63 - 1,
        description="Most requests that the batches of one project and model, which have begun and not"
        " ended, may have together, unless the project has a limit of its own"
        " ([projects](tenants.md)); 0 is no limit.",
    )
    max_enqueued_tokens: int = Field(
        default=0,
        ge=0,
        le=2**63 - 1,
        description="The same for their prompt tokens, one for every four bytes of a body; 0 is no"
        " limit.",
    )
    shard_lines: int = Field(default=250, gt=0, le=10_000, description="Most lines in one shard.")
    shard_bytes: int = Field(
        default=4 * 1024 * 1024,
        gt=0,
        description="A shard is closed when its lines reach this size.",
    )
    validate_tries: int = Field(
        default=5,
        ge=1,
        description="A batch whose validation was begun so often, and each time died or came to an"
        " unforeseen error, fails.",
    )
    prefix_order: bool = Field(
        default=True,
        description="Call lines whose prompts begin alike one after the other, so that a model server's"
        " prefix cache hits; the output files keep their order.",
    )


class RunSettings(BaseSettings):
    """How a run worker calls the model server and keeps what comes back."""

    model_config = ENV

    max_in_flight: int = Field(
        default=1000,
        gt=0,
        le=10_000,
        description="Most calls in flight in one run worker process, whatever its model servers would"
        " take; how many each of them gets is found by itself ([how](model-servers.md)).",
    )
    shards_per_worker: int = Field(
        default=32,
        gt=0,
        le=100,
        description="Most shards that one run worker process takes lines from at a time.",
    )
    line_max_tries: int = Field(
        default=6,
        gt=0,
        description="Failed tries after which a line whose neighbours succeed is given up.",
    )
    retry_base_seconds: float = Field(default=0.5, gt=0, description="First wait before a new try.")
    retry_cap_seconds: float = Field(
        default=20,
        gt=0,
        description="Longest wait before a new try, unless the server asks for more.",
    )
    lease_seconds: float = Field(
        default=7,
        ge=2,
        description="A worker that is silent for so long loses its shard or batch.",
    )
    suspect_lapses: int = Field(
        default=3,
        ge=1,
        description="A shard whose worker was lost so many times in a row, with nothing recorded in"
        " between, has its lines tried alone; a line that was alone so many times fails"
        " ([how](architecture.md#what-kills-its-worker)).",
    )
    drain_seconds: float = Field(
        default=30,
        ge=0,
        description="Time that calls in flight get to end when a worker is stopped.",
    )
    cancel_grace_seconds: float = Field(
        default=30,
        ge=0,
        description="Time that calls in flight get to end when their batch is cancelled.",
    )
    video_timeout_seconds: float = Field(
        default=3600,
        gt=0,
        description="A video that the model server has not finished after so long is given up.",
    )
    stall_seconds: float = Field(
        default=30,
        gt=0,
        description="A worker that cannot reach a model server for so long gives the shards back that"
        " are for it, but for one: another may have more luck.",
    )
    hang_seconds: float = Field(
        default=30,
        ge=0,
        description="A call is never taken to hang sooner; 0 to wait for every answer as long as"
        " `OVERNIGHT_CALL_TIMEOUT_SECONDS` allows.",
    )
    hang_factor: float = Field(
        default=10,
        ge=2,
        description="A call that takes so many times as long as 98 % of its model's calls do is taken to"
        " hang: it is given up and tried again, with four times as long each time.",
    )
    record_seconds: float = Field(
        default=0.5, gt=0, description="Longest time that a result waits to be written."
    )
    record_rows: int = Field(default=200, gt=0, description="Results that are written at once.")

    @model_validator(mode="after")
    def _lease_outlives_heartbeats(self) -> Self:
        if self.lease_seconds < 3 * self.record_seconds:
            message = "lease_seconds must be at least three times record_seconds"
            raise ValueError(message)
        return self


class ControlSettings(BaseSettings):
    """How the control worker and beat behave."""

    model_config = ENV

    control_processes: int = Field(
        default=2, gt=0, le=64, description="Processes that validate and finalize batches."
    )
    sweep_seconds: float = Field(
        default=2, gt=0, description="How often everything is looked over for what was missed."
    )
    output_retention_seconds: int = Field(
        default=30 * 24 * 3600,
        gt=0,
        description="Life of output and error files, unless a batch says otherwise.",
    )
    idempotency_key_hours: float = Field(
        default=24,
        gt=0,
        le=8760,
        description="Time for which an `Idempotency-Key` is remembered.",
    )
    upload_stall_seconds: int = Field(
        default=3600, gt=0, description="An upload that has not moved for so long is removed."
    )


class NotifySettings(BaseSettings):
    """How webhooks are sent, and for how long it is tried."""

    model_config = ENV

    webhook_max_in_flight: int = Field(
        default=32, gt=0, le=1000, description="Most webhooks that one process sends at a time."
    )
    webhook_first_wait_seconds: float = Field(
        default=5, gt=0, description="First wait after a webhook failed; it doubles each time."
    )
    webhook_longest_wait_seconds: float = Field(
        default=4 * 3600, gt=0, description="Longest wait between two tries of a webhook."
    )
    webhook_give_up_seconds: float = Field(
        default=72 * 3600,
        gt=0,
        description="A webhook that still fails so long after its event is given up.",
    )


@dataclass(frozen=True)
class WorkerSettings:
    """All that a worker process needs to know."""

    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    upstream: UpstreamSettings = field(default_factory=UpstreamSettings)
    validate: ValidateSettings = field(default_factory=ValidateSettings)
    run: RunSettings = field(default_factory=RunSettings)
    control: ControlSettings = field(default_factory=ControlSettings)
    webhook: WebhookSettings = field(default_factory=WebhookSettings)
    notify: NotifySettings = field(default_factory=NotifySettings)
