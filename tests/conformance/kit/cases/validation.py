"""Section 4: lines that are good, and the error that each bad one gets."""

from typing import Any

from tests.conformance.kit.case import case
from tests.conformance.kit.expect import fits, ok, same
from tests.conformance.kit.server import CHAT, INPUTS, json_lines
from tests.conformance.kit.subject import Subject

_NOTHING = {"total": 0, "completed": 0, "failed": 0}
_GOOD = ("completed", None)
_NOT_JSON = "This line is not parseable as valid JSON."


def _outcome(server: Subject, content: bytes, **changes: Any) -> tuple[str, Any]:
    batch = server.run(content, **changes)
    return batch["status"], batch["errors"]


def _one_error(
    server: Subject, line: object, code: str, param: str | None, message: str, **changes: Any
) -> None:
    # The second line, so that its number is seen to be its own.
    endpoint = changes.get("endpoint", CHAT)
    content = json_lines(server.line("first", endpoint), line)
    wanted = {"code": code, "message": message, "param": param, "line": 2}
    same(server.errors_of(content, **changes), [wanted], "errors")


def _missing(name: str) -> str:
    return f"Missing required parameter: '{name}'."


@case("4.1", "a line of four members runs", also=["4.2"])
def a_good_line(server: Subject) -> None:
    same(_outcome(server, json_lines(server.line())), _GOOD)


@case(
    "4.3",
    "{title}",
    rows=[
        {"title": "no last line end", "change": lambda text: text.rstrip(b"\n")},
        {"title": "CRLF", "change": lambda text: text.replace(b"\n", b"\r\n")},
        {"title": "blank lines", "change": lambda text: b"\n" + text.replace(b"\n", b"\n \n\n")},
    ],
)
def tolerated(server: Subject, title: str, change: Any) -> None:
    del title
    content = change(json_lines(server.line("a"), server.line("b")))
    batch = server.run(content)
    same((batch["status"], batch["errors"]), _GOOD)
    same(batch["request_counts"], {"total": 2, "completed": 2, "failed": 0}, "request_counts")


@case("4.3", "blank lines count as lines")
def blank_lines_count(server: Subject) -> None:
    content = json_lines(server.line()) + b"\n\nnot json\n"
    same([error["line"] for error in server.errors_of(content)], [4], "the lines")


@case("4.4", "a byte-order mark is skipped, or line 1 is not parseable")
def a_byte_order_mark(server: Subject) -> None:
    status, errors = _outcome(server, b"\xef\xbb\xbf" + json_lines(server.line()))
    if status != "completed":
        [error] = errors["data"]
        same((error["code"], error["line"]), ("invalid_json_line", 1), "the error")


@case("4.10", "bad lines are found after the creation")
def found_after_the_creation(server: Subject) -> None:
    run = server.runs["failed"]
    run.ended()
    same((run.created["status"], run.created["errors"]), ("validating", None), "at first")


@case(
    "4.11",
    "a batch that is {name}",
    rows=[{"name": "failed"}, {"name": "no file"}],
)
def one_bad_line(server: Subject, name: str) -> None:
    batch = server.runs[name].ended()
    same(batch["status"], "failed", "the status")
    same((batch["output_file_id"], batch["error_file_id"]), (None, None), "the file ids")
    same(batch["request_counts"], _NOTHING, "request_counts")
    assert batch["failed_at"] is not None, "failed_at is null"
    assert batch["expires_at"] is not None, "expires_at is null"
    for field in ("in_progress_at", "finalizing_at", "completed_at", "cancelled_at", "expired_at"):
        same(batch[field], None, field)


@case("4.12", "four bad lines give four errors, in order")
def all_bad_lines(server: Subject) -> None:
    good = json_lines(server.line("good"))
    bad = [b"not json\n", json_lines({}), json_lines(server.line("x") | {"url": "/v1/no"}), b"[]\n"]
    errors = server.errors_of(
        good + bad[0] + bad[1] + good.replace(b"good", b"other") + bad[2] + bad[3]
    )
    same([error["line"] for error in errors], [2, 3, 5, 6], "the lines")


@case("4.13", "of 1,500 bad lines not all need be told")
def many_bad_lines(server: Subject) -> None:
    errors = server.errors_of(json_lines(server.line()) + b"x\n" * 1500)
    assert 1 <= len(errors) <= 1500, f"there are {len(errors)}"
    same([error["line"] for error in errors], list(range(2, len(errors) + 2)), "the lines")


