"""Instructor's batches: each line asks for an answer of a schema, and every answer is of it."""

import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any

from instructor.batch import BatchProcessor, extract_results, filter_errors, filter_successful
from pydantic import BaseModel


class User(BaseModel):
    """What is to be extracted."""

    name: str
    age: int


def passed(step: str) -> None:
    print("passed", step, flush=True)


def questions(count: int) -> list[list[dict[str, Any]]]:
    return [
        [
            {"role": "system", "content": "Extract user information from text."},
            {"role": "user", "content": f"I am number {number}, and {number} years old."},
        ]
        for number in range(count)
    ]


def end(processor: Any, batch_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while True:
        status: dict[str, Any] = processor.get_batch_status(batch_id)
        if status["status"] in {"completed", "failed", "expired", "cancelled"}:
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.3)


def main() -> None:
    processor: Any = BatchProcessor("openai/gpt-4o-mini", User)
    processor.create_batch_from_messages(
        file_path="requests.jsonl", messages_list=questions(100), max_tokens=200, temperature=0.1
    )
    first = json.loads(Path("requests.jsonl").read_text().splitlines()[0])
    assert first["body"]["response_format"]["json_schema"]["strict"] is True
    batch_id = processor.submit_batch("requests.jsonl")
    status = end(processor, batch_id)
    assert status["status"] == "completed", status
    assert status["request_counts"] == {"total": 100, "completed": 100, "failed": 0}
    passed("submit_batch, get_batch_status")
    results = processor.get_results(batch_id, file_path="results.jsonl")
    assert not filter_errors(results)
    assert {one.custom_id for one in filter_successful(results)} == {
        f"request-{number}" for number in range(100)
    }
    assert all(isinstance(user, User) for user in extract_results(results))
    assert len(Path("results.jsonl").read_text().splitlines()) == 100
    passed("get_results: every answer is of its schema")

    buffer = processor.create_batch_from_messages(messages_list=questions(1_000))
    cancelled_id = processor.submit_batch(buffer, metadata={"k": "v"})
    assert processor.cancel_batch(cancelled_id)["status"] in {"cancelling", "cancelled"}
    assert end(processor, cancelled_id)["status"] == "cancelled"
    passed("submit_batch from memory, cancel_batch")
    listed = processor.list_batches(limit=2)
    assert [one.id for one in listed] == [cancelled_id, batch_id]
    passed("list_batches")


if __name__ == "__main__":
    print("client instructor", importlib.metadata.version("instructor"))
    print("client openai", importlib.metadata.version("openai"))
    main()
