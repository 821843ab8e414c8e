"""What each end of a call means: statuses, headers, errors, bodies. No network."""

import datetime as dt
import email.utils
import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from models.lines import Endpoint
from models.settings import UpstreamSettings
from models.upstreams import ModelServer
from worker.answer import NO_USAGE, BrokenAnswer, Usage, error_envelope, on_one_line, read_usage
from worker.retry import Blame
from worker.upstream import Outcome, Upstream, Verdict

Handler = Callable[[httpx.Request], httpx.Response]
KEY = "batch_req_1"
GOOD = b'{"object": "chat.completion"}'


def settings(**changes: Any) -> ModelServer:
    given = UpstreamSettings.model_validate({"upstream_url": "http://models/v1"} | changes)
    return given.upstreams().servers["default"]


async def send(
    handler: Handler, endpoint: Endpoint = Endpoint.CHAT_COMPLETIONS, **changes: Any
) -> Outcome:
    upstream = Upstream(settings(**changes), httpx.MockTransport(handler))
    return await upstream.send(endpoint, b'{"model": "m"}', idempotency_key=KEY)


async def answered(
    status: int, body: bytes = GOOD, headers: dict[str, str] | None = None
) -> Outcome:
    return await send(lambda _: httpx.Response(status, content=body, headers=headers))


@pytest.mark.parametrize("endpoint", list(Endpoint))
async def test_a_call_goes_to_the_batch_s_endpoint(endpoint: Endpoint) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=GOOD)

    await send(handler, endpoint)
    [request] = seen
    assert (request.method, str(request.url)) == ("POST", f"http://models{endpoint}")
    assert request.content == b'{"model": "m"}'


async def test_the_headers_are_ours() -> None:
    seen: list[httpx.Headers] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200, content=GOOD)

    await send(handler)
    await send(handler, upstream_api_key="secret")
    bare, keyed = seen
    assert "authorization" not in bare
    assert keyed["authorization"] == "Bearer secret"
    assert bare["idempotency-key"] == KEY
    assert bare["content-type"] == "application/json"
    assert bare["accept-encoding"] == "identity"
    assert re.fullmatch(r"overnight(/\d+\.\d+\.\d+\S*)?", bare["user-agent"])


@pytest.mark.parametrize("status", [200, 201, 299])
async def test_a_2xx_with_an_object_is_a_success(status: int) -> None:
    outcome = await answered(status, headers={"x-request-id": "req_7"})
    assert (outcome.verdict, outcome.status_code) == (Verdict.SUCCEEDED, status)
    assert (outcome.body, outcome.response_id) == (GOOD, "req_7")


@pytest.mark.parametrize("status", [300, 302, 400, 401, 403, 404, 405, 413, 422, 451, 499])
async def test_other_answers_are_final(status: int) -> None:
    outcome = await answered(status, b'{"error": {"message": "no"}}')
    assert (outcome.verdict, outcome.status_code) == (Verdict.REFUSED, status)
    assert outcome.body == b'{"error": {"message": "no"}}'


@pytest.mark.parametrize(
    ("status", "blame"),
    [
        (408, Blame.UNCLEAR),
        (409, Blame.UNCLEAR),
        (429, Blame.BUSY),
        (500, Blame.UNCLEAR),
        (501, Blame.UNCLEAR),
        (502, Blame.AWAY),
        (503, Blame.AWAY),
        (504, Blame.UNCLEAR),
        (520, Blame.UNCLEAR),
        (599, Blame.UNCLEAR),
    ],
)
async def test_what_the_official_client_retries_is_tried_again(status: int, blame: Blame) -> None:
    outcome = await answered(status)
    assert (outcome.verdict, outcome.status_code) == (Verdict.TRANSIENT, status)
    assert outcome.blame is blame
    assert outcome.retry_after_seconds is None


async def test_the_server_may_decide_whether_to_try_again() -> None:
    assert (await answered(400, headers={"x-should-retry": "true"})).verdict is Verdict.TRANSIENT
    assert (await answered(500, headers={"x-should-retry": "false"})).verdict is Verdict.REFUSED
    assert (await answered(429, headers={"x-should-retry": "false"})).verdict is Verdict.REFUSED
    assert (await answered(500, headers={"x-should-retry": "perhaps"})).verdict is Verdict.TRANSIENT
    assert (await answered(200, headers={"x-should-retry": "true"})).verdict is Verdict.SUCCEEDED