@case("4.14", "a file that is not there")
def a_file_that_is_not_there(server: Subject) -> None:
    [error] = server.runs["no file"].ended()["errors"]["data"]
    same((error["code"], error["param"], error["line"]), ("invalid_request", "file_id", None))
    fits(
        error["message"],
        "Cannot find file file-nothing, or organization .* does not have access to it\\.",
        "the message",
    )


@case("4.14", "a file that was deleted before")
def a_file_that_was_deleted(server: Subject) -> None:
    file = server.upload_lines(server.line())
    ok(server.http.delete(f"files/{file['id']}"))
    [error] = server.ended(server.create(file["id"])["id"])["errors"]["data"]
    same((error["code"], error["param"], error["line"]), ("invalid_request", "file_id", None))


@case("4.15", "an empty file is stopped at its upload")
def an_empty_file(server: Subject) -> None:
    same(server.send_file(b"").status_code, 400, "the status")


@case(
    "4.16",
    "line: {text}",
    rows=[
        {"text": text}
        for text in (
            "not json",
            "[]",
            '"text"',
            "5",
            '{"custom_id": ',
            "{'a': 1}",
            '{"a": NaN}',
            "null",
            '{"a": 1} x',
        )
    ],
)
def no_json(server: Subject, text: str) -> None:
    errors = server.errors_of(json_lines(server.line()) + text.encode() + b"\n")
    same(errors, [{"code": "invalid_json_line", "message": _NOT_JSON, "param": None, "line": 2}])


@case("4.16", "line: no UTF-8")
def no_utf8(server: Subject) -> None:
    errors = server.errors_of(json_lines(server.line()) + b'{"custom_id": "\xff\xfe"}\n')
    same([(error["code"], error["line"]) for error in errors], [("invalid_json_line", 2)])


@case(
    "4.17",
    "a line without {name}",
    rows=[{"name": n} for n in ("custom_id", "method", "url", "body")],
)
def a_missing_member(server: Subject, name: str) -> None:
    line = {key: value for key, value in server.line().items() if key != name}
    _one_error(server, line, "missing_required_parameter", name, _missing(name))


_MAIN = {
    "/v1/responses": "input",
    CHAT: "messages",
    "/v1/embeddings": "input",
    "/v1/completions": "prompt",
    "/v1/moderations": "input",
    "/v1/images/generations": "prompt",
    "/v1/images/edits": "prompt",
    "/v1/videos": "prompt",
}


@case(
    "4.18", "{endpoint} without {name}", rows=[{"endpoint": e, "name": n} for e, n in _MAIN.items()]
)
def no_main_input(server: Subject, endpoint: str, name: str) -> None:
    line = server.line("second", endpoint, **{name: None})
    _one_error(
        server,
        line,
        "missing_required_parameter",
        f"body.{name}",
        _missing(name),
        endpoint=endpoint,
    )


@case(
    "4.19",
    "{endpoint} without a model",
    rows=[{"endpoint": e} for e in ("/v1/responses", CHAT, "/v1/embeddings", "/v1/completions")],
)
def no_model(server: Subject, endpoint: str) -> None:
    line = server.line("second", endpoint, model=None)
    _one_error(
        server,
        line,
        "invalid_request",
        "body.model",
        "Model parameter is required.",
        endpoint=endpoint,
    )


@case(
    "4.20",
    "the url of another endpoint: {url}",
    also=["4.2"],
    rows=[{"url": u} for u in INPUTS if u != CHAT],
)
def another_url(server: Subject, url: str) -> None:
    message = "The URL provided for this request does not match the batch endpoint."
    _one_error(server, server.line("second") | {"url": url}, "invalid_url", "url", message)


@case(
    "4.21",
    "the url {url}",
    rows=[{"url": u} for u in ("/v1/chat/completion", "/v1/files", "chat", "")],
)
def no_such_url(server: Subject, url: str) -> None:
    message = f"The provided url '{url}' is not supported by the Batch API."
    _one_error(server, server.line("second") | {"url": url}, "url_not_found", "url", message)


@case("4.23", "a second model", also=["1.32"])
def a_second_model(server: Subject) -> None:
    message = (
        "The model 'another-model' for this request does not match the rest of the batch. Each"
        " batch must contain requests for a single model."
    )
    line = server.line("second", model="another-model")
    errors = server.errors_of(json_lines(server.line("first"), line))
    # A server that knows its models may find first that it does not know this one.
    if errors[0]["code"] != "model_not_found":
        same(
            errors,
            [{"code": "mismatched_model", "message": message, "param": "body.model", "line": 2}],
        )


