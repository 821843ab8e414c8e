"""Fact 11.8: objects of another project are not found. Needs a second key."""

import json
import re
from typing import Any

from tests.conformance.kit.case import case
from tests.conformance.kit.cases.uploads import create
from tests.conformance.kit.expect import NotApplicable, ok, same
from tests.conformance.kit.server import ids
from tests.conformance.kit.subject import Subject

_FILES = [("GET", "files/ID"), ("DELETE", "files/ID"), ("GET", "files/ID/content")]
_BATCHES = [("GET", "batches/ID"), ("POST", "batches/ID/cancel")]
_UPLOADS = [
    ("POST", "uploads/ID/cancel"),
    ("POST", "uploads/ID/complete"),
    ("POST", "uploads/ID/parts"),
]
_HOOKS = [
    ("GET", "webhook_endpoints/ID"),
    ("POST", "webhook_endpoints/ID"),
    ("DELETE", "webhook_endpoints/ID"),
    ("POST", "webhook_endpoints/ID/rotate_secret"),
    ("POST", "webhook_endpoints/ID/test"),
]


def _require_two_keys(server: Subject) -> None:
    if server.other_api_key is None:
        message = "API_KEY_2, the key of another project, is not set"
        raise NotApplicable(message)


def _new_id(server: Subject, path: str) -> str:
    kind = path.partition("/")[0]
    if kind == "files":
        return str(server.upload_lines(server.line())["id"])
    if kind == "batches":
        return str(server.create()["id"])
    if kind == "uploads":
        return str(create(server, 100)["id"])
    body = {"name": "kit", "url": "https://example.com/hook", "event_types": ["batch.completed"]}
    return str(ok(server.post("webhook_endpoints", body))["id"])


@case(
    "11.8",
    "{method} /{path} of another project",
    rows=[
        {"method": method, "path": path} for method, path in _FILES + _BATCHES + _UPLOADS + _HOOKS
    ],
)
def not_found(server: Subject, method: str, path: str) -> None:
    _require_two_keys(server)
    own = _new_id(server, path)
    kind = re.match("[a-z]+[-_]", own)
    assert kind is not None, f"the id {own} does not begin with its kind"
    never = kind[0].ljust(len(own), "0")
    bodies: dict[str, dict[str, Any]] = {
        "uploads/ID/complete": {"json": {"part_ids": ["part_none"]}},
        "uploads/ID/parts": {"files": {"data": ("upload", b"x")}},
        "webhook_endpoints/ID": {"json": {"name": "mine"}} if method == "POST" else {},
        "webhook_endpoints/ID/test": {"json": {"event_type": "batch.completed"}},
    }
    body = bodies.get(path, {})
    answers = [
        server.other.request(method, path.replace("ID", one), **body) for one in (own, never)
    ]
    same([answer.status_code for answer in answers], [404, 404], "the statuses")
    texts = [
        json.dumps(answer.json()).replace(one, "ID")
        for answer, one in zip(answers, (own, never), strict=True)
    ]
    same(texts[0], texts[1], "the answer")


@case(
    "11.8",
    "another project's objects are in no list: /{path}",
    rows=[{"path": p} for p in ("files", "batches", "webhook_endpoints")],
)
def in_no_list(server: Subject, path: str) -> None:
    _require_two_keys(server)
    own = _new_id(server, path)
    assert own not in ids(ok(server.other.get(path, params={"limit": 100}))["data"]), "it is there"
    response = server.other.get(path, params={"after": own})
    same(response.status_code, 400, "the status of an after of another project")


@case("11.8", "another project's file is no input")
def no_input(server: Subject) -> None:
    _require_two_keys(server)
    file = server.upload_lines(server.line())
    batch = ok(server.other.post("batches", json=server.batch_body(file["id"])))
    for _ in range(600):
        shown = ok(server.other.get(f"batches/{batch['id']}"))
        if shown["status"] not in {"validating", "in_progress", "finalizing"}:
            break
    same(shown["status"], "failed", "the status")
    [error] = shown["errors"]["data"]
    same((error["code"], error["param"], error["line"]), ("invalid_request", "file_id", None))
