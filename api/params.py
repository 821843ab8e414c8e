"""What requests may carry: the bodies and queries, and the one way to read a body.

Promises: a body is bounded, and is JSON in the strict sense (no NaN, no lone surrogates); whatever is
wrong with it is refused in OpenAI's words (`api.grammar`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from operator import getitem
from typing import Annotated, Any, Literal, TypeVar

import orjson
from fastapi import Query, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from starlette.exceptions import HTTPException

from api.grammar import expected_length, refusal_of, refused, supported_values, unknown_keys
from api.windows import Windows
from models.errors import InvalidParameter
from models.lifecycle import BatchStatus
from models.lines import MAX_ECHO, Endpoint, invalid_type
from models.receiver import MAX_URL
from models.webhook import EventType

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
MAX_BODY_BYTES = 1024 * 1024
_MAX_NAME = 256
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512
_MD5 = re.compile(r"[0-9a-fA-F]{32}", re.ASCII)


def _check_metadata(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, dict):
        message = invalid_type("metadata", "an object", value)
        raise refused(message, param="metadata", code="invalid_type")
    if len(value) > _MAX_PAIRS:
        message = (
            "Invalid 'metadata': too many properties. Expected an object with at most"
            f" {_MAX_PAIRS} properties, but got an object with {len(value)} properties instead."
        )
        raise refused(message, param="metadata", code="object_above_max_properties")
    for key, text in value.items():
        _check_pair(key, text)
    return value


def _check_pair(key: str, text: object) -> None:
    shown = key[:MAX_ECHO]
    param = f"metadata.{shown}"
    if len(key) > _MAX_KEY:
        message = (
            f"Invalid property name in 'metadata': '{shown}' is too long."
            f" {expected_length(key, _MAX_KEY)}"
        )
        raise refused(message, param=param, code="property_name_above_max_length")
    if not isinstance(text, str):
        message = invalid_type(param, "a string", text)
        raise refused(message, param=param, code="invalid_type")
    if len(text) > _MAX_VALUE:
        message = f"Invalid '{param}': string too long. {expected_length(text, _MAX_VALUE)}"
        raise refused(message, param=param, code="string_above_max_length")


def _check_window(value: Any, info: ValidationInfo) -> Any:
    allowed: Mapping[str, timedelta] = (info.context or {}).get("windows", {"24h": ...})
    if isinstance(value, str) and value not in allowed:
        message = (
            allowed.refusal_of(value)
            if isinstance(allowed, Windows)
            else supported_values(value, list(allowed))
        )
        raise refused(message, param="completion_window", code="invalid_value")
    return value


def _check_storable(value: Any) -> Any:
    # Postgres has no NUL in a text. No file has such an id either.
    if isinstance(value, str) and "\0" in value:
        message = "Invalid 'input_file_id': it contains a NUL character, and no file id does."
        raise refused(message, param="input_file_id", code="invalid_value")
    return value


def _check_purpose(value: Any) -> Any:
    if isinstance(value, str) and value not in PURPOSES:
        message = supported_values(value, PURPOSES)
        raise refused(message, param="purpose", code="invalid_value")
    return value


def _check_mime_type(value: Any) -> Any:
    # Postgres has no NUL in a text.
    if isinstance(value, str) and "\0" in value:
        message = "Invalid 'mime_type': it contains a NUL character."
        raise refused(message, param="mime_type", code="invalid_value")
    return value


def _check_part_ids(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if not value:
        message = (
            "Invalid 'part_ids': empty array. Expected an array with minimum length 1, but got an"
            " empty array instead."
        )
        raise refused(message, param="part_ids", code="empty_array")
    seen: set[str] = set()
    for number, part_id in enumerate(value):
        param = f"part_ids[{number}]"
        if not isinstance(part_id, str):
            message = invalid_type(param, "a string", part_id)
            raise refused(message, param=param, code="invalid_type")
        if part_id in seen:
            message = f"Invalid '{param}': the part '{part_id[:MAX_ECHO]}' is there more than once."
            raise refused(message, param=param, code="invalid_value")
        seen.add(part_id)
    return value


def _check_md5(value: Any) -> Any:
    if isinstance(value, str) and _MD5.fullmatch(value) is None:
        message = "Invalid 'md5': expected 32 hexadecimal digits."
        raise refused(message, param="md5", code="invalid_value")
    return value


Metadata = Annotated[
    dict[str, str] | None,
    BeforeValidator(_check_metadata),
    Field(
        description="At most 16 pairs; keys of at most 64, values of at most 512 characters.",
        json_schema_extra={
            "maxProperties": _MAX_PAIRS,
            "propertyNames": {"maxLength": _MAX_KEY},
            "additionalProperties": {"type": "string", "maxLength": _MAX_VALUE},
        },
    ),
]


def _check_name(value: Any) -> Any:
    if isinstance(value, str) and "\0" in value:
        message = "Invalid 'name': it contains a NUL character."
        raise refused(message, param="name", code="invalid_value")
    return value


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


EndpointName = Annotated[
    str, Field(min_length=1, max_length=_MAX_NAME), BeforeValidator(_check_name)
]
EndpointUrl = Annotated[str, Field(min_length=1, max_length=MAX_URL)]
EventTypes = Annotated[list[EventType], Field(min_length=1)]


class Body(BaseModel):
    """A JSON body: unknown keys are faults, and no type is converted into another."""

    model_config = ConfigDict(extra="forbid", strict=True)


BodyT = TypeVar("BodyT", bound=Body)


class ExpiresAfter(Body):
    """How long a file lives, counted from its creation."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


