"""What the simulated server says no with, in OpenAI's error envelope and wording."""

import orjson


class Refusal(Exception):
    """A call that gets an error instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        """Keep the status and the finished body."""
        super().__init__(message)
        self.status = status
        self.body = orjson.dumps(
            {"error": {"message": message, "type": kind, "param": param, "code": code}}
        )


def missing(param: str) -> Refusal:
    """A required parameter is not there."""
    return Refusal(
        400,
        f"Missing required parameter: '{param}'.",
        code="missing_required_parameter",
        param=param,
    )


def wrong_type(param: str, expected: str, value: object) -> Refusal:
    """A parameter is of another JSON type than it must be."""
    return Refusal(
        400,
        f"Invalid type for '{param}': expected {expected}, but got {_json_kind(value)} instead.",
        code="invalid_type",
        param=param,
    )


def out_of_bounds(param: str, low: int, high: int, value: int) -> Refusal:
    """A number is below or above what is allowed."""
    if value < low:
        side, code, bound = "below minimum", "integer_below_min_value", f">= {low}"
    else:
        side, code, bound = "above maximum", "integer_above_max_value", f"<= {high}"
    return Refusal(
        400,
        f"Invalid '{param}': integer {side} value. "
        f"Expected a value {bound}, but got {value} instead.",
        code=code,
        param=param,
    )


def empty_array(param: str) -> Refusal:
    """A list that must hold something is empty."""
    return Refusal(
        400,
        f"Invalid '{param}': empty array. "
        "Expected an array with minimum length 1, but got an empty array instead.",
        code="empty_array",
        param=param,
    )


def unknown_model(model: str) -> Refusal:
    """The model is not among those served."""
    return Refusal(
        404,
        f"The model '{model}' does not exist or you do not have access to it.",
        code="model_not_found",
        param="model",
    )


def unknown_video(video_id: str) -> Refusal:
    """No call has begun this video, or it has been forgotten."""
    return Refusal(404, f"Video with id '{video_id}' not found.", param="video_id")


def failure(status: int) -> Refusal:
    """The fault that was asked for by option."""
    if status == 429:
        return Refusal(
            429,
            "Rate limit reached (simulated).",
            kind="requests",
            code="rate_limit_exceeded",
        )
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return Refusal(status, f"The simulated server was told to fail with {status}.", kind=kind)


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {int: "an integer", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")
