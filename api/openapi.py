"""The bodies that are read by hand (in pieces; in strict JSON), as OpenAPI is told about them.

Routes name them; `api.document` adds what else the document has.
"""

from typing import Any

from pydantic import BaseModel

from api.params import (
    PURPOSES,
    CompleteUpload,
    CreateBatch,
    CreateUpload,
    CreateWebhookEndpoint,
    ExpiresAfter,
    RetryBatch,
    RotateWebhookSecret,
    UpdateWebhookEndpoint,
    WebhookTest,
)


def _required_body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _optional_body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": False, "content": {media_type: {"schema": schema}}}}


def _inline(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def replace(node: Any) -> Any:
        if isinstance(node, list):
            return [replace(entry) for entry in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return replace(parts[node["$ref"].rpartition("/")[2]])
        return {key: replace(value) for key, value in node.items()}

    inlined: dict[str, Any] = replace(schema)
    return inlined


_EXPIRY = _inline(ExpiresAfter)["properties"]

CREATE_BATCH_BODY = _required_body("application/json", _inline(CreateBatch))
CREATE_WEBHOOK_ENDPOINT_BODY = _required_body("application/json", _inline(CreateWebhookEndpoint))
UPDATE_WEBHOOK_ENDPOINT_BODY = _optional_body("application/json", _inline(UpdateWebhookEndpoint))
ROTATE_WEBHOOK_SECRET_BODY = _optional_body("application/json", _inline(RotateWebhookSecret))
WEBHOOK_TEST_BODY = _required_body("application/json", _inline(WebhookTest))
CREATE_UPLOAD_BODY = _required_body("application/json", _inline(CreateUpload))
COMPLETE_UPLOAD_BODY = _required_body("application/json", _inline(CompleteUpload))
PART_FORM = _required_body(
    "multipart/form-data",
    {
        "type": "object",
        "additionalProperties": False,
        "required": ["data"],
        "properties": {"data": {"type": "string", "format": "binary"}},
    },
)
RETRY_BATCH_BODY = {
    "requestBody": {
        "required": False,
        "content": {"application/json": {"schema": _inline(RetryBatch)}},
    }
}
UPLOAD_FORM = _required_body(
    "multipart/form-data",
    {
        "type": "object",
        "additionalProperties": False,
        "required": ["file", "purpose"],
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "purpose": {"type": "string", "enum": list(PURPOSES)},
            "expires_after[anchor]": _EXPIRY["anchor"],
            "expires_after[seconds]": _EXPIRY["seconds"],
        },
    },
)
