"""Everything the domain can refuse, with the facts of the refusal and no word of HTTP.

    OvernightError
    ├── NotFound
    │   ├── FileNotFound(file_id)
    │   ├── BatchNotFound(batch_id)
    │   ├── BatchLineNotFound(batch_id, line)       its input has no such line, or can be read no more
    │   ├── UploadNotFound(upload_id)
    │   ├── WebhookEndpointNotFound(endpoint_id)
    │   └── ModelNotFound(model)
    ├── OperatorOnly()                              for keys of the default project
    ├── BatchNotCancellable(status)
    ├── BatchNotChangeable(wish, status)            neither paused, resumed nor retried in this status
    ├── NothingToRetry(batch_id)                    every line of it succeeded, or none was read
    ├── IdempotencyKeyReused()                      the key has stood for another request
    ├── UploadHasEnded(wish, status)                it takes no part any more, nor another end
    ├── TooManyWebhookEndpoints(limit)
    ├── ReceiverUnreachable(reason)                 a webhook that got no answer
    ├── InvalidParameter(message, param, code)      a parameter that breaks the error grammar's rules
    ├── FileRefused
    │   ├── FileTooLarge(limit_bytes, param)
    │   ├── NotJsonLines()
    │   ├── StorageLimitReached(limit_bytes)
    │   └── PurposeNotReadable(purpose)
    ├── BatchRateReached(limit, wait_seconds)       no further batch in this hour
    ├── BatchHopeless(model, lines, ...)            it would end long after its window
    ├── EnqueuedLimitReached(what, limit, model)    a batch that would be too much at once
    ├── InputUnreadable(...)                        a batch's input that is gone or cannot be decoded
    ├── LeaseLost(what)                             another worker owns it now: stop, change nothing
    └── Unavailable(what)                           a part of the engine does not answer; try again

`api.errors` is the only place that turns them into a status and an envelope.
"""

import math
from datetime import timedelta
from typing import Literal

from models.ids import ORGANIZATION_ID


class OvernightError(Exception):
    """Any refusal of the domain."""


class NotFound(OvernightError):
    """There is no such object, or it is not the caller's."""


class FileNotFound(NotFound):
    """No such file."""

    def __init__(self, file_id: str) -> None:
        super().__init__(f"No such File object: {file_id}")
        self.file_id = file_id


class BatchLineNotFound(NotFound):
    """No such line of a batch's input."""

    def __init__(self, batch_id: str, line: int) -> None:
        super().__init__(f"The input of batch '{batch_id}' has no line {line}.")
        self.batch_id = batch_id
        self.line = line


class OperatorOnly(OvernightError):
    """What concerns all projects together."""

    def __init__(self) -> None:
        super().__init__("This is only for API keys of the project 'default', the operator's.")


class BatchNotFound(NotFound):
    """No such batch."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"No batch found with id '{batch_id}'.")
        self.batch_id = batch_id


class UploadNotFound(NotFound):
    """No such upload."""

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"No such Upload object: {upload_id}")
        self.upload_id = upload_id


class WebhookEndpointNotFound(NotFound):
    """No such webhook endpoint."""

    def __init__(self, endpoint_id: str) -> None:
        super().__init__(f"No webhook endpoint found with id '{endpoint_id}'.")
        self.endpoint_id = endpoint_id


class ModelNotFound(NotFound):
    """The model server does not know this model."""

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{model}' does not exist or you do not have access to it.")
        self.model = model


class BatchNotCancellable(OvernightError):
    """The batch has ended, or is writing its files."""

    def __init__(self, status: str) -> None:
        super().__init__(f"Cannot cancel a batch with status '{status}'.")
        self.status = status


class UploadHasEnded(OvernightError):
    """The upload is completed, cancelled or expired, so that what is wished for cannot be."""

    def __init__(self, wish: str, status: str) -> None:
        super().__init__(f"Cannot {wish} an upload with status '{status}'.")
        self.status = status


class TooManyWebhookEndpoints(OvernightError):
    """The project has as many webhook endpoints as it may."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"A project can have at most {limit} webhook endpoints.")
        self.limit = limit


