"""What every answer of the API has to be, in one place."""

import re
from typing import Any

import httpx


def assert_stamped(response: httpx.Response) -> None:
    """Check the headers that every answer has."""
    assert re.fullmatch(r"req_[0-9a-f]{32}", response.headers["x-request-id"])
    assert response.headers["openai-version"] == "2020-10-01"
    assert response.headers["openai-organization"] == "org-overnight"
    assert response.headers["openai-processing-ms"].isdecimal()


def ok(response: httpx.Response) -> dict[str, Any]:
    """The body of a success."""
    assert response.status_code == 200, response.text
    assert_stamped(response)
    body: dict[str, Any] = response.json()
    return body


def refusal(
    response: httpx.Response,
    status: int,
    message: str,
    *,
    type_: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
) -> None:
    """Check the whole of a refusal."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert_stamped(response)
    error = {"message": message, "type": type_, "param": param, "code": code}
    assert response.json() == {"error": error}
