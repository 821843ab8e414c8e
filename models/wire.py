"""OpenAI's objects as they stand in answers: every key always present, times in whole Unix seconds.

Source: `openapi.yaml` of the OpenAI API (Batch, OpenAIFile, the list objects) and live answers; field
order is that of the reference examples.
"""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel

from models import batch as tables
from models import file as file_tables
from models import upload as upload_tables
from models import webhook as webhook_tables
from models.signing import hint_of


def unix(moment: datetime | None) -> int | None:
    """Whole seconds since 1970, or null."""
    return None if moment is None else int(moment.timestamp())


class File(BaseModel):
    """A file object."""

    object: Literal["file"] = "file"
    id: str
    purpose: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int | None
    status: str
    status_details: str | None = None

    @classmethod
    def of(cls, file: file_tables.File) -> Self:
        """The file as a client sees it."""
        return cls(
            id=file.id,
            purpose=file.purpose,
            filename=file.filename,
            bytes=file.bytes,
            created_at=int(file.created_at.timestamp()),
            expires_at=unix(file.expires_at),
            status=file.status,
        )


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, files: list[File], *, has_more: bool) -> Self:
        """A page; `first_id` and `last_id` are null on an empty one."""
        first, last = (files[0].id, files[-1].id) if files else (None, None)
        return cls(data=files, first_id=first, last_id=last, has_more=has_more)


class FileDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class Upload(BaseModel):
    """An upload in parts; `file` is null until it is completed, and again when the file is deleted."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str
    expires_at: int
    file: File | None

    @classmethod
    def of(
        cls, upload: upload_tables.MultipartUpload, file: file_tables.File | None = None
    ) -> Self:
        """The upload as a client sees it."""
        return cls(
            id=upload.id,
            bytes=upload.bytes,
            created_at=int(upload.created_at.timestamp()),
            filename=upload.filename,
            purpose=upload.purpose,
            status=upload.status,
            expires_at=int(upload.expires_at.timestamp()),
            file=None if file is None else File.of(file),
        )


class UploadPart(BaseModel):
    """One part of an upload."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


class RequestCounts(BaseModel):
    """How many lines there are, and how many have ended which way."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputTokensDetails(BaseModel):
    """Part of `usage`."""

    cached_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """Part of `usage`."""

    reasoning_tokens: int = 0


class Usage(BaseModel):
    """Tokens summed over the lines, in the wording of the Responses API."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: dict[str, int]) -> Self:
        """The sums kept with a batch, as a client sees them."""
        return cls(
            input_tokens=usage["input_tokens"],
            input_tokens_details=InputTokensDetails(cached_tokens=usage["cached_tokens"]),
            output_tokens=usage["output_tokens"],
            output_tokens_details=OutputTokensDetails(reasoning_tokens=usage["reasoning_tokens"]),
            total_tokens=usage["total_tokens"],
        )


class BatchError(BaseModel):
    """One fault of the input; `line` counts from 1 and is null for faults of the whole file."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(BaseModel):
    """The faults for which a batch failed."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class Batch(BaseModel):
    """A batch object."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: Usage | None
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, batch: tables.Batch, completed: int = 0, failed: int = 0) -> Self:
        """The batch as a client sees it, with the counts of `models.queries.counted_batches`."""
        return cls(
            id=batch.id,
            endpoint=batch.endpoint,
            model=batch.model,
            errors=None
            if batch.errors is None
            else BatchErrors(data=[BatchError.model_validate(error) for error in batch.errors]),
            input_file_id=batch.input_file_id,
            completion_window=batch.completion_window,
            status=batch.status,
            output_file_id=batch.output_file_id,
            error_file_id=batch.error_file_id,
            created_at=int(batch.created_at.timestamp()),
            in_progress_at=unix(batch.in_progress_at),
            expires_at=unix(batch.expires_at),
            finalizing_at=unix(batch.finalizing_at),
            completed_at=unix(batch.completed_at),
            failed_at=unix(batch.failed_at),
            expired_at=unix(batch.expired_at),
            cancelling_at=unix(batch.cancelling_at),
            cancelled_at=unix(batch.cancelled_at),
            request_counts=RequestCounts(total=batch.total, completed=completed, failed=failed),
            usage=None if batch.usage is None else Usage.of(batch.usage),
            metadata=batch.metadata_,
        )


class BatchProgress(BaseModel):
    """How a batch is getting on: an extension. Times are Unix seconds."""

    object: Literal["batch.progress"] = "batch.progress"
    batch_id: str
    status: str
    paused: bool
    request_counts: RequestCounts
    in_flight: int
    retries: int
    usage: Usage
    lines_per_second: float
    expires_at: int
    seconds_left: int
    forecast_end_at: int | None
    forecast_in_window: bool | None


class BatchUpdate(BaseModel):
    """What the stream of events tells of a batch that has changed: an extension."""

    object: Literal["batch.update"] = "batch.update"
    batch: Batch
    progress: BatchProgress


class BatchList(BaseModel):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, batches: list[Batch], *, has_more: bool) -> Self:
        """A page; `first_id` and `last_id` are null on an empty one."""
        first, last = (batches[0].id, batches[-1].id) if batches else (None, None)
        return cls(data=batches, first_id=first, last_id=last, has_more=has_more)


class WebhookEndpoint(BaseModel):
    """A receiver of events."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str

    @classmethod
    def of(cls, endpoint: webhook_tables.WebhookEndpoint) -> Self:
        """The endpoint as a client sees it, without its secret."""
        return cls(**cls._shown(endpoint))

    @classmethod
    def _shown(cls, endpoint: webhook_tables.WebhookEndpoint) -> dict[str, Any]:
        return {
            "id": endpoint.id,
            "created_at": int(endpoint.created_at.timestamp()),
            "updated_at": int(endpoint.updated_at.timestamp()),
            "name": endpoint.name,
            "url": endpoint.url,
            "event_types": endpoint.event_types,
            "signing_secret_hint": hint_of(endpoint.secret),
        }


class WebhookEndpointWithSecret(WebhookEndpoint):
    """What creating an endpoint and rotating its secret answer, and nothing else does."""

    signing_secret: str

    @classmethod
    def of(cls, endpoint: webhook_tables.WebhookEndpoint) -> Self:
        """The endpoint with its secret."""
        return cls(**cls._shown(endpoint), signing_secret=endpoint.secret)


class WebhookEndpointList(BaseModel):
    """A page of webhook endpoints."""

    object: Literal["list"] = "list"
    data: list[WebhookEndpoint]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, endpoints: list[WebhookEndpoint], *, has_more: bool) -> Self:
        """A page; `first_id` and `last_id` are null on an empty one."""
        first, last = (endpoints[0].id, endpoints[-1].id) if endpoints else (None, None)
        return cls(data=endpoints, first_id=first, last_id=last, has_more=has_more)


class WebhookEndpointDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookEndpointTest(BaseModel):
    """What a receiver answered to a made-up event. It answered: whether it liked it, the status says."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class WebhookEventTypeList(BaseModel):
    """The events that there are."""

    object: Literal["list"] = "list"
    data: list[str]


class Model(BaseModel):
    """A model that the model server offers."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    shutdown_date: int | None = None


class ModelList(BaseModel):
    """All models; there are no pages."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(BaseModel):
    """What went wrong; all four keys are always there."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorBody
