"""The OpenAPI document, completed: what FastAPI cannot know of a route.

Promises: every route says with which statuses it may refuse, each with the envelope and an example;
bodies, answers and parameters have examples. A route that is not in `REFUSED_WITH` is an error of a
test, not of a request.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from api.examples import ANSWERS, CONTENTS, PARAMETERS, REFUSALS, REQUESTS

TAGS: Sequence[Mapping[str, str]] = (
    {"name": "files", "description": "What batches read, and what they write."},
    {"name": "uploads", "description": "Large files, sent in parts."},
    {"name": "batches", "description": "Many requests, run within a window."},
    {"name": "extensions", "description": "What OpenAI's API does not have."},
    {"name": "models", "description": "The models of the model servers."},
    {"name": "webhooks", "description": "Being told of a batch's end."},
    {"name": "health", "description": "For who operates this service. No key is needed."},
)
_BODY = (400, 408, 413)
REFUSED_WITH: Mapping[str, Sequence[int]] = {
    "upload_file": (400, 408, 409, 429),
    "list_files": (400,),
    "get_file": (404,),
    "delete_file": (404,),
    "get_file_content": (400, 404, 416),
    "create_upload": _BODY,
    "add_upload_part": (400, 404, 408, 429),
    "complete_upload": (*_BODY, 404),
    "cancel_upload": (400, 404),
    "create_batch": (*_BODY, 409, 429),
    "list_batches": (400,),
    "get_batch": (404,),
    "cancel_batch": (404, 409),
    "pause_batch": (404, 409),
    "resume_batch": (404, 409),
    "retry_batch": (*_BODY, 404, 409, 429),
    "get_batch_progress": (404,),
    "get_batch_output": (400, 404),
    "get_batch_errors": (400, 404),
    "stream_events": (),
    "get_batch_history": (404,),
    "get_batch_failures": (404,),
    "get_batch_line": (400, 404),
    "list_workers": (403,),
    "list_models": (),
    "get_model": (404,),
    "create_webhook_endpoint": _BODY,
    "list_webhook_endpoints": (400,),
    "get_webhook_endpoint": (404,),
    "update_webhook_endpoint": (*_BODY, 404),
    "delete_webhook_endpoint": (404,),
    "rotate_webhook_secret": (*_BODY, 404),
    "test_webhook_endpoint": (*_BODY, 404),
    "list_webhook_event_types": (),
}
"""Statuses besides those that every route with a key may answer with."""

_ALWAYS = (401, 500, 503)
_JSON = "application/json"
_ENVELOPE = {"$ref": "#/components/schemas/ErrorEnvelope"}
_STAMPS = {
    "x-request-id": {
        "description": "Names this request in the service's log.",
        "schema": {"type": "string"},
    },
    "openai-version": {"schema": {"type": "string"}},
    "openai-processing-ms": {"schema": {"type": "string"}},
}
_CONTENT = {
    "application/octet-stream": {
        "schema": {"type": "string", "format": "binary"},
        "example": CONTENTS["get_file_content"],
    }
}
_CONTENT_ANSWERS = {
    "200": {"description": "The whole file.", "content": _CONTENT},
    "206": {"description": "The part that the `Range` header asks for.", "content": _CONTENT},
}
_RANGE = {
    "name": "Range",
    "in": "header",
    "required": False,
    "description": "One range of bytes; the whole file without it.",
    "schema": {"type": "string", "pattern": "^bytes=[0-9]{1,9}-$"},
    "example": "bytes=100-",
}


class DocumentedApi(FastAPI):
    """An application whose OpenAPI document is complete."""

    def openapi(self) -> dict[str, Any]:
        """The document; made once."""
        if self.openapi_schema is None:
            _complete(super().openapi())
        assert self.openapi_schema is not None  # noqa: S101  # the line above has made it
        return self.openapi_schema


def operation_id(route: APIRoute) -> str:
    """The name of a route's function: what generated clients call it."""
    return route.name


def own_version() -> str:
    """The version of this service; `unknown` where it runs without being installed."""
    try:
        return version("overnight")
    except PackageNotFoundError:
        return "unknown"


def _complete(document: dict[str, Any]) -> None:
    document["tags"] = list(TAGS)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            name = operation["operationId"]
            _complete_parameters(operation)
            _complete_body(operation, name)
            _complete_answers(operation, name, has_key=path.startswith("/v1/"))


def _complete_parameters(operation: dict[str, Any]) -> None:
    if operation["operationId"] == "get_file_content":
        operation["parameters"].append(_RANGE)
    for parameter in operation.get("parameters", []):
        description, example = PARAMETERS.get(parameter["name"], ("", None))
        parameter.setdefault("description", description)
        if example is not None:
            parameter.setdefault("example", example)
        schema = parameter["schema"]
        kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
        if len(kinds) == 1:
            # Nothing in a URL or a header is null.
            parameter["schema"] = kinds[0] | {k: v for k, v in schema.items() if k != "anyOf"}


def _complete_body(operation: dict[str, Any], name: str) -> None:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        if name in REQUESTS:
            content["example"] = REQUESTS[name]


def _complete_answers(operation: dict[str, Any], name: str, *, has_key: bool) -> None:
    answers = operation["responses"]
    for catch_all in ("4XX", "5XX"):
        answers.pop(catch_all, None)
    if name == "get_file_content":
        answers.update({status: dict(answer) for status, answer in _CONTENT_ANSWERS.items()})
    for answer in answers.values():
        for content in answer.get("content", {}).values():
            _, _, model = content.get("schema", {}).get("$ref", "").rpartition("/")
            example = ANSWERS.get(model, CONTENTS.get(name))
            if example is not None:
                content.setdefault("example", example)
    statuses = sorted({*_ALWAYS, *REFUSED_WITH.get(name, ())}) if has_key else (500,)
    for status in statuses:
        description, example = REFUSALS[status]
        answers[str(status)] = {
            "description": description,
            "content": {_JSON: {"schema": _ENVELOPE, "example": example}},
        }
    for status, answer in answers.items():
        headers: dict[str, Any] = dict(answer.get("headers", {})) | _STAMPS
        if status in {"429", "503"} and has_key:
            headers["retry-after"] = {"schema": {"type": "string"}}
        if status == "409":
            headers["x-should-retry"] = {"schema": {"type": "string"}}
        answer["headers"] = headers