def in_seconds(seconds: float) -> str:
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    return email.utils.format_datetime(moment, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after-ms": "0", "retry-after": "9"}, 9),
        ({"retry-after-ms": "nan", "retry-after": "inf"}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "later"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        # Without its zone it says nothing about when that is.
        ({"retry-after": "Wed, 21 Oct 2099 07:28:00 -0000"}, None),
        ({"retry-after": "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"}, None),
    ],
)
async def test_the_wait_that_a_server_asks_for(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert (await answered(429, headers=headers)).retry_after_seconds == seconds


async def test_a_wait_may_be_given_as_a_date() -> None:
    outcome = await answered(503, headers={"retry-after": in_seconds(60)})
    assert outcome.retry_after_seconds == pytest.approx(59.5, abs=1.5)


async def test_a_503_that_asks_for_patience_is_busy_not_away() -> None:
    assert (await answered(503, headers={"retry-after": "1"})).blame is Blame.BUSY
    assert (await answered(500, headers={"retry-after": "1"})).blame is Blame.UNCLEAR


async def test_a_final_answer_asks_for_no_wait() -> None:
    assert (await answered(400, headers={"retry-after": "5"})).retry_after_seconds is None


def transport_errors() -> list[type[httpx.TransportError]]:
    return [
        error
        for _, error in inspect.getmembers(httpx, inspect.isclass)
        if issubclass(error, httpx.TransportError)
    ]


@pytest.mark.parametrize("error", transport_errors())
async def test_no_error_of_the_network_comes_out(error: type[httpx.TransportError]) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        message = "the prompt is in here"
        raise error(message, request=request)

    outcome = await send(handler)
    assert outcome.verdict is Verdict.TRANSIENT
    assert outcome.status_code is None
    assert outcome.code.startswith("upstream_")
    assert "prompt" not in outcome.message


async def test_not_even_the_unforeseen_comes_out(caplog: pytest.LogCaptureFixture) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        message = "the prompt is in here"
        raise ZeroDivisionError(message)

    outcome = await send(handler)
    assert (outcome.verdict, outcome.code) == (Verdict.TRANSIENT, "internal_error")
    assert "ZeroDivisionError at " in caplog.text
    assert "prompt" not in caplog.text + outcome.message


@pytest.mark.parametrize(
    ("error", "blame", "code"),
    [
        (httpx.ConnectError, Blame.AWAY, "upstream_unreachable"),
        (httpx.ConnectTimeout, Blame.AWAY, "upstream_unreachable"),
        (httpx.ReadTimeout, Blame.UNCLEAR, "upstream_timeout"),
        (httpx.ReadError, Blame.UNCLEAR, "upstream_disconnected"),
        (httpx.RemoteProtocolError, Blame.UNCLEAR, "upstream_disconnected"),
    ],
)
async def test_what_an_error_says_about_its_cause(
    error: type[httpx.TransportError], blame: Blame, code: str
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        message = ""
        raise error(message, request=request)

    outcome = await send(handler)
    assert (outcome.blame, outcome.code) == (blame, code)


BROKEN = [
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"{",
    b"<html>busy</html>",
    b'{"a": 1} {"b": 2}',
    b'{"a": NaN}',
    b'{"a": "\xff"}',
    b'{"a": "raw\nbreak"}',
    b"\xef\xbb\xbf{}",
    b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
]


@pytest.mark.parametrize("body", BROKEN, ids=range(len(BROKEN)))
async def test_a_success_without_an_object_is_tried_again(body: bytes) -> None:
    outcome = await answered(200, body)
    assert outcome.verdict is Verdict.TRANSIENT
    assert (outcome.status_code, outcome.code) == (None, "upstream_broken_answer")
    with pytest.raises(BrokenAnswer):
        read_usage(body)


@pytest.mark.parametrize(
    "body",
    [
        rb'{"big": 123456789012345678901234567890, "small": 1.50e-7, "zero": -0, "huge": 1e999}',
        rb'{"text": "\u00e9\ud83d\ude00\/\b", "raw": "' + "é😀\u2028".encode() + rb'"}',
        rb'{"half": "\ud83d", "other": "\udc00x", "both": "\udc00\ud800"}',
        rb'{"none": "\\ud800", "odd": "\\\ud800"}',
        rb'{ "spaced" :  [1 ,2]  }',
    ],
)
async def test_a_good_body_is_passed_on_byte_for_byte(body: bytes) -> None:
    outcome = await answered(200, body)
    assert (outcome.verdict, outcome.body) == (Verdict.SUCCEEDED, body)


async def test_a_pretty_printed_body_becomes_one_line() -> None:
    given = {"text": "a\nb\r", "list": [1, {"x": None}]}
    outcome = await answered(200, json.dumps(given, indent=2).replace("\n", "\r\n").encode())
    assert b"\n" not in outcome.body
    assert b"\r" not in outcome.body
    assert json.loads(outcome.body) == given
    body = b'{"error":\n {"message": "no",\n "n": 1.0}}\n'
    assert (await answered(400, body)).body == b'{"error": {"message": "no", "n": 1.0}}'
    assert on_one_line(GOOD) is GOOD


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"detail": "not found"}', "not found"),
        (b'{"message": "too long", "object": "error"}', "too long"),
        (b'{"error": "model is loading"}', "model is loading"),
        (b'{"detail": [{"loc": ["body"]}]}', '{"detail": [{"loc": ["body"]}]}'),
        (b"<html>Bad Gateway</html>", "<html>Bad Gateway</html>"),
        (b"  \n", "The model server answered 500."),
        (b"", "The model server answered 500."),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"[" * 5000, "[" * 1000),
        (b"x" * 5000, "x" * 1000),
        (b'"text"', '"text"'),
    ],
)
def test_whatever_a_failure_says_ends_in_the_error_envelope(body: bytes, message: str) -> None:
    wrapped = error_envelope(body, 500)
    assert b"\n" not in wrapped
    assert json.loads(wrapped) == {
        "error": {"message": message, "type": "server_error", "param": None, "code": None}
    }


