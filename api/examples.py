"""What the OpenAPI document shows as examples: of requests, of answers, of refusals.

A test holds each against the schema that it is an example of.
"""

from collections.abc import Mapping
from typing import Any

_FILE_ID = "file-WSWT79PMeoPcEJ3trFKmpQ"
_OUTPUT_ID = "file-8UnZxZpA5dWVSQ01xr3v3n"
_BATCH_ID = "batch_6abc00d919e081908a2139a6f0445973"
_UPLOAD_ID = "upload_6abc00d919e08190"
_PART_ID = "part_6abc00d919e08190"
_ENDPOINT_ID = "whe_6abc00d919e081908a2139a6f0445973"
_CREATED = 1_790_705_880

_FILE: dict[str, Any] = {
    "object": "file",
    "id": _FILE_ID,
    "purpose": "batch",
    "filename": "requests.jsonl",
    "bytes": 123_456,
    "created_at": _CREATED,
    "expires_at": _CREATED + 2_592_000,
    "status": "processed",
    "status_details": None,
}
_COUNTS = {"total": 100, "completed": 98, "failed": 2}
_USAGE = {
    "input_tokens": 2500,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 12_000,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 14_500,
}
_BATCH: dict[str, Any] = {
    "id": _BATCH_ID,
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "model": "gpt-4o-mini",
    "errors": None,
    "input_file_id": _FILE_ID,
    "completion_window": "24h",
    "status": "completed",
    "output_file_id": _OUTPUT_ID,
    "error_file_id": "file-nDmGqwpA5dWVSQ01xr3v3n",
    "created_at": _CREATED,
    "in_progress_at": _CREATED + 1,
    "expires_at": _CREATED + 86_400,
    "finalizing_at": _CREATED + 60,
    "completed_at": _CREATED + 61,
    "failed_at": None,
    "expired_at": None,
    "cancelling_at": None,
    "cancelled_at": None,
    "request_counts": _COUNTS,
    "usage": _USAGE,
    "metadata": {"job": "nightly"},
}
_UPLOAD: dict[str, Any] = {
    "id": _UPLOAD_ID,
    "object": "upload",
    "bytes": 123_456,
    "created_at": _CREATED,
    "filename": "requests.jsonl",
    "purpose": "batch",
    "status": "pending",
    "expires_at": _CREATED + 3600,
    "file": None,
}
_WEBHOOK_ENDPOINT: dict[str, Any] = {
    "id": _ENDPOINT_ID,
    "object": "webhook_endpoint",
    "created_at": _CREATED,
    "updated_at": _CREATED,
    "name": "nightly",
    "url": "https://example.com/hook",
    "event_types": ["batch.completed", "batch.failed"],
    "signing_secret_hint": "whsec_****Tg==",
}
_MODEL: dict[str, Any] = {
    "id": "gpt-4o-mini",
    "object": "model",
    "created": 1_686_935_002,
    "owned_by": "openai",
    "shutdown_date": None,
}


def _page(item: Mapping[str, Any]) -> dict[str, Any]:
    found = {"object": "list", "data": [item], "first_id": item["id"], "last_id": item["id"]}
    return found | {"has_more": False}


