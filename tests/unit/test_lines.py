"""The JSON lines of the contract: what is refused and in which words, and what is written."""

import json
from typing import Any

import msgspec
import pytest

from models.lines import (
    BATCH_CANCELLED,
    BATCH_EXPIRED,
    MAX_ECHO,
    Endpoint,
    LineChecker,
    LineError,
    decode_input_line,
    is_json_object,
    render_failure,
    render_response,
)
from tests.factories import input_line


def check(line: object, endpoint: Endpoint = Endpoint.CHAT_COMPLETIONS) -> LineError | None:
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    return LineChecker(endpoint).check(raw, 7)


def without(name: str) -> dict[str, Any]:
    line = input_line()
    del line[name]
    return line


MAIN_INPUTS: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT_COMPLETIONS: {"messages": []},
    Endpoint.COMPLETIONS: {"prompt": "p"},
    Endpoint.EMBEDDINGS: {"input": "text"},
    Endpoint.RESPONSES: {"input": "text"},
    Endpoint.MODERATIONS: {"input": "text"},
    Endpoint.IMAGE_GENERATIONS: {"prompt": "p"},
    Endpoint.IMAGE_EDITS: {"prompt": "p", "images": [{"file_id": "file-1"}]},
    Endpoint.VIDEOS: {"prompt": "p"},
}
# The synchronous endpoint has a default.
WITHOUT_MODEL = [
    Endpoint.MODERATIONS,
    Endpoint.IMAGE_GENERATIONS,
    Endpoint.IMAGE_EDITS,
    Endpoint.VIDEOS,
]


def test_the_endpoints_are_those_of_the_contract_in_its_order() -> None:
    assert [str(endpoint) for endpoint in Endpoint] == [
        "/v1/responses",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/completions",
        "/v1/moderations",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/videos",
    ]


@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_a_good_line_passes(endpoint: Endpoint) -> None:
    line = input_line(url=endpoint.value, body={"model": "m"} | MAIN_INPUTS[endpoint])
    assert check(line, endpoint) is None


@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_an_upstream_path_stands_below_the_base_url(endpoint: Endpoint) -> None:
    assert "/v1" + endpoint.upstream_path == endpoint.value


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"not json",
        b"[1]",
        b'"text"',
        b"null",
        b'{"a": NaN}',
        b'{"a": "\\ud800"}',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}",
    ],
)
def test_a_line_that_is_no_json_object(raw: bytes) -> None:
    assert check(raw) == LineError(
        "invalid_json_line", "This line is not parseable as valid JSON.", None, 7
    )


@pytest.mark.parametrize("name", ["custom_id", "method", "url", "body"])
@pytest.mark.parametrize("is_null", [True, False])
def test_a_missing_member(name: str, is_null: bool) -> None:
    line = input_line(**{name: None}) if is_null else without(name)
    message = f"Missing required parameter: '{name}'."
    assert check(line) == LineError("missing_required_parameter", message, name, 7)


@pytest.mark.parametrize(
    ("name", "value", "wording"),
    [
        ("custom_id", 5, "expected a string, but got an integer instead."),
        ("custom_id", ["a"], "expected a string, but got an array instead."),
        ("method", True, "expected a string, but got a boolean instead."),
        ("url", 1.5, "expected a string, but got a number instead."),
        ("url", {}, "expected a string, but got an object instead."),
        ("body", "text", "expected an object, but got a string instead."),
        ("body", [], "expected an object, but got an array instead."),
    ],
)
def test_a_member_of_the_wrong_type(name: str, value: object, wording: str) -> None:
    message = f"Invalid type for '{name}': {wording}"
    assert check(input_line(**{name: value})) == LineError("invalid_type", message, name, 7)


@pytest.mark.parametrize("method", ["GET", "post", ""])
def test_a_wrong_method(method: str) -> None:
    message = f"Invalid value: '{method}'. Supported values are: 'POST'."
    fault = check(input_line(method=method))
    assert fault == LineError("invalid_method", message, "method", 7)


def test_the_url_of_another_endpoint() -> None:
    message = "The URL provided for this request does not match the batch endpoint."
    fault = check(input_line(url="/v1/embeddings"))
    assert fault == LineError("invalid_url", message, "url", 7)


@pytest.mark.parametrize("url", ["/v1/chat/completion", "http://evil/v1/chat/completions", ""])
def test_a_url_that_no_endpoint_has(url: str) -> None:
    message = f"The provided url '{url}' is not supported by the Batch API."
    assert check(input_line(url=url)) == LineError("url_not_found", message, "url", 7)


