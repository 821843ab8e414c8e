"""Reading a request's body.

Each function returns a checked value, or raises the refusal the real API would give.
"""

from typing import Any

from cli.simulator import refusal
from cli.simulator.settings import SimulatorSettings


def check_model(body: dict[str, Any], settings: SimulatorSettings) -> None:
    """The model is named, and served."""
    model = body.get("model")
    if model is None:
        raise refusal.missing("model")
    if not isinstance(model, str):
        raise refusal.wrong_type("model", "a string", model)
    if settings.models and model not in settings.models:
        raise refusal.unknown_model(model)


def required_text(body: dict[str, Any], param: str) -> str:
    """A string that is there."""
    value = body.get(param)
    if value is None:
        raise refusal.missing(param)
    if not isinstance(value, str):
        raise refusal.wrong_type(param, "a string", value)
    return value


def required_list(body: dict[str, Any], param: str) -> list[Any]:
    """A list that is there and holds something."""
    value = body.get(param)
    if value is None:
        raise refusal.missing(param)
    if not isinstance(value, list):
        raise refusal.wrong_type(param, "an array of objects", value)
    if not value:
        raise refusal.empty_array(param)
    return value


def read_inputs(body: dict[str, Any], param: str) -> list[str]:
    """One or many inputs as strings.

    Token ids are written out, so that they too get an answer of their own.
    """
    value = body.get(param)
    if isinstance(value, str):
        return [value]
    if value is not None and not isinstance(value, list):
        raise refusal.wrong_type(param, "a string or an array", value)
    inputs = required_list(body, param)
    if isinstance(inputs[0], int):
        return [_written_out(inputs, param)]
    return [one if isinstance(one, str) else _written_out(one, param) for one in inputs]


def read_integer(body: dict[str, Any], param: str, default: int, high: int) -> int:
    """A whole number from 1 to `high`, or the default where there is none."""
    value = body.get(param)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise refusal.wrong_type(param, "an integer", value)
    if not 1 <= value <= high:
        raise refusal.out_of_bounds(param, 1, high, value)
    return value


def _written_out(tokens: Any, param: str) -> str:
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise refusal.wrong_type(param, "strings or arrays of integers", tokens)
    return " ".join(map(str, tokens))