@case("4.24", "a custom_id that was there", also=["4.2"])
def a_duplicate(server: Subject) -> None:
    message = (
        "The custom_id 'first' for this request is a duplicate of another request. The custom_id"
        " parameter must be unique for each request in a batch."
    )
    _one_error(server, server.line("first"), "duplicate_custom_id", "custom_id", message)


@case(
    "4.25",
    "stream: true on {endpoint}",
    also=["10.1", "10.3"],
    rows=[
        {"endpoint": e, "title": t}
        for e, t in (
            (CHAT, "Chat Completions"),
            ("/v1/responses", "Responses"),
            ("/v1/completions", "Completions"),
            ("/v1/moderations", "Moderations"),
        )
    ],
)
def streaming(server: Subject, endpoint: str, title: str) -> None:
    message = f"{title}: Streaming is not supported in the Batch API."
    line = server.line("second", endpoint, stream=True)
    _one_error(server, line, "streaming_unsupported", "body.stream", message, endpoint=endpoint)


@case("4.25", "stream: false runs")
def no_streaming(server: Subject) -> None:
    same(_outcome(server, json_lines(server.line(stream=False))), _GOOD)


@case("10.1", "background: true")
def in_the_background(server: Subject) -> None:
    line = server.line("second", "/v1/responses", background=True)
    errors = server.errors_of(
        json_lines(server.line("first", "/v1/responses"), line), endpoint="/v1/responses"
    )
    same([(error["param"], error["line"]) for error in errors], [("body.background", 2)])


@case("4.27", "a line that its endpoint refuses hits itself only", also=["5.4"])
def a_refused_line(server: Subject) -> None:
    batch = server.runs["mixed"].ended()
    same(batch["status"], "completed", "the status")
    same(batch["request_counts"], {"total": 7, "completed": 5, "failed": 2}, "request_counts")


@case(
    "11.1",
    "an input file of purpose {purpose}",
    rows=[{"purpose": p} for p in ("user_data", "evals")],
)
def an_input_of_another_purpose(server: Subject, purpose: str) -> None:
    file = server.upload(json_lines(server.line()), purpose=purpose)
    [error] = server.ended(server.create(file["id"])["id"])["errors"]["data"]
    same((error["code"], error["param"], error["line"]), ("invalid_request", "file_id", None))


@case("11.2", "50,001 lines", also=["1.29"])
def too_many_lines(server: Subject) -> None:
    template = json_lines(server.line("ID"))
    content = b"".join(template.replace(b'"ID"', b'"%d"' % n) for n in range(50_001))
    [error] = server.errors_of(content)
    same((error["code"], error["param"], error["line"]), ("too_many_tasks", None, None))


@case("1.31", "50,001 embedding inputs in two lines")
def too_many_inputs(server: Subject) -> None:
    endpoint = "/v1/embeddings"
    lines = [
        server.line("a", endpoint, input=["x"] * 25_000),
        server.line("b", endpoint, input=["x"] * 25_001),
    ]
    [error] = server.errors_of(json_lines(*lines), endpoint=endpoint)
    same((error["param"], error["line"]), (None, None))


@case("11.3", "method {method}", also=["4.2"], rows=[{"method": m} for m in ("GET", "post", "")])
def another_method(server: Subject, method: str) -> None:
    errors = server.errors_of(json_lines(server.line("a"), server.line("b") | {"method": method}))
    same([(e["code"], e["param"], e["line"]) for e in errors], [("invalid_method", "method", 2)])


@case("11.5", "a file deleted before validation")
def deleted_in_time(server: Subject) -> None:
    file = server.upload_lines(server.line())
    batch = server.create(file["id"])
    ok(server.http.delete(f"files/{file['id']}"))
    ended = server.ended(batch["id"])
    # Whichever came first; nothing in between.
    if ended["status"] == "failed":
        same(ended["errors"]["data"][0]["param"], "file_id", "the error")
    else:
        same((ended["status"], ended["request_counts"]["completed"]), ("completed", 1))


@case("11.5", "a file deleted while it is read runs on")
def deleted_while_running(server: Subject) -> None:
    file = server.upload_lines(*(server.line(f"r-{n}") for n in range(100)))
    batch = server.create(file["id"])
    for shown in server.polled(batch["id"]):
        if shown["status"] != "validating":
            break
    ok(server.http.delete(f"files/{file['id']}"))
    same(server.ended(batch["id"])["request_counts"]["completed"], 100, "completed")