def test_a_refusal_is_the_request_s_own_fault() -> None:
    assert json.loads(error_envelope(b"", 404))["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("depth", [10, 900, 990, 1000, 1010, 1023, 1024, 5000])
def test_no_nesting_is_too_deep_for_an_envelope(depth: int) -> None:
    body = b'{"error": {"x": \n' + b"[" * depth + b"]" * depth + b"}}"
    assert b"\n" not in error_envelope(body, 500)


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        ({}, NO_USAGE),
        ({"usage": None}, NO_USAGE),
        ({"usage": {}}, NO_USAGE),
        ({"usage": []}, NO_USAGE),
        ({"usage": {"prompt_tokens": "many"}}, NO_USAGE),
        (
            # Chat completions.
            {
                "usage": {
                    "prompt_tokens": 11,
                    "completion_tokens": 7,
                    "total_tokens": 18,
                    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
                    "completion_tokens_details": {"reasoning_tokens": 5},
                }
            },
            Usage(11, 4, 7, 5, 18),
        ),
        (
            # Completions of an older server: no details, or none known.
            {"usage": {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": None}},
            Usage(3, 0, 2, 0, 5),
        ),
        ({"usage": {"prompt_tokens": 8, "total_tokens": 8}}, Usage(8, 0, 0, 0, 8)),  # embeddings
        (
            # Responses.
            {
                "usage": {
                    "input_tokens": 20,
                    "input_tokens_details": {"cached_tokens": 6},
                    "output_tokens": 9,
                    "output_tokens_details": {"reasoning_tokens": 2},
                    "total_tokens": 29,
                }
            },
            Usage(20, 6, 9, 2, 29),
        ),
        (
            # Responses of today, and more of the details than are counted.
            {
                "usage": {
                    "input_tokens": 20,
                    "input_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 3},
                    "output_tokens": 9,
                    "output_tokens_details": None,
                    "total_tokens": 29,
                }
            },
            Usage(20, 6, 9, 0, 29),
        ),
        (
            # Images.
            {
                "created": 1,
                "data": [],
                "usage": {
                    "input_tokens": 50,
                    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
                    "output_tokens": 272,
                    "output_tokens_details": {"text_tokens": 0, "image_tokens": 272},
                    "total_tokens": 322,
                },
            },
            Usage(50, 0, 272, 0, 322),
        ),
        # Moderations and videos have none.
        ({"id": "modr-1", "model": "m", "results": []}, NO_USAGE),
        ({"id": "video_1", "object": "video", "status": "completed"}, NO_USAGE),
        # Of no known form: the line has its answer all the same.
        ({"usage": "none"}, NO_USAGE),
        ({"usage": {"input_tokens": 1.5}}, NO_USAGE),
        ({"usage": {"input_tokens": True}}, NO_USAGE),
        ({"usage": {"input_tokens": 10**30}}, Usage(2**53, 0, 0, 0, 2**53)),
        ({"usage": {"input_tokens": 3, "input_tokens_details": [1]}}, NO_USAGE),
        ({"usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": {}}}}, NO_USAGE),
        ({"usage": {"prompt_tokens": -5, "total_tokens": 10**15}}, Usage(0, 0, 0, 0, 10**15)),
        # What no counter of the database could hold is held down.
        ({"usage": {"prompt_tokens": 10**18}}, Usage(2**53, 0, 0, 0, 2**53)),
    ],
)
def test_the_usage_of_each_endpoint_s_shape(body: dict[str, Any], usage: Usage) -> None:
    assert read_usage(json.dumps(body).encode()) == usage


@pytest.mark.parametrize(
    ("given", "kept"),
    [("req_1", "req_1"), ("", None), ("x" * 200, "x" * 200), ("x" * 201, None), ("a\tb", None)],
)
async def test_a_request_id_is_taken_over_if_it_is_one(given: str, kept: str | None) -> None:
    assert (await answered(200, headers={"x-request-id": given})).response_id == kept