ANSWERS: Mapping[str, Any] = {
    "File": _FILE,
    "FileList": _page(_FILE),
    "FileDeleted": {"id": _FILE_ID, "object": "file", "deleted": True},
    "Batch": _BATCH,
    "BatchList": _page(_BATCH),
    "BatchProgress": {
        "object": "batch.progress",
        "batch_id": _BATCH_ID,
        "status": "in_progress",
        "paused": False,
        "request_counts": {"total": 100, "completed": 40, "failed": 0},
        "in_flight": 16,
        "retries": 1,
        "usage": _USAGE,
        "lines_per_second": 2.5,
        "expires_at": _CREATED + 86_400,
        "seconds_left": 86_340,
        "forecast_end_at": _CREATED + 84,
        "forecast_in_window": True,
    },
    "BatchHistory": {
        "object": "batch.history",
        "batch_id": _BATCH_ID,
        "begins_at": _CREATED + 1.25,
        "interval_seconds": 1.0,
        "points": [
            {
                "completed": 21,
                "failed": 1,
                "latency_p50": 0.61,
                "latency_p95": 1.45,
                "in_flight": 15.8,
            }
        ],
        "slowest": [{"line": 17, "seconds": 2.113, "succeeded": True}],
    },
    "BatchFailures": {
        "object": "batch.failures",
        "batch_id": _BATCH_ID,
        "lines_read": 1,
        "is_whole": True,
        "data": [
            {
                "code": "context_length_exceeded",
                "status_code": 400,
                "message": "This model's maximum context length is 8192 tokens.",
                "count": 1,
                "examples": [{"line": 7, "custom_id": "request-7"}],
            }
        ],
    },
    "BatchLine": {
        "object": "batch.line",
        "batch_id": _BATCH_ID,
        "line": 1,
        "request": '{"custom_id": "request-1", "method": "POST", "url": "/v1/embeddings"}',
        "request_is_cut": False,
        "answer": None,
        "answer_is_cut": False,
        "succeeded": None,
        "seconds": None,
    },
    "WorkerList": {
        "object": "list",
        "data": [
            {
                "name": "host-1:4711:0b7c2f9e",
                "kind": "run",
                "in_flight": 64,
                "room": 512,
                "shards": 3,
                "up_seconds": 5120.4,
                "is_draining": False,
            }
        ],
        "upstreams": [
            {
                "server": "default",
                "model": "",
                "workers": 1,
                "in_flight": 64,
                "waiting": 700,
                "limit": 64,
                "breaker": "closed",
                "paused_seconds": 0.0,
                "succeeded": 128_000,
                "refused": 12,
                "failed": 3,
                "mean_latency_seconds": 0.82,
            }
        ],
    },
    "Upload": _UPLOAD,
    "UploadPart": {
        "id": _PART_ID,
        "object": "upload.part",
        "created_at": _CREATED,
        "upload_id": _UPLOAD_ID,
    },
    "Model": _MODEL,
    "ModelList": {"object": "list", "data": [_MODEL]},
    "WebhookEndpoint": _WEBHOOK_ENDPOINT,
    "WebhookEndpointWithSecret": _WEBHOOK_ENDPOINT
    | {"signing_secret": "whsec_bWFkZSBvZiByYW5kb20gYnl0ZXMgb25jZSBhbmQgZm9yIGFsbCE5Tg=="},
    "WebhookEndpointList": _page(_WEBHOOK_ENDPOINT),
    "WebhookEndpointDeleted": {
        "id": _ENDPOINT_ID,
        "object": "webhook_endpoint.deleted",
        "deleted": True,
    },
    "WebhookEndpointTest": {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": _ENDPOINT_ID,
        "event_type": "batch.completed",
        "status_code": 200,
        "success": True,
    },
    "WebhookEventTypeList": {
        "object": "list",
        "data": ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"],
    },
    "Readiness": {
        "status": "ready",
        "database": "ok",
        "broker": "ok",
        "workers": "ok",
        "control_workers": "ok",
        "run_workers": "ok",
        "sweep": "ok",
    },
}
"""By the name of the answer's schema."""

_LINE = (
    '{"id": "batch_req_6abc0161bfb08190b575e5615b7b273d", "custom_id": "request-1",'
    ' "response": {"status_code": 200, "request_id": "5f0fcb70-15df-4036-92bf-e465514e4eef",'
    ' "body": {"object": "chat.completion"}}, "error": null}\n'
)
CONTENTS: Mapping[str, Any] = {
    "get_file_content": _LINE,
    "get_batch_output": _LINE,
    "get_batch_errors": _LINE,
    "healthz": {"status": "ok"},
    "stream_events": "event: hello\ndata: {}\n\n",
}
"""Answers that have no schema of their own, by the name of the route."""

