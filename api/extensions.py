"""What routes ask for by type on behalf of the extensions: a key, a filter, the body of a retry.

The routes are those of `api.routes.extensions`, and those of OpenAI's that take a key or a filter, too.
"""

import re
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from pydantic import TypeAdapter, ValidationError

from api.deps import SettingsDep
from api.grammar import expected_length, refusal_of, supported_values
from api.params import (
    BatchFilter,
    Metadata,
    RetryBatch,
    read_json,
    validate_body,
)
from models.errors import InvalidParameter
from models.lifecycle import BatchStatus
from models.lines import MAX_ECHO

_KEY_HEADER = "Idempotency-Key"
_MAX_KEY = 255
_VISIBLE = re.compile(r"[!-~]+", re.ASCII)
_PAIR = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_METADATA_RULES: TypeAdapter[Metadata] = TypeAdapter(Metadata)


async def _idempotency_key(
    request: Request,
    _: Annotated[
        str | None,
        Header(
            alias=_KEY_HEADER,
            description="Makes the request safe to repeat: 1 to 255 visible ASCII characters.",
        ),
    ] = None,
) -> str | None:
    keys = request.headers.getlist(_KEY_HEADER)
    if not keys:
        return None
    if len(keys) > 1:
        raise _bad_key("it is there more than once.", "invalid_value")
    [key] = keys
    if len(key) > _MAX_KEY:
        raise _bad_key(
            f"string too long. {expected_length(key, _MAX_KEY)}", "string_above_max_length"
        )
    if not _VISIBLE.fullmatch(key):
        raise _bad_key("expected 1 to 255 visible ASCII characters.", "invalid_value")
    return key


def _bad_key(what: str, code: str) -> InvalidParameter:
    return InvalidParameter(f"Invalid '{_KEY_HEADER}': {what}", param=_KEY_HEADER, code=code)


IdempotencyKeyDep = Annotated[str | None, Depends(_idempotency_key)]


async def _batch_filter(request: Request) -> BatchFilter:
    statuses: set[BatchStatus] = set()
    pairs: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name == "status":
            statuses.update(_status(word.strip()) for word in value.split(","))
        elif (match := _PAIR.fullmatch(name)) and pairs.setdefault(match[1], value) != value:
            param = name[:MAX_ECHO]
            message = f"Invalid '{param}': it is there more than once."
            raise InvalidParameter(message, param=param, code="invalid_value")
    try:
        _METADATA_RULES.validate_python(pairs)
    except ValidationError as error:
        raise refusal_of(error.errors(include_url=False)) from None
    return BatchFilter(frozenset(statuses), pairs)


def _status(word: str) -> BatchStatus:
    try:
        return BatchStatus(word)
    except ValueError:
        message = supported_values(word, list(BatchStatus))
        raise InvalidParameter(message, param="status", code="invalid_value") from None


BatchFilterDep = Annotated[BatchFilter, Depends(_batch_filter)]
BATCH_FILTER_PARAMETERS: dict[str, Any] = {
    "parameters": [
        {
            "name": "status",
            "in": "query",
            "required": False,
            "description": "Only batches in one of these statuses.",
            "style": "form",
            "explode": False,
            "schema": {
                "type": "array",
                "items": {"type": "string", "enum": [status.value for status in BatchStatus]},
            },
        },
        {
            "name": "metadata",
            "in": "query",
            "required": False,
            "description": "Only batches with all these pairs in their metadata.",
            "style": "deepObject",
            "explode": True,
            "schema": {
                "type": "object",
                "additionalProperties": {"type": "string", "maxLength": 512},
                "maxProperties": 16,
            },
        },
    ]
}


async def _retry_batch_body(request: Request, settings: SettingsDep) -> RetryBatch:
    return validate_body(
        RetryBatch,
        await read_json(request),
        refuse_unknown=settings.unknown_parameters == "refuse",
        windows=settings.windows(),
    )


RetryBatchBody = Annotated[RetryBatch, Depends(_retry_batch_body)]
