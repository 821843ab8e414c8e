"""From pydantic's errors to OpenAI's words: one fault a request, in the measured grammar.

The order of precedence is the observed one: what is missing, what is unknown, what has the wrong
type, what is out of bounds or not in the set.
"""

import re
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

from pydantic_core import PydanticCustomError

from models.errors import InvalidParameter
from models.lines import MAX_ECHO, invalid_type

_REFUSED = "refused"
_QUOTED = re.compile(r"'([^']*)'")


class _Rank(IntEnum):
    MISSING = 0
    UNKNOWN = 1
    TYPE = 2
    VALUE = 3


_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "bool_type": "a boolean",
    "bool_parsing": "a boolean",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "list_type": "an array",
}


def refused(message: str, *, param: str, code: str) -> PydanticCustomError:
    """A fault found by a validator of ours, in final wording."""
    return PydanticCustomError(
        _REFUSED, "{message}", {"message": message, "param": param, "code": code}
    )


def supported_values(value: str, allowed: Sequence[str]) -> str:
    """The wording for a value that is not in the set."""
    return f"Invalid value: '{value[:MAX_ECHO]}'. Supported values are: {listed(allowed)}."


def listed(words: Sequence[str]) -> str:
    """`'a'`, `'a' and 'b'`, `'a', 'b', and 'c'`."""
    quoted = [f"'{word}'" for word in words]
    if len(quoted) < 3:
        return " and ".join(quoted)
    return f"{', '.join(quoted[:-1])}, and {quoted[-1]}"


def refusal_of(faults: Sequence[Mapping[str, Any]], *, under: str = "") -> InvalidParameter:
    """The one fault that is reported, out of all that pydantic found in the parameter `under`."""
    judged = (_judge(fault, under) for fault in faults)
    return min(judged, key=lambda judgement: judgement[0])[1]


def unknown_keys(faults: Sequence[Mapping[str, Any]]) -> list[tuple[str | int, ...]]:
    """Where there are keys that no model knows."""
    return [fault["loc"] for fault in faults if fault["type"] == "extra_forbidden"]


def unknown_parameter(name: str) -> InvalidParameter:
    """The refusal of a parameter that is not known."""
    name = name[:MAX_ECHO]
    return InvalidParameter(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")


def _judge(fault: Mapping[str, Any], under: str) -> tuple[_Rank, InvalidParameter]:
    kind, value, facts = fault["type"], fault.get("input"), fault.get("ctx", {})
    param = _place(under, fault["loc"])[:MAX_ECHO]
    if kind == _REFUSED:
        rank = _Rank.TYPE if facts["code"] == "invalid_type" else _Rank.VALUE
        return rank, InvalidParameter(facts["message"], param=facts["param"], code=facts["code"])
    if kind == "missing":
        message = f"Missing required parameter: '{param}'."
        code = "missing_required_parameter"
        return _Rank.MISSING, InvalidParameter(message, param=param, code=code)
    if kind == "extra_forbidden":
        return _Rank.UNKNOWN, unknown_parameter(param)
    if kind in {"literal_error", "enum"} and isinstance(value, str):
        message = supported_values(value, _QUOTED.findall(facts["expected"]))
        return _Rank.VALUE, InvalidParameter(message, param=param, code="invalid_value")
    expected = _EXPECTED.get("string_type" if kind in {"literal_error", "enum"} else kind)
    if expected is not None:
        message = invalid_type(param, expected, value)
        return _Rank.TYPE, InvalidParameter(message, param=param, code="invalid_type")
    message, code = _bound(kind, param, value, facts)
    return _Rank.VALUE, InvalidParameter(message, param=param, code=code)


def _place(under: str, path: Sequence[str | int]) -> str:
    """`metadata.key`, `event_types[0]`."""
    place = under
    for step in path:
        if isinstance(step, int):
            place += f"[{step}]"
        else:
            place += f".{step}" if place else step
    return place


def _bound(kind: str, param: str, value: object, facts: Mapping[str, Any]) -> tuple[str, str]:
    match kind:
        case "greater_than_equal":
            wording, code = "below minimum value. Expected a value >=", "integer_below_min_value"
            return (
                f"Invalid '{param}': integer {wording} {facts['ge']}, but got {value} instead.",
                code,
            )
        case "less_than_equal":
            wording, code = "above maximum value. Expected a value <=", "integer_above_max_value"
            return (
                f"Invalid '{param}': integer {wording} {facts['le']}, but got {value} instead.",
                code,
            )
        case "string_too_short" if value == "":
            length = "Expected a string with minimum length 1, but got an empty string instead."
            return f"Invalid '{param}': empty string. {length}", "empty_string"
        case "too_short" if value == []:
            length = "Expected an array with minimum length 1, but got an empty array instead."
            return f"Invalid '{param}': empty array. {length}", "empty_array"
        case "string_too_long":
            length = expected_length(str(value), facts["max_length"])
            return f"Invalid '{param}': string too long. {length}", "string_above_max_length"
        case _:
            return f"Invalid value for '{param}'.", "invalid_value"


def expected_length(value: str, limit: int) -> str:
    """The end of the wording for a text with too many code points."""
    return (
        f"Expected a string with maximum length {limit},"
        f" but got a string with length {len(value)} instead."
    )
