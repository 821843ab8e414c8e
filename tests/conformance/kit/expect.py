"""What cases say of answers: the envelope of a refusal, the grammar's words, the SDK's own types."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter

INVALID = "invalid_request_error"
_PIECE = 300


class NotApplicable(Exception):
    """A case that cannot be run at this server; says why."""


def same(got: object, wanted: object, what: str = "the answer") -> None:
    """The two are equal."""
    assert got == wanted, f"{what} is {str(got)[:_PIECE]!r}, not {str(wanted)[:_PIECE]!r}"


def fits(text: object, pattern: str, what: str = "the answer") -> None:
    """The text is of the pattern, as a whole."""
    assert isinstance(text, str), f"{what} is {text!r}, not a text"
    assert re.fullmatch(pattern, text, re.DOTALL), f"{what} is {text[:_PIECE]!r}, not {pattern!r}"


def ok(response: httpx.Response, status: int = 200) -> Any:
    """The JSON of an answer that is a success."""
    assert response.status_code == status, (
        f"{response.request.method} {response.request.url.path}: {response.status_code}"
        f" {response.text[:_PIECE]}"
    )
    return json_of(response)


def json_of(response: httpx.Response) -> Any:
    """The JSON of an answer, which must say that it is JSON."""
    kind = response.headers.get("content-type", "")
    assert kind.partition(";")[0].strip() == "application/json", f"the content type is {kind!r}"
    return response.json()


def refused(
    response: httpx.Response,
    status: int,
    message: str | None = None,
    *,
    code: str | None = None,
    param: str | None = None,
    type_: str = INVALID,
    like: str | None = None,
) -> str:
    """The answer is this refusal, in the envelope; `like` is a pattern of its message."""
    body = json_of(response)
    same(response.status_code, status, f"the status of {str(body)[:_PIECE]}")
    same(sorted(body), ["error"], "the body's keys")
    error = body["error"]
    same(sorted(error), ["code", "message", "param", "type"], "the error's keys")
    same((error["type"], error["code"], error["param"]), (type_, code, param), "type, code, param")
    assert isinstance(error["message"], str), "the message is no text"
    if message is not None:
        same(error["message"], message, "the message")
    if like is not None:
        fits(error["message"], like, "the message")
    return error["message"]


def ungrammatical(response: httpx.Response, fault: tuple[str, str, str]) -> None:
    """A 400 with this code, param and message."""
    code, param, message = fault
    refused(response, 400, message, code=code, param=param)


ErrorT = TypeVar("ErrorT", bound=Exception)


def raises(kind: type[ErrorT], call: Callable[[], object]) -> ErrorT:
    """The exception of exactly this type that a call raises."""
    try:
        call()
    except kind as error:
        same(type(error).__name__, kind.__name__, "the exception")
        return error
    message = f"no {kind.__name__} was raised"
    raise AssertionError(message)


def missing(param: str) -> tuple[str, str, str]:
    """Fact 3.1."""
    return "missing_required_parameter", param, f"Missing required parameter: '{param}'."


def unknown(param: str) -> tuple[str, str, str]:
    """Fact 3.2."""
    return "unknown_parameter", param, f"Unknown parameter: '{param}'."


def wrong_type(param: str, expected: str, got: object) -> tuple[str, str, str]:
    """Fact 3.3; `got` is the value that was sent."""
    message = f"Invalid type for '{param}': expected {expected}, but got {kind_of(got)} instead."
    return "invalid_type", param, message


def kind_of(value: object) -> str:
    """What the grammar calls a JSON value."""
    kinds: dict[type, str] = {
        type(None): "null",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return kinds[type(value)]


def not_in_set(param: str, value: str, allowed: Sequence[str]) -> tuple[str, str, str]:
    """Fact 3.4."""
    quoted = [f"'{word}'" for word in allowed]
    words = (
        " and ".join(quoted) if len(quoted) < 3 else f"{', '.join(quoted[:-1])}, and {quoted[-1]}"
    )
    return "invalid_value", param, f"Invalid value: '{value}'. Supported values are: {words}."


def below(param: str, least: int, got: int) -> tuple[str, str, str]:
    """Fact 3.5."""
    message = (
        f"Invalid '{param}': integer below minimum value."
        f" Expected a value >= {least}, but got {got} instead."
    )
    return "integer_below_min_value", param, message


def above(param: str, most: int, got: int) -> tuple[str, str, str]:
    """Fact 3.6."""
    message = (
        f"Invalid '{param}': integer above maximum value."
        f" Expected a value <= {most}, but got {got} instead."
    )
    return "integer_above_max_value", param, message


def empty_array(param: str) -> tuple[str, str, str]:
    """Fact 3.11."""
    message = (
        f"Invalid '{param}': empty array. Expected an array with minimum length 1, but got an empty"
        " array instead."
    )
    return "empty_array", param, message


def conforms(kind: type[BaseModel], found: Mapping[str, Any], extra: Sequence[str] = ()) -> None:
    """The object passes the SDK's own type, strictly, and has every field of it and no other.

    `extra` names fields that the service has and this SDK does not know.
    """
    TypeAdapter(kind).validate_json(json.dumps(found), strict=True)
    lacking = set(kind.model_fields) - set(found)
    assert not lacking, f"{kind.__name__} lacks {sorted(lacking)}"
    surplus = set(found) - set(kind.model_fields) - set(extra)
    assert not surplus, f"{kind.__name__} has {sorted(surplus)}"


def is_time(value: object, what: str) -> None:
    """A whole number of Unix seconds."""
    assert type(value) is int, f"{what} is {value!r}"
    assert 1_600_000_000 < value < 5_000_000_000, f"{what} is {value!r}"