REQUESTS: Mapping[str, Any] = {
    "upload_file": {"file": '{"custom_id": "request-1"}\n', "purpose": "batch"},
    "create_upload": {
        "filename": "requests.jsonl",
        "purpose": "batch",
        "bytes": 123_456,
        "mime_type": "application/jsonl",
    },
    "add_upload_part": {"data": '{"custom_id": "request-1"}\n'},
    "complete_upload": {"part_ids": [_PART_ID]},
    "create_batch": {
        "input_file_id": _FILE_ID,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"job": "nightly"},
    },
    "retry_batch": {"completion_window": "24h"},
    "create_webhook_endpoint": {
        "name": "nightly",
        "url": "https://example.com/hook",
        "event_types": ["batch.completed", "batch.failed"],
    },
    "update_webhook_endpoint": {"event_types": ["batch.completed"]},
    "rotate_webhook_secret": {"keep_old_secret_active_for_24_hours": True},
    "test_webhook_endpoint": {"event_type": "batch.completed"},
}
"""Bodies, by the name of the route."""

PARAMETERS: Mapping[str, tuple[str, Any]] = {
    "file_id": ("The id of a file.", _FILE_ID),
    "batch_id": ("The id of a batch.", _BATCH_ID),
    "upload_id": ("The id of an upload.", _UPLOAD_ID),
    "webhook_endpoint_id": ("The id of a webhook endpoint.", _ENDPOINT_ID),
    "model": ("The name of a model; it may hold slashes.", "gpt-4o-mini"),
    "after": ("The id of an object: the page begins with the one that follows it.", None),
    "limit": ("The largest number of objects in the page.", 20),
    "order": ("By the time of creation.", "desc"),
    "purpose": ("Only files of this purpose.", "batch"),
    "offset": ("So many lines at the beginning are left out, while the batch runs.", 0),
    "line": ("The number of a line of the input, from 1.", 1),
    "status": ("Only batches in one of these statuses.", ["completed"]),
    "metadata": ("Only batches with all these pairs in their metadata.", {"job": "nightly"}),
    "Idempotency-Key": ("Makes the request safe to repeat.", "nightly-2026-11-23"),
}
"""What a parameter is, and an example of it (none: it depends on the object), by its name."""


def _refusal(
    message: str,
    *,
    type_: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


REFUSALS: Mapping[int, tuple[str, Any]] = {
    403: (
        "Only keys of the operator's project may.",
        _refusal(
            "This is only for API keys of the project 'default', the operator's.",
            code="operator_only",
        ),
    ),
    400: (
        "The request is not right; the message says what is not.",
        _refusal(
            "Missing required parameter: 'input_file_id'.",
            param="input_file_id",
            code="missing_required_parameter",
        ),
    ),
    401: (
        "No key, or a wrong one.",
        _refusal(
            "Incorrect API key provided: sk-inval****tage. You can find your API key at"
            " https://platform.openai.com/account/api-keys.",
            code="invalid_api_key",
        ),
    ),
    404: (
        "There is no such object, or it belongs to another project.",
        _refusal("No such File object: file-abc123", param="id"),
    ),
    408: (
        "The body did not arrive.",
        _refusal("The request's body did not arrive: 60 s of silence."),
    ),
    409: (
        "The object is not, or no more, in a state for this. Do not try again.",
        _refusal("Cannot cancel a batch with status 'completed'."),
    ),
    413: (
        "The body is larger than any of this route.",
        _refusal("The body is larger than 1048576 bytes."),
    ),
    416: (
        "The range lies outside of the file.",
        _refusal("The requested range lies outside of the file's 123456 bytes."),
    ),
    429: (
        "The project has reached a limit; `retry-after` says when to try again.",
        _refusal(
            "Rate limit reached for batches in organization org-overnight on batches per hour:"
            " Limit 2000, Used 2000, Requested 1. Please try again in 17s.",
            type_="requests",
            code="rate_limit_exceeded",
        ),
    ),
    500: (
        "A fault of this service.",
        _refusal(
            "The server had an error while processing your request. Sorry about that!",
            type_="server_error",
        ),
    ),
    503: (
        "A part of this service is away; try again.",
        _refusal(
            "The database is not available right now. Please try again shortly.",
            type_="server_error",
        ),
    ),
}
"""What a status means, and an example of its envelope."""
