"""Whole batches through a running engine, with the clients that people use, unmodified."""

import json
import time
from typing import Any

import openai
import pytest
from openai.types import (
    Batch,
    CreateEmbeddingResponse,
    ImagesResponse,
    ModerationCreateResponse,
    Video,
)
from openai.types.chat import ChatCompletion
from openai.types.completion import Completion
from openai.types.responses import Response
from pydantic import BaseModel

from tests.factories import json_lines
from tests.fixtures.engine import KEY, Engine

pytestmark = pytest.mark.timeout(240)
_ENDED = {"completed", "failed", "expired", "cancelled"}

_BODIES: dict[str, tuple[dict[str, Any], type[BaseModel]]] = {
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "hello"}]}, ChatCompletion),
    "/v1/completions": ({"prompt": "hello"}, Completion),
    "/v1/embeddings": ({"input": "hello"}, CreateEmbeddingResponse),
    "/v1/responses": ({"input": "hello"}, Response),
    "/v1/moderations": ({"input": "hello"}, ModerationCreateResponse),
    "/v1/images/generations": ({"prompt": "hello"}, ImagesResponse),
    "/v1/images/edits": (
        {"prompt": "hello", "images": [{"image_url": "data:image/png;base64,"}]},
        ImagesResponse,
    ),
    "/v1/videos": ({"prompt": "hello"}, Video),
}


@pytest.fixture(scope="module")
def client(engine: Engine) -> openai.OpenAI:
    """The official client, told nothing but where and with which key."""
    with engine.client as http:
        base_url = str(http.base_url)
    return openai.OpenAI(base_url=base_url, api_key=KEY)


def run_batch(client: openai.OpenAI, endpoint: str, lines: list[dict[str, Any]]) -> Batch:
    """Upload, create, poll to the end, as the guide has it."""
    upload = client.files.create(file=("in.jsonl", json_lines(*lines)), purpose="batch")
    batch = client.batches.create(
        input_file_id=upload.id,
        endpoint=endpoint,  # type: ignore[arg-type]  # one of the literals
        completion_window="24h",
        metadata={"suite": "conformance"},
    )
    deadline = time.monotonic() + 60
    while batch.status not in _ENDED:
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


@pytest.mark.parametrize("endpoint", _BODIES)
def test_every_endpoint(client: openai.OpenAI, endpoint: str) -> None:
    """Each line's answer is an object that the SDK itself accepts, and its tokens are counted."""
    body, answer_type = _BODIES[endpoint]
    lines = [
        {"custom_id": f"r-{n}", "method": "POST", "url": endpoint, "body": {"model": "m"} | body}
        for n in range(5)
    ]

    batch = run_batch(client, endpoint, lines)

    assert batch.status == "completed", batch.errors
    assert batch.model == "m"
    assert batch.error_file_id is None
    assert batch.metadata == {"suite": "conformance"}
    assert batch.request_counts is not None
    assert batch.request_counts.completed == 5
    assert batch.output_file_id is not None
    results = [
        json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()
    ]
    assert {result["custom_id"] for result in results} == {f"r-{n}" for n in range(5)}
    for result in results:
        assert list(result) == ["id", "custom_id", "response", "error"]
        assert result["error"] is None
        assert result["response"]["status_code"] == 200
        answer = answer_type.model_validate(result["response"]["body"])
        # A video that is still being made is no result.
        assert getattr(answer, "status", "completed") == "completed"
    assert batch.usage is not None
    usages = [result["response"]["body"].get("usage", {}) for result in results]
    assert batch.usage.total_tokens == sum(usage.get("total_tokens", 0) for usage in usages)


def test_lines_that_the_model_server_refuses(client: openai.OpenAI) -> None:
    """A refused line is in the error file with the server's own envelope; the batch completes."""
    lines = [
        {
            "custom_id": f"r-{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            # The simulated server refuses an empty list.
            "body": {"model": "m", "messages": [{"role": "user", "content": "x"}] if n else []},
        }
        for n in range(3)
    ]

    batch = run_batch(client, "/v1/chat/completions", lines)

    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
    assert batch.error_file_id is not None
    [line] = client.files.content(batch.error_file_id).text.splitlines()
    refused = json.loads(line)
    assert refused["custom_id"] == "r-0"
    assert refused["error"] is None
    assert refused["response"]["status_code"] == 400
    assert set(refused["response"]["body"]["error"]) == {"message", "type", "param", "code"}


def test_a_batch_with_no_success_has_no_output_file(client: openai.OpenAI) -> None:
    body = {"model": "m", "messages": []}
    line = {"custom_id": "r", "method": "POST", "url": "/v1/chat/completions", "body": body}

    batch = run_batch(client, "/v1/chat/completions", [line])

    assert batch.status == "completed"
    assert batch.output_file_id is None
    assert batch.error_file_id is not None


def test_bad_lines_fail_the_batch(client: openai.OpenAI) -> None:
    good = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    lines = [
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": good},
        {"custom_id": "b", "method": "POST", "url": "/v1/embeddings", "body": good},
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": good},
    ]

    batch = run_batch(client, "/v1/chat/completions", lines)

    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.code, error.line) for error in batch.errors.data] == [
        ("invalid_url", 2),
        ("duplicate_custom_id", 3),
    ]
    assert batch.request_counts is not None
    assert batch.request_counts.total == 0
    assert batch.in_progress_at is None


def test_an_unknown_input_file_fails_later(client: openai.OpenAI) -> None:
    batch = client.batches.create(
        input_file_id="file-nothing", endpoint="/v1/embeddings", completion_window="24h"
    )
    assert batch.status == "validating"

    deadline = time.monotonic() + 60
    while batch.status not in _ENDED:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)

    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    [error] = batch.errors.data
    assert (error.code, error.param, error.line) == ("invalid_request", "file_id", None)
    assert error.message is not None
    assert error.message.startswith("Cannot find file file-nothing")
