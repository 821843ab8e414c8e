"""Sections 6 and 10: output and error files, and what each endpoint's lines become."""

import json
from typing import Any

from openai.types import (
    CreateEmbeddingResponse,
    ImagesResponse,
    ModerationCreateResponse,
    Video,
)
from openai.types.chat import ChatCompletion
from openai.types.completion import Completion
from openai.types.responses import Response
from pydantic import BaseModel

from tests.conformance.kit.case import case
from tests.conformance.kit.cases.lifecycle import run_of
from tests.conformance.kit.expect import fits, ok, same
from tests.conformance.kit.runs import MANY, Run
from tests.conformance.kit.server import CHAT, json_lines
from tests.conformance.kit.subject import Subject

_TYPES: dict[str, type[BaseModel]] = {
    "/v1/responses": Response,
    CHAT: ChatCompletion,
    "/v1/embeddings": CreateEmbeddingResponse,
    "/v1/completions": Completion,
    "/v1/moderations": ModerationCreateResponse,
    "/v1/images/generations": ImagesResponse,
    "/v1/images/edits": ImagesResponse,
    "/v1/videos": Video,
}
_ENDPOINTS = [{"endpoint": endpoint} for endpoint in _TYPES]
_CUT_SHORT = [{"name": "cancelled"}, {"name": "expired"}]
_KEYS = {"id", "custom_id", "response", "error"}
EXPIRED = "This request could not be executed before the completion window expired."
CANCELLED = "This request was not executed because the batch was cancelled."


def _run(server: Subject, endpoint: str) -> Run:
    return server.runs["clean" if endpoint == CHAT else endpoint]


def _never_ran(server: Subject, name: str) -> list[dict[str, Any]]:
    return [line for line in run_of(server, name).errors() if line["response"] is None]


@case("6.1", "the {which} file", rows=[{"which": "output"}, {"which": "error"}])
def an_ordinary_file(server: Subject, which: str) -> None:
    batch = server.runs["mixed"].ended()
    file = ok(server.http.get(f"files/{batch[which + '_file_id']}"))
    same((file["purpose"], file["status"]), ("batch_output", "processed"))
    content = server.http.get(f"files/{file['id']}/content").content
    same(file["bytes"], len(content), "bytes")
    listed = ok(server.http.get("files", params={"purpose": "batch_output"}))["data"]
    assert file["id"] in [one["id"] for one in listed], "it is not in the list"


@case("6.1", "an output file can be deleted")
def an_output_can_be_deleted(server: Subject) -> None:
    batch = server.run(json_lines(server.line()))
    ok(server.http.delete(f"files/{batch['output_file_id']}"))
    same(server.batch(batch["id"]), batch, "the batch afterwards")


@case("6.2", "the names")
def the_names(server: Subject) -> None:
    batch = server.runs["mixed"].ended()
    for which in ("output", "error"):
        file = ok(server.http.get(f"files/{batch[which + '_file_id']}"))
        same(file["filename"], f"{batch['id']}_{which}.jsonl", "the filename")


@case("6.3", "UTF-8, an object a line, each line ended")
def the_form_of_the_files(server: Subject) -> None:
    batch = server.runs["mixed"].ended()
    for which in ("output", "error"):
        content = server.http.get(f"files/{batch[which + '_file_id']}/content").content
        assert content.endswith(b"\n"), "the last line has no end"
        for line in content.decode().split("\n")[:-1]:
            assert isinstance(json.loads(line), dict), "a line is no object"


@case(
    "6.4",
    "each line once: {name}",
    rows=[
        {"name": n}
        for n in ("clean", "mixed", "hopeless", "cancelled", "expired", "cancelled early")
    ],
)
def each_line_once(server: Subject, name: str) -> None:
    run = run_of(server, name)
    sent = [json.loads(line)["custom_id"] for line in run.lines.splitlines()]
    found = [line["custom_id"] for line in run.outputs() + run.errors()]
    # A batch that was cancelled before it was read has no lines at all.
    if found or run.ended()["request_counts"]["total"]:
        same(sorted(found), sorted(sent), "the custom ids")


