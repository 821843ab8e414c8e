"""Batches: create, show, cancel (sections 1 to 3)."""

import threading
import time
from typing import Any

from openai.types import Batch

from tests.conformance.kit.case import case
from tests.conformance.kit.cases.lifecycle import run_of
from tests.conformance.kit.expect import (
    conforms,
    fits,
    is_time,
    not_in_set,
    ok,
    refused,
    same,
    ungrammatical,
)
from tests.conformance.kit.runs import METADATA
from tests.conformance.kit.server import CHAT, DAY_SECONDS, INPUTS
from tests.conformance.kit.subject import Subject

FIELDS = {
    "id",
    "object",
    "endpoint",
    "model",
    "errors",
    "input_file_id",
    "completion_window",
    "status",
    "output_file_id",
    "error_file_id",
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
    "request_counts",
    "usage",
    "metadata",
}
_ENDS = ("clean", "mixed", "hopeless", "failed", "no file", "cancelled", "cancelled early")
NOTHING = {"total": 0, "completed": 0, "failed": 0}


@case("1.9", "a creation answers a batch", also=["2.1", "2.15", "2.18", "3.29"])
def a_creation(server: Subject) -> None:
    batch = server.create()
    conforms(Batch, batch)
    same(batch["status"], "validating", "the status")
    same(batch["request_counts"], NOTHING, "request_counts")
    assert abs(batch["created_at"] - time.time()) < 300, "created_at is not now"


@case("1.9", "the SDK creates one")
def a_creation_by_the_sdk(server: Subject) -> None:
    batch = server.sdk.batches.create(
        input_file_id="file-none",
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"k": "v"},
    )
    same((batch.status, batch.metadata), ("validating", {"k": "v"}))


@case("1.11", "what is shown is what was created, plus what happened")
def a_batch_is_shown(server: Subject) -> None:
    created = server.create(metadata={"k": "v"})
    shown = server.batch(created["id"])
    for name in (
        "id",
        "object",
        "endpoint",
        "input_file_id",
        "completion_window",
        "created_at",
        "expires_at",
        "metadata",
    ):
        same(shown[name], created[name], name)


@case(
    "1.12",
    "a cancel with {title}",
    rows=[
        {"title": "no body", "options": {}},
        {
            "title": "an empty body of JSON",
            "options": {"headers": {"content-type": "application/json"}, "content": b""},
        },
        {"title": "{}", "options": {"json": {}}},
    ],
)
def a_cancel_needs_no_body(server: Subject, title: str, options: dict[str, Any]) -> None:
    del title
    batch = server.runs["cancelled"].ended()
    same(ok(server.http.post(f"batches/{batch['id']}/cancel", **options)), batch)


@case(
    "1.20", "POST /batches with {endpoint}", also=["2.10"], rows=[{"endpoint": e} for e in INPUTS]
)
def every_endpoint(server: Subject, endpoint: str) -> None:
    same(server.create(endpoint=endpoint)["endpoint"], endpoint, "the endpoint")


@case("1.21", "24h is accepted", also=["2.10", "2.16"])
def the_window(server: Subject) -> None:
    batch = server.create(completion_window="24h")
    same(batch["completion_window"], "24h", "the window")
    same(batch["expires_at"], batch["created_at"] + DAY_SECONDS, "expires_at")


@case("1.25", "sixteen pairs of the longest")
def the_largest_metadata(server: Subject) -> None:
    metadata = {f"{number:02}" + "k" * 62: "v" * 512 for number in range(16)}
    same(server.create(metadata=metadata)["metadata"], metadata, "metadata")


@case("1.26", "metadata {value!r}", also=["2.20"], rows=[{"value": None}, {"value": {}}])
def no_metadata(server: Subject, value: object) -> None:
    assert server.create(metadata=value)["metadata"] in (None, {}), "there is metadata"