def test_a_long_echo_is_cut() -> None:
    fault = check(input_line(url="/" + "x" * 10_000))
    assert fault is not None
    assert len(fault.message) < MAX_ECHO + 100


@pytest.mark.parametrize("endpoint", [e for e in Endpoint if e not in WITHOUT_MODEL])
def test_a_missing_model(endpoint: Endpoint) -> None:
    line = input_line(url=endpoint.value, body=MAIN_INPUTS[endpoint])
    message = "Model parameter is required."
    assert check(line, endpoint) == LineError("invalid_request", message, "body.model", 7)


@pytest.mark.parametrize("endpoint", WITHOUT_MODEL)
def test_some_endpoints_need_no_model(endpoint: Endpoint) -> None:
    assert check(input_line(url=endpoint.value, body=MAIN_INPUTS[endpoint]), endpoint) is None


def test_a_model_of_the_wrong_type() -> None:
    message = "Invalid type for 'body.model': expected a string, but got an integer instead."
    fault = check(input_line(body={"model": 4, "messages": []}))
    assert fault == LineError("invalid_type", message, "body.model", 7)


def test_a_number_that_no_float_holds_is_a_number() -> None:
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": %b}'
    message = "Invalid type for 'body.model': expected a string, but got a number instead."
    fault = check(line % b'{"model": 1e400, "messages": []}')
    assert fault == LineError("invalid_type", message, "body.model", 7)
    assert check(line % b'{"model": "m", "messages": -1e400, "stream": 1e999999}') is None


def test_a_model_that_cannot_be_stored() -> None:
    fault = check(input_line(body={"model": "a\0b", "messages": []}))
    assert fault is not None
    assert (fault.code, fault.param) == ("invalid_value", "body.model")


def test_mixed_models() -> None:
    checker = LineChecker(Endpoint.CHAT_COMPLETIONS)
    good = input_line(1, body={"model": "a", "messages": []})
    other = input_line(2, body={"model": "b", "messages": []})
    assert checker.check(json.dumps(good).encode(), 1) is None
    fault = checker.check(json.dumps(other).encode(), 2)
    message = (
        "The model 'b' for this request does not match the rest of the batch. Each batch must"
        " contain requests for a single model."
    )
    assert fault == LineError("mismatched_model", message, "body.model", 2)
    assert checker.model == "a"


def test_a_repeated_custom_id() -> None:
    checker = LineChecker(Endpoint.CHAT_COMPLETIONS)
    raw = json.dumps(input_line()).encode()
    assert checker.check(raw, 1) is None
    message = (
        "The custom_id 'request-1' for this request is a duplicate of another request. The"
        " custom_id parameter must be unique for each request in a batch."
    )
    expected = LineError("duplicate_custom_id", message, "custom_id", 2)
    assert checker.check(raw, 2) == expected


@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_streaming(endpoint: Endpoint) -> None:
    body = {"model": "m", "stream": True} | MAIN_INPUTS[endpoint]
    fault = check(input_line(url=endpoint.value, body=body), endpoint)
    assert fault is not None
    assert (fault.code, fault.param) == ("streaming_unsupported", "body.stream")
    assert fault.message.endswith(": Streaming is not supported in the Batch API.")
    assert check(input_line(url=endpoint.value, body=body | {"stream": False}), endpoint) is None


def test_background_responses() -> None:
    line = input_line(url="/v1/responses", body={"model": "m", "input": "x", "background": True})
    fault = check(line, Endpoint.RESPONSES)
    assert fault is not None
    assert (fault.code, fault.param) == ("background_unsupported", "body.background")


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        (Endpoint.CHAT_COMPLETIONS, "messages"),
        (Endpoint.COMPLETIONS, "prompt"),
        (Endpoint.EMBEDDINGS, "input"),
        (Endpoint.RESPONSES, "input"),
        (Endpoint.MODERATIONS, "input"),
        (Endpoint.IMAGE_GENERATIONS, "prompt"),
        (Endpoint.IMAGE_EDITS, "prompt"),
        (Endpoint.IMAGE_EDITS, "images"),
        (Endpoint.VIDEOS, "prompt"),
    ],
)
@pytest.mark.parametrize("is_null", [True, False])
def test_a_body_without_its_main_input(endpoint: Endpoint, name: str, is_null: bool) -> None:
    body = {"model": "m"} | MAIN_INPUTS[endpoint]
    del body[name]
    body |= {name: None} if is_null else {}
    fault = check(input_line(url=endpoint.value, body=body), endpoint)
    message = f"Missing required parameter: '{name}'."
    assert fault == LineError("missing_required_parameter", message, f"body.{name}", 7)


