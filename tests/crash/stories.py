"""What clients do with a batch from its first request to its end, repeating what gets no answer.

Each story checks what its client sees: the right status, every line once in one of the two files, the
right counters. Processes may die meanwhile.
"""

import json
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest

from cli.simulator.settings import SimulatorSettings
from models.storage import CHUNK_BYTES
from tests.crash.node import KEY, Nodes
from tests.factories import input_line, json_lines

LINES = 16
MANY = 100
FAILING = "please fail"
_TRIES = 10
# Not used, but each client would read all certificates anew.
_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_PATIENCE_SECONDS = 60
_ENDED = {"completed", "failed", "expired", "cancelled"}


@dataclass(frozen=True)
class Stage:
    """Where a story is told: nodes, the model server's settings, and the database behind it all."""

    nodes: Nodes
    model_server: SimulatorSettings
    database: psycopg.Connection[Any]

    def wait_for(self, what: str, is_so: Callable[[], Any]) -> Any:
        """Wait until something has come about, replacing nodes that die meanwhile."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not (answer := is_so()):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {_PATIENCE_SECONDS} s: {what}")
            self.nodes.replace_the_dead()
            time.sleep(0.04)
        return answer

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The answer to a request that is sent again when its connection breaks or the answer is 503."""
        headers = {"authorization": f"Bearer {KEY}"} | request.pop("headers", {})
        for _ in range(_TRIES):
            self.nodes.replace_the_dead()
            # A connection of its own: what it shared could be with a process that is gone.
            with httpx.Client(
                base_url=self.nodes.base_url,
                headers=headers,
                timeout=30,
                trust_env=False,
                verify=_TLS,
            ) as client:
                try:
                    answer = client.request(method, path, **request)
                except httpx.TransportError:
                    continue
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return answer
        pytest.fail(f"{method} {path}: no answer to any of {_TRIES} tries")

    def said(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """The JSON of a good answer."""
        answer = self.ask(method, path, **request)
        assert answer.is_success, answer.text
        parsed: dict[str, Any] = answer.json()
        return parsed

    def count(self, what: str) -> int:
        """How many rows there are: `what` follows FROM."""
        statement = f"SELECT count(*) FROM {what}"  # noqa: S608  # a test's own words
        row = self.database.execute(statement.encode()).fetchone()
        assert row is not None
        return int(row[0])


def upload(stage: Stage, content: bytes) -> str:
    """A file, uploaded under a key; its id."""
    files = {"file": ("in.jsonl", content)}
    key = {"idempotency-key": "upload"}
    file = stage.said("POST", "files", data={"purpose": "batch"}, files=files, headers=key)
    return str(file["id"])


def create(stage: Stage, file_id: str) -> str:
    """A batch of a file, created under a key; its id."""
    body = {
        "input_file_id": file_id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch = stage.said("POST", "batches", json=body, headers={"idempotency-key": "create"})
    return str(batch["id"])


def content(lines: int = LINES) -> bytes:
    """Input lines; of five, the fifth is one that the model server refuses."""
    texts = (FAILING if number % 5 == 0 else "question" for number in range(1, lines + 1))
    return json_lines(
        *(
            input_line(number, body={"model": "m", "messages": [{"role": "user", "content": text}]})
            for number, text in enumerate(texts, start=1)
        )
    )


def wait_for_status(stage: Stage, batch_id: str, statuses: set[str]) -> dict[str, Any]:
    """The batch, once it has one of these statuses."""

    def has_it() -> dict[str, Any] | None:
        batch = stage.said("GET", f"batches/{batch_id}")
        return batch if batch["status"] in statuses else None

    found: dict[str, Any] = stage.wait_for(f"{batch_id} is one of {sorted(statuses)}", has_it)
    return found


def end_of(stage: Stage, batch_id: str) -> dict[str, Any]:
    """The batch, once it has ended."""
    return wait_for_status(stage, batch_id, _ENDED)


def lines_of(stage: Stage, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of an output or error file; none if there is no file."""
    if file_id is None:
        return []
    text = stage.ask("GET", f"files/{file_id}/content").raise_for_status().text
    return [json.loads(line) for line in text.splitlines()]


def check_lines(stage: Stage, batch: dict[str, Any], lines: int) -> None:
    """Every line once in one of the two files; counters and usage are what the files hold."""
    outputs = lines_of(stage, batch["output_file_id"])
    errors = lines_of(stage, batch["error_file_id"])
    found = Counter(line["custom_id"] for line in [*outputs, *errors])
    assert found == Counter(f"request-{number}" for number in range(1, lines + 1))
    ran = [line for line in errors if line["response"] is not None]
    assert batch["request_counts"] == {
        "total": lines,
        "completed": len(outputs),
        "failed": len(ran),
    }
    assert all(int(line["custom_id"].removeprefix("request-")) % 5 == 0 for line in ran)
    tokens = sum(line["response"]["body"]["usage"]["total_tokens"] for line in outputs)
    assert batch["usage"]["total_tokens"] == tokens


def check_all_ran(stage: Stage, batch: dict[str, Any], lines: int = LINES) -> None:
    """The batch is complete, and exactly the lines that were refused have failed."""
    assert batch["status"] == "completed"
    assert batch["request_counts"]["failed"] == lines // 5
    assert batch["request_counts"]["completed"] == lines - lines // 5
    check_lines(stage, batch, lines)


def a_batch_completes(stage: Stage) -> None:
    """Upload, create, wait, download."""
    batch_id = create(stage, upload(stage, content()))
    check_all_ran(stage, end_of(stage, batch_id))
    assert [batch["id"] for batch in stage.said("GET", "batches")["data"]] == [batch_id]
    inputs = stage.said("GET", "files", params={"purpose": "batch"})["data"]
    assert len(inputs) == 1


def a_batch_of_one_shard_completes(stage: Stage) -> None:
    """The same with few lines: the process that dies has the only shard."""
    batch_id = create(stage, upload(stage, content(5)))
    check_all_ran(stage, end_of(stage, batch_id), 5)


def a_batch_is_refused(stage: Stage) -> None:
    """One bad line: nothing runs."""
    file_id = upload(stage, content(3) + b'{"custom_id": "no method"}\n')
    batch = end_of(stage, create(stage, file_id))
    assert batch["status"] == "failed"
    assert [error["line"] for error in batch["errors"]["data"]] == [4]
    assert batch["output_file_id"] is batch["error_file_id"] is None


def a_batch_is_cancelled(stage: Stage) -> None:
    """Cancelled with some lines answered and some never called."""
    batch_id = _half_done(stage)
    assert stage.said("POST", f"batches/{batch_id}/cancel")["status"] in {"cancelling", "cancelled"}
    batch = end_of(stage, batch_id)
    assert batch["status"] == "cancelled"
    _check_half(stage, batch, "batch_cancelled")


def a_batch_expires(stage: Stage) -> None:
    """Its window closes with some lines answered and some never called."""
    batch_id = _half_done(stage)
    # The shortest window is ten seconds: too long to wait for.
    stage.database.execute("UPDATE batches SET expires_at = now() WHERE id = %s", [batch_id])
    batch = end_of(stage, batch_id)
    assert batch["status"] == "expired"
    _check_half(stage, batch, "batch_expired")


def _half_done(stage: Stage) -> str:
    """A batch at work of which some lines are answered; the others wait for the model server."""
    stage.model_server.latency = 0.1
    batch_id = create(stage, upload(stage, content(MANY)))

    def is_half_done() -> bool:
        return bool(stage.said("GET", f"batches/{batch_id}")["request_counts"]["completed"])

    stage.wait_for("some lines are answered", is_half_done)
    stage.model_server.latency = 20
    return batch_id


def _check_half(stage: Stage, batch: dict[str, Any], code: str) -> None:
    check_lines(stage, batch, MANY)
    never_ran = [
        line
        for line in lines_of(stage, batch["error_file_id"])
        if line["response"] is None and line["error"]["code"] == code
    ]
    counts = batch["request_counts"]
    assert len(never_ran) == MANY - counts["completed"] - counts["failed"] > 0
    assert counts["completed"] > 0


def a_batch_is_resumed(stage: Stage) -> None:
    """Paused before its first line, and resumed."""
    # So many that some wait still when the one who resumes it looks for them.
    stage.model_server.latency = 0.2
    batch_id = create(stage, upload(stage, content(MANY)))
    stage.said("POST", f"batches/{batch_id}/pause")
    wait_for_status(stage, batch_id, {"in_progress"})
    stage.said("POST", f"batches/{batch_id}/resume")
    stage.model_server.latency = 0
    check_all_ran(stage, end_of(stage, batch_id), MANY)


def a_file_comes_in_parts(stage: Stage) -> None:
    """An upload in two parts, whose chunks can be moved as they are."""
    # Blank lines make it large; they are no lines.
    whole = content()
    data = b"\n" * (CHUNK_BYTES - len(whole)) + whole + b"\n" * 100
    body = {
        "filename": "in.jsonl",
        "purpose": "batch",
        "bytes": len(data),
        "mime_type": "application/jsonl",
    }
    upload_id = stage.said("POST", "uploads", json=body)["id"]
    part_ids = [
        stage.said("POST", f"uploads/{upload_id}/parts", files={"data": ("part", part)})["id"]
        for part in (data[:CHUNK_BYTES], data[CHUNK_BYTES:])
    ]
    completed = stage.said("POST", f"uploads/{upload_id}/complete", json={"part_ids": part_ids})
    assert completed["status"] == "completed"
    file_id = completed["file"]["id"]
    assert stage.ask("GET", f"files/{file_id}/content").content == data
    assert len(stage.said("GET", "files")["data"]) == 1
    check_all_ran(stage, end_of(stage, create(stage, file_id)))


def an_upload_is_given_up(stage: Stage) -> None:
    """Cancelled after two of its parts have come: nothing is left of them."""
    body = {"filename": "x", "purpose": "vision", "bytes": 8, "mime_type": "text/plain"}
    upload_id = stage.said("POST", "uploads", json=body)["id"]
    for _ in range(2):
        stage.said("POST", f"uploads/{upload_id}/parts", files={"data": ("part", b"1234")})
    assert stage.said("POST", f"uploads/{upload_id}/cancel")["status"] == "cancelled"
    stage.wait_for("no part is left", lambda: stage.count("upload_parts") == 0)
    stage.wait_for("no byte is left", lambda: stage.count("file_chunks") == 0)
    assert stage.count("files") == 0


def failed_lines_are_retried(stage: Stage) -> None:
    """A batch of the lines that failed in another; the model server does not mind them any more."""
    batch_id = create(stage, upload(stage, content()))
    end_of(stage, batch_id)
    stage.model_server.bad_request_marker = None
    key = {"idempotency-key": "retry"}
    retried = stage.said("POST", f"batches/{batch_id}/retry", json={}, headers=key)["id"]
    batch = end_of(stage, retried)
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    custom_ids = [line["custom_id"] for line in lines_of(stage, batch["output_file_id"])]
    assert custom_ids == ["request-5", "request-10", "request-15"]
    assert len(stage.said("GET", "batches")["data"]) == 2


def a_file_is_deleted(stage: Stage) -> None:
    """Deleted for good, to the last byte."""
    file_id = upload(stage, content())
    answer = stage.ask("DELETE", f"files/{file_id}")
    # 404: the process died after it had deleted it.
    assert answer.status_code in {200, 404}
    assert stage.ask("GET", f"files/{file_id}").status_code == 404
    gone = "files WHERE purged_at IS NOT NULL"
    stage.wait_for("its bytes are gone", lambda: stage.count(gone) == 1)
    assert stage.count("file_chunks") == 0