class CreateBatch(Body):
    """The body of POST /v1/batches."""

    input_file_id: Annotated[str, BeforeValidator(_check_storable)] = Field(max_length=256)
    # Lax for this field alone: a strict enum takes no string.
    endpoint: Annotated[Endpoint, Field(strict=False)]
    completion_window: Annotated[str, BeforeValidator(_check_window)]
    metadata: Metadata = None
    output_expires_after: ExpiresAfter | None = None


class RetryBatch(Body):
    """The body of POST /v1/batches/{id}/retry: what is not there is as it was in the batch."""

    completion_window: Annotated[str | None, BeforeValidator(_check_window)] = None
    metadata: Metadata = None
    output_expires_after: ExpiresAfter | None = None


class CreateWebhookEndpoint(Body):
    """The body of POST /v1/webhook_endpoints."""

    name: EndpointName
    url: EndpointUrl
    event_types: EventTypes


class UpdateWebhookEndpoint(Body):
    """The body of POST /v1/webhook_endpoints/{id}: what is not there stays as it is."""

    # Never read: `model_dump(exclude_unset=True)` leaves them out.
    name: EndpointName = Field(default="", json_schema_extra=_without_default)
    url: EndpointUrl = Field(default="", json_schema_extra=_without_default)
    event_types: EventTypes = Field(default_factory=list)


class RotateWebhookSecret(Body):
    """The body of POST /v1/webhook_endpoints/{id}/rotate_secret."""

    keep_old_secret_active_for_24_hours: bool = False


class WebhookTest(Body):
    """The body of POST /v1/webhook_endpoints/{id}/test."""

    event_type: EventType


class CreateUpload(Body):
    """The body of POST /v1/uploads."""

    filename: str
    purpose: Annotated[
        str, BeforeValidator(_check_purpose), Field(json_schema_extra={"enum": list(PURPOSES)})
    ]
    # The limit is a setting, and lower for some purposes; what the document shows is its default.
    bytes: int = Field(ge=1, json_schema_extra={"maximum": 8 * 1024**3})
    mime_type: Annotated[str, BeforeValidator(_check_mime_type)] = Field(max_length=256)
    expires_after: ExpiresAfter | None = None


class CompleteUpload(Body):
    """The body of POST /v1/uploads/{upload_id}/complete."""

    part_ids: Annotated[
        list[str],
        BeforeValidator(_check_part_ids),
        Field(
            description="The parts in the order of their bytes.", json_schema_extra={"minItems": 1}
        ),
    ]
    md5: Annotated[
        str | None,
        BeforeValidator(_check_md5),
        Field(description="The checksum of all bytes, in hexadecimal digits."),
    ] = None


class ListBatches(BaseModel):
    """The query of GET /v1/batches."""

    after: str | None = None
    limit: int = Field(default=20, ge=0, le=100)


@dataclass(frozen=True, slots=True)
class BatchFilter:
    """Which batches a list holds: those in one of these statuses (any, if none), with all these pairs."""

    statuses: frozenset[BatchStatus]
    metadata: Mapping[str, str]


class ListFiles(BaseModel):
    """The query of GET /v1/files."""

    purpose: str | None = None
    after: str | None = None
    limit: int = Field(default=10_000, ge=0, le=10_000)
    order: Literal["asc", "desc"] = "desc"


class ListWebhookEndpoints(BaseModel):
    """The query of GET /v1/webhook_endpoints."""

    after: str | None = None
    limit: int = Field(default=20, ge=0, le=100)


ListWebhookEndpointsQuery = Annotated[ListWebhookEndpoints, Query()]
ListBatchesQuery = Annotated[ListBatches, Query()]
ListFilesQuery = Annotated[ListFiles, Query()]


async def read_json(request: Request) -> object:
    """The body as JSON, whatever its content type says; nothing counts as an empty object.

    Raises:
        InvalidParameter: it is not JSON.
        HTTPException: it is larger than any body of this API.
    """
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > MAX_BODY_BYTES:
            raise HTTPException(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
    if not raw or raw.isspace():
        return {}
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        message = (
            "We could not parse the JSON body of your request. The API expects a JSON payload, but"
            " what was sent was not valid JSON."
        )
        raise InvalidParameter(message) from None


def validate_body(
    model: type[BodyT], body: object, *, refuse_unknown: bool, windows: Mapping[str, timedelta]
) -> BodyT:
    """The body as a model.

    Raises:
        InvalidParameter: the fault that is reported, of all that it has.
    """
    if not isinstance(body, dict):
        raise InvalidParameter(invalid_type("body", "an object", body), code="invalid_type")
    try:
        return model.model_validate(body, context={"windows": windows})
    except ValidationError as error:
        faults = error.errors(include_url=False)
    unknown = [] if refuse_unknown else unknown_keys(faults)
    if not unknown:
        raise refusal_of(faults)
    for *parents, name in unknown:
        reduce(getitem, parents, body).pop(name)
    return validate_body(model, body, refuse_unknown=True, windows=windows)