@case("2.1", "every field, in a batch that is {name}", rows=[{"name": name} for name in _ENDS])
def every_field(server: Subject, name: str) -> None:
    for batch in (server.runs[name].created, server.runs[name].ended()):
        same(set(batch), FIELDS, "the set of fields")
        conforms(Batch, batch)


@case("2.9", "the form of the id")
def the_id_of_a_batch(server: Subject) -> None:
    fits(server.create()["id"], "batch_[0-9a-f]{32}", "the id")


@case("2.10", "what was asked for is repeated to the end")
def the_request_is_repeated(server: Subject) -> None:
    for batch in [*server.runs["clean"].seen, server.runs["clean"].ended()]:
        same((batch["endpoint"], batch["completion_window"]), (CHAT, "24h"))
        same(batch["input_file_id"], server.runs["clean"].created["input_file_id"])


@case("2.11", "null while validating")
def no_model_at_first(server: Subject) -> None:
    same(server.runs["clean"].created["model"], None, "the model")


@case("2.11", "the model of the lines")
def the_model_of_the_lines(server: Subject) -> None:
    same(server.runs["clean"].ended()["model"], server.model_for(CHAT), "the model")


@case("2.12", "errors of a batch that is {name}", rows=[{"name": n} for n in _ENDS])
def the_form_of_errors(server: Subject, name: str) -> None:
    errors = server.runs[name].ended()["errors"]
    if name not in {"failed", "no file"}:
        same(errors, None, "errors")
        return
    same((set(errors), errors["object"]), ({"object", "data"}, "list"), "errors")
    assert errors["data"], "there are none"
    for error in errors["data"]:
        same(set(error), {"code", "message", "param", "line"}, "the keys of an error")
        assert isinstance(error["code"], str), "the code is no text"
        assert isinstance(error["message"], str), "the message is no text"


@case("2.15", "whole seconds, in a batch that is {name}", rows=[{"name": n} for n in _ENDS])
def whole_seconds(server: Subject, name: str) -> None:
    batch = server.runs[name].ended()
    for field in FIELDS:
        if field.endswith("_at") and batch[field] is not None:
            is_time(batch[field], field)


@case("2.16", "a failed batch has an end, too")
def the_window_of_a_failed_batch(server: Subject) -> None:
    batch = server.runs["failed"].ended()
    same(batch["expires_at"], batch["created_at"] + DAY_SECONDS, "expires_at")


@case("2.20", "metadata is kept to the end")
def metadata_is_kept(server: Subject) -> None:
    same(server.runs["clean"].created["metadata"], METADATA, "metadata at first")
    same(server.runs["clean"].ended()["metadata"], METADATA, "metadata at the end")


@case("3.26", "the smallest creation lacks nothing")
def nothing_else_is_required(server: Subject) -> None:
    body = {"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h"}
    same(ok(server.post("batches", body))["metadata"], None, "metadata")


@case("3.26", "an empty body lacks a required field")
def an_empty_body(server: Subject) -> None:
    message = refused(
        server.post("batches", {}), 400, code="missing_required_parameter", param="input_file_id"
    )
    same(message, "Missing required parameter: 'input_file_id'.")


@case(
    "3.27",
    "endpoint {value}",
    rows=[
        {"value": v} for v in ("/v1/chat", "/chat/completions", "", "/v1/files", "/V1/EMBEDDINGS")
    ],
)
def an_unsupported_endpoint(server: Subject, value: str) -> None:
    response = server.post("batches", server.batch_body(endpoint=value))
    ungrammatical(response, not_in_set("endpoint", value, list(INPUTS)))


@case(
    "3.28",
    "window {value}",
    also=["1.21"],
    rows=[{"value": v} for v in ("48h", "1 day", "", "24H", "24h ")],
)
def an_unsupported_window(server: Subject, value: str) -> None:
    response = server.post("batches", server.batch_body(completion_window=value))
    like = f"Invalid value: '{value}'\\. Supported values are: .*'24h'.*"
    refused(response, 400, code="invalid_value", param="completion_window", like=like)