@case("6.5", "2xx here, the rest there")
def sorted_by_status(server: Subject) -> None:
    run = server.runs["mixed"]
    same(
        {line["response"]["status_code"] // 100 for line in run.outputs()},
        {2},
        "in the output file",
    )
    assert 2 not in {line["response"]["status_code"] // 100 for line in run.errors()}, (
        "a 2xx is an error"
    )
    same({line["custom_id"] for line in run.errors()}, {"bad-0", "bad-1"}, "the error file")


@case("6.6", "no success, no output file")
def no_output_file(server: Subject) -> None:
    batch = server.runs["hopeless"].ended()
    same((batch["output_file_id"], batch["error_file_id"] is None), (None, False))


@case("6.7", "no failure, no error file")
def no_error_file(server: Subject) -> None:
    batch = server.runs["clean"].ended()
    same((batch["error_file_id"], batch["output_file_id"] is None), (None, False))


@case(
    "6.8",
    "both files of a batch that is {name} can be read",
    rows=[{"name": n} for n in ("mixed", "cancelled", "expired")],
)
def both_can_be_read(server: Subject, name: str) -> None:
    run = run_of(server, name)
    assert run.outputs(), "the output file is empty"
    assert run.errors(), "the error file is empty"


@case("6.8", "the file is there in the moment of the end")
def there_at_once(server: Subject) -> None:
    batch = server.run(json_lines(server.line()))
    assert server.lines(batch["output_file_id"]), "the output file is empty"


@case("6.10", "finished lines of a batch that is {name}", rows=_CUT_SHORT)
def finished_lines_are_kept(server: Subject, name: str) -> None:
    outputs = run_of(server, name).outputs()
    assert 0 < len(outputs) < MANY, f"there are {len(outputs)}"
    for line in outputs:
        same((line["response"]["status_code"], line["error"]), (200, None))


@case("6.11", "a line that succeeded")
def a_success(server: Subject) -> None:
    for line in server.runs["clean"].outputs():
        same(set(line), _KEYS, "the keys")
        same(set(line["response"]), {"status_code", "request_id", "body"}, "the response's keys")
        same((line["response"]["status_code"], line["error"]), (200, None))


@case("6.12", "a line that its endpoint refused")
def a_refusal(server: Subject) -> None:
    for line in server.runs["mixed"].errors():
        same(set(line), _KEYS, "the keys")
        same(line["error"], None, "error")
        same(line["response"]["status_code"], 400, "the status")
        envelope = line["response"]["body"]
        same(set(envelope["error"]), {"message", "type", "param", "code"}, "the envelope's keys")


@case("6.13", "a line that the window left over")
def left_over_by_the_window(server: Subject) -> None:
    lines = _never_ran(server, "expired")
    assert lines, "every line ran"
    wanted = {"code": "batch_expired", "message": EXPIRED}
    for line in lines:
        same(line["error"], wanted, "error")


@case("6.14", "a line that a cancel left over", also=["11.4"])
def left_over_by_a_cancel(server: Subject) -> None:
    lines = _never_ran(server, "cancelled")
    assert lines, "every line ran"
    for line in lines:
        same(line["error"], {"code": "batch_cancelled", "message": CANCELLED}, "error")


@case(
    "6.15",
    "four keys on each line: {name}",
    rows=[{"name": n} for n in ("clean", "mixed", "cancelled", "expired")],
)
def four_keys(server: Subject, name: str) -> None:
    run = run_of(server, name)
    for line in run.outputs() + run.errors():
        same(set(line), _KEYS, "the keys")
        assert isinstance(line["custom_id"], str), "custom_id is no text"
        assert (line["response"] is None) != (line["error"] is None), (
            "not one of response and error"
        )
        if line["error"] is not None:
            assert isinstance(line["error"]["code"], str), "the code is no text"
            assert isinstance(line["error"]["message"], str), "the message is no text"


@case("6.16", "ids of lines: {name}", rows=[{"name": n} for n in ("mixed", "expired")])
def ids_of_lines(server: Subject, name: str) -> None:
    run = run_of(server, name)
    lines = run.outputs() + run.errors()
    for line in lines:
        fits(line["id"], "batch_req_[0-9a-f]{32}", "the id")
        if line["response"] is not None:
            fits(line["response"]["request_id"], ".+", "request_id")
    same(len({line["id"] for line in lines}), len(lines), "the number of different ids")


@case("6.17", "the body of {endpoint}", rows=_ENDPOINTS)
def whole_bodies(server: Subject, endpoint: str) -> None:
    lines = _run(server, endpoint).outputs()
    assert lines, "there are none"
    for line in lines:
        _TYPES[endpoint].model_validate(line["response"]["body"])


@case("6.17", "object, model, usage and one choice for each of n")
def a_whole_completion(server: Subject) -> None:
    batch = server.run(json_lines(server.line(n=3)))
    [line] = server.lines(batch["output_file_id"])
    body = line["response"]["body"]
    same(body["object"], "chat.completion", "object")
    same(len(body["choices"]), 3, "the number of choices")
    assert body["model"], "there is no model"
    assert body["usage"]["total_tokens"] > 0, "there is no usage"


@case("6.18", "the input can be read after the end")
def the_input_stays(server: Subject) -> None:
    run = server.runs["clean"]
    response = server.http.get(f"files/{run.ended()['input_file_id']}/content")
    same((response.status_code, response.content), (200, run.lines))


@case("2.19", "usage of {endpoint}", rows=_ENDPOINTS)
def usage(server: Subject, endpoint: str) -> None:
    run = _run(server, endpoint)
    found = run.ended()["usage"]
    assert found is not None, "usage is null"
    fields = {
        "input_tokens",
        "input_tokens_details",
        "output_tokens",
        "output_tokens_details",
        "total_tokens",
    }
    same(set(found), fields, "the fields")
    same(set(found["input_tokens_details"]), {"cached_tokens"}, "input_tokens_details")
    same(set(found["output_tokens_details"]), {"reasoning_tokens"}, "output_tokens_details")
    wanted = [0, 0, 0]
    for line in run.outputs():
        own = line["response"]["body"].get("usage") or {}
        tokens_in = own.get("input_tokens", own.get("prompt_tokens", 0))
        tokens_out = own.get("output_tokens", own.get("completion_tokens", 0))
        for index, count in enumerate((tokens_in, tokens_out, own.get("total_tokens", 0))):
            wanted[index] += count or 0
    same(
        [found[name] for name in ("input_tokens", "output_tokens", "total_tokens")],
        wanted,
        "the sums",
    )


@case("2.19", "usage of a batch that failed validation is null or zero")
def no_usage(server: Subject) -> None:
    found = server.runs["failed"].ended()["usage"]
    assert found is None or found["total_tokens"] == 0, f"usage is {found}"


@case("2.19", "the SDK reads usage")
def usage_by_the_sdk(server: Subject) -> None:
    batch = server.sdk.batches.retrieve(server.runs["clean"].ended()["id"])
    assert batch.usage is not None, "usage is null"
    same(
        batch.usage.total_tokens, batch.usage.input_tokens + batch.usage.output_tokens, "the total"
    )


@case("8.10", "a whole file does not say that it is incomplete")
def whole_content(server: Subject) -> None:
    batch = server.runs["clean"].ended()
    response = server.http.get(f"files/{batch['output_file_id']}/content")
    assert response.headers.get("x-incomplete", "false") == "false", "X-Incomplete is set"


@case("10.2", "responses pass the SDK's model strictly enough for inspect_ai")
def responses_pass(server: Subject) -> None:
    for line in _run(server, "/v1/responses").outputs():
        response = Response.model_validate(line["response"]["body"])
        assert response.usage is not None, "usage is null"
        details = line["response"]["body"]["usage"]["input_tokens_details"]
        assert isinstance(details["cached_tokens"], int), "cached_tokens is no number"


@case("10.3", "moderations of an array of content")
def moderations_of_content(server: Subject) -> None:
    endpoint = "/v1/moderations"
    line = server.line("a", endpoint, input=[{"type": "text", "text": "hello"}])
    batch = server.run(json_lines(line), endpoint=endpoint)
    same(batch["request_counts"], {"total": 1, "completed": 1, "failed": 0}, "request_counts")


@case("10.4", "videos have ended")
def videos_have_ended(server: Subject) -> None:
    lines = server.runs["/v1/videos"].outputs()
    assert lines, "there are none"
    for line in lines:
        assert line["response"]["body"]["status"] in {"completed", "failed"}, "a video still runs"


@case(
    "10.5",
    "{endpoint}",
    rows=[{"endpoint": e} for e in ("/v1/images/generations", "/v1/images/edits")],
)
def images(server: Subject, endpoint: str) -> None:
    for line in server.runs[endpoint].outputs():
        assert line["response"]["body"]["data"], "there is no image"


@case("10.6", "an answer in a schema")
def an_answer_in_a_schema(server: Subject) -> None:
    schema = {
        "type": "object",
        "properties": {"town": {"type": "string"}, "people": {"type": "integer"}},
        "required": ["town", "people"],
        "additionalProperties": False,
    }
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "town", "strict": True, "schema": schema},
    }
    batch = server.run(json_lines(server.line(response_format=wanted)))
    [line] = server.lines(batch["output_file_id"])
    found = json.loads(line["response"]["body"]["choices"][0]["message"]["content"])
    same((type(found["town"]), type(found["people"]), len(found)), (str, int, 2), "the answer")


@case("10.7", "{endpoint}, from line to result", also=["1.20"], rows=_ENDPOINTS)
def every_endpoint_runs(server: Subject, endpoint: str) -> None:
    batch = _run(server, endpoint).ended()
    same((batch["status"], batch["error_file_id"]), ("completed", None))
    same(batch["request_counts"]["completed"], batch["request_counts"]["total"], "completed")