def test_a_response_may_name_a_stored_prompt_instead() -> None:
    line = input_line(url="/v1/responses", body={"model": "m", "prompt": {"id": "pmpt_1"}})
    assert check(line, Endpoint.RESPONSES) is None


@pytest.mark.parametrize("image", ["data:image/png;base64,AA==", ["file-1"]])
def test_an_image_edit_may_name_its_image_as_the_form_does(image: object) -> None:
    line = input_line(url="/v1/images/edits", body={"prompt": "p", "image": image})
    assert check(line, Endpoint.IMAGE_EDITS) is None


def test_one_line_gets_one_error() -> None:
    line = input_line(custom_id=None, method="GET", url="/nowhere", body=None)
    fault = check(line)
    assert fault is not None
    assert fault.param == "custom_id"


@pytest.mark.parametrize("raw", [b'{"a": 1}', b"{}", b' {"a": {"b": [1, {}]}} \r', b'{"a":""}'])
def test_what_begins_like_json_lines(raw: bytes) -> None:
    assert is_json_object(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"[1]",
        b"1",
        b'"text"',
        b"null",
        b"{",
        b"plain text",
        b'{"a": 1} {"b": 2}',
        b'{"a": [1, 2 3]}',
        b'{"a": NaN}',
        b'{"\xff": 1}',
        b'{"a":' + b"[" * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_does_not(raw: bytes) -> None:
    assert not is_json_object(raw)


def test_a_body_is_cut_out_as_it_was_written() -> None:
    body = b'{"model": "m",  "seed": 12345678901234567890123, "t": 1.10, "e": "\\u00e9\xc3\xa9"}'
    raw = b'{"method":"POST","body":' + body + b',"custom_id":"\\u0061","url":"x"}\r'
    line = decode_input_line(raw)
    assert line.custom_id == "a"
    assert bytes(line.body) == body


CUSTOM_IDS = ["plain", 'quote " and \\', "line\nbreak", "nul \0", "é ☃ 𝄞", ""]


@pytest.mark.parametrize("custom_id", CUSTOM_IDS)
def test_a_response_line(custom_id: str) -> None:
    body = b'{"id": "x", "n": 1.10, "big": 12345678901234567890123}'
    rendered = render_response(
        request_id="batch_req_1",
        custom_id=custom_id,
        status_code=429,
        response_id='r"1',
        body=body,
    )
    assert rendered.endswith(b"\n")
    assert rendered.count(b"\n") == 1
    assert body in rendered
    line = msgspec.json.decode(rendered)
    response = line.pop("response")
    assert line == {"id": "batch_req_1", "custom_id": custom_id, "error": None}
    assert (response["status_code"], response["request_id"]) == (429, 'r"1')
    assert list(response) == ["status_code", "request_id", "body"]


@pytest.mark.parametrize("custom_id", CUSTOM_IDS)
@pytest.mark.parametrize(("code", "message"), [BATCH_EXPIRED, BATCH_CANCELLED])
def test_a_failure_line(custom_id: str, code: str, message: str) -> None:
    rendered = render_failure(
        request_id="batch_req_1", custom_id=custom_id, code=code, message=message
    )
    assert rendered.count(b"\n") == 1
    assert json.loads(rendered) == {
        "id": "batch_req_1",
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }


def test_the_words_for_what_never_ran() -> None:
    assert BATCH_EXPIRED == (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    )
    assert BATCH_CANCELLED == (
        "batch_cancelled",
        "This request was not executed because the batch was cancelled.",
    )


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("text", 1),
        (["one", "two, three", 'a "quoted" one'], 3),
        ([1, 2, 3], 1),
        ([[1, 2], [3]], 2),
        ([], 1),
    ],
)
def test_embedding_inputs_are_counted(given: object, count: int) -> None:
    """A text, texts, the tokens of one text, or of several."""
    checker = LineChecker(Endpoint.EMBEDDINGS)
    body = {"model": "m", "input": given}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}
    assert checker.check(json.dumps(line).encode(), 1) is None
    assert checker.embedding_inputs == count