class ReceiverUnreachable(OvernightError):
    """A webhook's receiver gave no answer. `reason` is for the log, not for who asked."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The webhook endpoint did not answer: {reason}")
        self.reason = reason


class BatchNotChangeable(OvernightError):
    """What is wished for cannot be done to a batch in this status."""

    def __init__(self, wish: str, status: str) -> None:
        super().__init__(f"Cannot {wish} a batch with status '{status}'.")
        self.status = status


class NothingToRetry(OvernightError):
    """A batch that has ended, and has no line in an error file."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"Batch '{batch_id}' has no failed requests to retry.")
        self.batch_id = batch_id


class IdempotencyKeyReused(OvernightError):
    """A key that has come before, with another request."""

    def __init__(self) -> None:
        super().__init__(
            "This 'Idempotency-Key' has been used before, with another request. Please use a new key"
            " for a new request, and the same key only to send the same request again."
        )


class InvalidParameter(OvernightError):
    """One parameter of a request is wrong; worded by OpenAI's measured grammar."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class FileRefused(OvernightError):
    """An upload or a download that the file's nature forbids."""


class FileTooLarge(FileRefused):
    """More bytes than a file of this purpose may have."""

    def __init__(self, limit_bytes: int, *, param: str | None = None) -> None:
        super().__init__("File is too large.")
        self.limit_bytes = limit_bytes
        self.param = param


class NotJsonLines(FileRefused):
    """A batch file whose first line is not a JSON object, or that has no line at all."""

    def __init__(self) -> None:
        super().__init__("Invalid file format for Batch API. Must be .jsonl")


class StorageLimitReached(FileRefused):
    """The project would store more bytes than it may."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"File is too large: the project would store more than its limit of {limit_bytes:,}"
            " bytes. Please delete files that are no longer needed."
        )
        self.limit_bytes = limit_bytes


class BatchRateReached(OvernightError):
    """The project has created as many batches in the last hour as it may."""

    def __init__(self, limit: int, *, wait_seconds: float) -> None:
        self.limit = limit
        self.retry_after_seconds = max(1, math.ceil(wait_seconds))
        super().__init__(
            f"Rate limit reached for batches in organization {ORGANIZATION_ID} on batches per hour:"
            f" Limit {limit}, Used {limit}, Requested 1. Please try again in"
            f" {self.retry_after_seconds}s."
        )


class TooManyUploads(OvernightError):
    """The project has as many uploads under way as it may."""

    retry_after_seconds = 1

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"Rate limit reached for uploads: Limit {limit} at once, Used {limit}, Requested 1. Please"
            " try again when one of them has ended."
        )


class BatchHopeless(OvernightError):
    """What has to be done before this batch takes longer than its window, at the rate seen lately."""

    def __init__(
        self, model: str, *, lines: int, lines_per_second: float, window: timedelta
    ) -> None:
        needed_seconds = lines / lines_per_second
        self.retry_after_seconds = max(1, math.ceil(needed_seconds - window.total_seconds()))
        super().__init__(
            f"Rate limit reached for {model} in organization {ORGANIZATION_ID} on enqueued requests:"
            f" {lines:,} requests end before this batch, which at {lines_per_second:.3g} a second takes"
            f" {math.ceil(needed_seconds):,}s, and its window is {window.total_seconds():,.0f}s. Please"
            f" try again in {self.retry_after_seconds}s."
        )


class EnqueuedLimitReached(OvernightError):
    """The project's batches of one model would have more requests or prompt tokens than they may."""

    def __init__(self, what: Literal["request", "token"], limit: int, *, model: str | None) -> None:
        super().__init__(
            f"Enqueued {what} limit reached for {model or 'the default model'} in organization"
            f" {ORGANIZATION_ID}. Limit: {limit:,} enqueued {what}s. Please try again once some"
            " in_progress batches have been completed."
        )
        self.limit = limit


class PurposeNotReadable(FileRefused):
    """Content of this purpose may not be downloaded."""

    def __init__(self, purpose: str) -> None:
        super().__init__(f"Not allowed to download files of purpose: {purpose}")
        self.purpose = purpose


class InputUnreadable(OvernightError):
    """A stored file whose chunks are missing or cannot be decoded."""


class LeaseLost(OvernightError):
    """The lease lapsed and somebody else may hold it: the holder must stop and write nothing."""


class Unavailable(OvernightError):
    """Database, broker or model server do not answer just now; nothing was lost, try again."""

    def __init__(self, what: str) -> None:
        super().__init__(f"The {what} is not available right now. Please try again shortly.")
        self.what = what