@case(
    "3.29",
    "an id of no file: {value}",
    rows=[{"value": v} for v in ("file-abc123", "x", "file-" + "A" * 22)],
)
def an_unknown_input_file(server: Subject, value: str) -> None:
    batch = server.create(value)
    same((batch["status"], batch["input_file_id"]), ("validating", value))


@case(
    "3.30",
    "{title} of {name}",
    rows=[
        {"title": title, "name": name}
        for title in ("GET", "cancel")
        for name in ("batch_" + "0" * 32, "x", "file-abc123")
    ],
)
def an_unknown_batch(server: Subject, title: str, name: str) -> None:
    cancel = f"batches/{name}/cancel"
    response = server.http.post(cancel) if title == "cancel" else server.http.get(f"batches/{name}")
    refused(response, 404, f"No batch found with id '{name}'.")


@case(
    "3.31",
    "a cancel of a batch that is {name}",
    also=["3.38"],
    rows=[{"name": n} for n in ("clean", "failed", "no file", "expired")],
)
def a_cancel_too_late(server: Subject, name: str) -> None:
    batch = run_of(server, name).ended()
    response = server.http.post(f"batches/{batch['id']}/cancel")
    refused(response, 409, f"Cannot cancel a batch with status '{batch['status']}'.")
    same(response.headers.get("x-should-retry"), "false", "x-should-retry")
    same(server.batch(batch["id"]), batch, "the batch afterwards")


@case(
    "3.32",
    "a second cancel of a batch that is {name}",
    rows=[{"name": n} for n in ("cancelled", "cancelled early")],
)
def a_second_cancel(server: Subject, name: str) -> None:
    batch = server.runs[name].ended()
    same(batch["status"], "cancelled", "the status")
    same(ok(server.http.post(f"batches/{batch['id']}/cancel")), batch, "the answer")


@case("3.32", "cancels at the same time")
def cancels_at_the_same_time(server: Subject) -> None:
    batch = server.create(server.upload_lines(server.line())["id"])
    statuses: list[int] = []

    def cancel() -> None:
        statuses.append(server.http.post(f"batches/{batch['id']}/cancel").status_code)

    threads = [threading.Thread(target=cancel) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = server.ended(batch["id"])
    wanted = {200} if ended["status"] == "cancelled" else {409}
    same(set(statuses), wanted, "the statuses")


@case("8.8", "a creation repeated makes two batches")
def a_repeated_creation(server: Subject) -> None:
    assert server.create()["id"] != server.create()["id"], "it is the same batch"


@case("8.9", "same key and body of {path}", rows=[{"path": "batches"}, {"path": "files"}])
def the_same_key(server: Subject, path: str) -> None:
    headers = {"idempotency-key": f"kit-{path}-{time.time_ns()}"}

    def create(text: str = "a") -> Any:
        if path == "batches":
            return server.post("batches", server.batch_body(metadata={"k": text}), headers=headers)
        return server.send_file(b'{"k": "%b"}' % text.encode(), headers=headers)

    first, second = ok(create()), ok(create())
    same(second["id"], first["id"], "the id of the second")
    other = create("b")
    same(other.status_code, 409, "the status for another body")
    same(other.headers.get("x-should-retry"), "false", "x-should-retry")


@case("11.7", "unknown keys are refused unless the operator lets them pass")
def unknown_keys(server: Subject) -> None:
    response = server.post("batches", server.batch_body(priority=1))
    refused(
        response, 400, "Unknown parameter: 'priority'.", code="unknown_parameter", param="priority"
    )


@case("9.10", "a batch takes no webhook URL")
def no_url_for_one_batch(server: Subject) -> None:
    response = server.post("batches", server.batch_body(webhook_url="https://example.com"))
    if response.status_code == 200:
        assert "webhook_url" not in ok(response), "it is in the answer"
    else:
        refused(response, 400, code="unknown_parameter", param="webhook_url")
