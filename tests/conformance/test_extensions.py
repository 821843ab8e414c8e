"""The extensions against a running engine: a batch is paused, followed, resumed, its failure retried."""

import json
from typing import Any

import httpx
import pytest

from tests.fixtures.engine import Engine, assert_each_line_once, wait_for

pytestmark = pytest.mark.timeout(240)
_LINES = 300


def progress(client: httpx.Client, batch_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = client.get(f"batches/{batch_id}/progress").raise_for_status().json()
    return answer


def test_pause_follow_resume_and_retry(engine: Engine) -> None:
    engine.witness.forget()
    settings = engine.upstream.settings
    # Long enough for a pause to come in between; and one line that never succeeds.
    settings.latency, settings.fail_marker = 1.0, 'question 7"'
    try:
        batch_id = engine.create_batch(_LINES)
        with engine.client as client:
            followed = follow_through_a_pause(engine, client, batch_id)
        batch = engine.wait_for_end(batch_id)
    finally:
        settings.latency, settings.fail_marker = 0.2, None

    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": _LINES, "completed": _LINES - 1, "failed": 1}
    assert_each_line_once(engine, batch)
    finished = {line["custom_id"] for line in engine.lines_of(batch["output_file_id"])}
    assert len(followed) == len(set(followed)) > 50
    assert set(followed) <= finished
    # The pause let every call end, so none was made again.
    assert engine.witness.repeated() == 0

    with engine.client as client:
        retried = client.post(f"batches/{batch_id}/retry").raise_for_status().json()
    second = engine.wait_for_end(retried["id"])
    assert second["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    [line] = engine.lines_of(second["output_file_id"])
    assert line["custom_id"] == "request-7"


def follow_through_a_pause(engine: Engine, client: httpx.Client, batch_id: str) -> list[str]:
    """The custom ids of the output lines that were read while the batch ran, was paused, ran again."""
    engine.wait_for_lines(batch_id, 50)
    assert client.post(f"batches/{batch_id}/pause").raise_for_status().json()["status"] == (
        "in_progress"
    )
    wait_for("no call is in flight", lambda: progress(client, batch_id)["in_flight"] == 0)
    told = progress(client, batch_id)
    assert (told["paused"], told["status"]) == (True, "in_progress")
    assert told["request_counts"]["completed"] < _LINES - 1

    # While others run, this one rests.
    engine.wait_for_end(engine.create_batch(20))
    assert progress(client, batch_id)["request_counts"] == told["request_counts"]
    seen: list[str] = []

    def read() -> httpx.Response:
        """What is new; once the batch has ended its file is another thing, and is not counted."""
        answer = client.get(f"batches/{batch_id}/output", params={"offset": len(seen)})
        if "x-incomplete" in answer.raise_for_status().headers:
            lines = answer.text.splitlines()
            seen.extend(json.loads(line)["custom_id"] for line in lines)
            assert int(answer.headers["x-last-line"]) == len(seen)
        return answer

    assert read().headers["x-incomplete"] == "true"
    completed = told["request_counts"]["completed"]
    wait_for("all that is recorded is given", lambda: read().is_success and len(seen) == completed)

    client.post(f"batches/{batch_id}/resume").raise_for_status()
    wait_for("the batch has ended", lambda: "x-incomplete" not in read().headers)
    return seen
