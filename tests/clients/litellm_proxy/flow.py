"""LiteLLM's proxy in front of Overnight, and the official SDK in front of the proxy.

Two ways to route: by the name of a model in the proxy's list, sent with each call, and by the provider,
which needs nothing from the client. The proxy is started as its users start it and stopped at the end.
"""

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import NotFoundError, OpenAI

ENDED = {"completed", "failed", "expired", "cancelled"}
CHAT = "/v1/chat/completions"
MASTER_KEY = "sk-proxy-0123456789"
STARTS_WITHIN_SECONDS = 200


def passed(step: str) -> None:
    print("passed", step, flush=True)


@contextmanager
def proxy() -> Iterator[str]:
    """The proxy's address, for as long as the block runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = Path(__file__).with_name("config.yaml")
    command = [str(Path(sys.executable).with_name("litellm")), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | {"LITELLM_MASTER_KEY": MASTER_KEY})
    try:
        deadline = time.monotonic() + STARTS_WITHIN_SECONDS
        while not answers(f"http://127.0.0.1:{port}/health/liveliness"):
            assert process.poll() is None, "the proxy has ended"
            assert time.monotonic() < deadline, "the proxy does not start"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  # the proxy's own
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def write_input(name: str, texts: list[str]) -> Path:
    bodies = [
        {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]} for text in texts
    ]
    lines = [
        {"custom_id": f"request-{number}", "method": "POST", "url": CHAT, "body": body}
        for number, body in enumerate(bodies)
    ]
    path = Path(name)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def create(client: Any, path: Path) -> Any:
    with path.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    assert uploaded.bytes == path.stat().st_size
    return client.batches.create(
        input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h", metadata={"k": "v"}
    )


def end(client: Any, batch: Any) -> Any:
    deadline = time.monotonic() + 120
    while batch.status not in ENDED:
        assert time.monotonic() < deadline, batch
        time.sleep(0.3)
        batch = client.batches.retrieve(batch.id)
    return batch


def lines_of(client: Any, file_id: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line for line in lines}


def run_batch(client: Any) -> Any:
    """A batch from upload to both files; the batch."""
    texts = [f"question {number}" for number in range(50)]
    batch = create(client, write_input("in.jsonl", [*texts, "refuse this line"]))
    batch = end(client, batch)
    assert (batch.status, batch.metadata) == ("completed", {"k": "v"}), batch
    assert (batch.request_counts.completed, batch.request_counts.failed) == (50, 1)
    outputs = lines_of(client, batch.output_file_id)
    assert set(outputs) == {f"request-{number}" for number in range(50)}
    assert all(line["response"]["body"]["choices"] for line in outputs.values())
    errors = lines_of(client, batch.error_file_id)
    assert errors["request-50"]["response"]["status_code"] == 400
    return batch


def cancel(client: Any) -> Any:
    batch = create(client, write_input("long.jsonl", [f"question {n}" for n in range(1_000)]))
    assert client.batches.cancel(batch.id).status in {"cancelling", "cancelled"}
    assert end(client, batch).status == "cancelled"
    return batch


def main() -> None:
    with proxy() as base_url:
        client: Any = OpenAI(base_url=base_url, api_key=MASTER_KEY, max_retries=0)
        completed = run_batch(client)
        passed("by provider: upload, create, poll, both files")
        cancelled = cancel(client)
        passed("cancel")
        listed = client.batches.list(limit=2).data
        assert [batch.id for batch in listed] == [cancelled.id, completed.id]
        passed("list")
        try:
            client.batches.retrieve("batch_none")
        except NotFoundError:
            passed("refusals")
        by_model = client.with_options(default_headers={"x-litellm-model": "gpt-4o-mini"})
        run_batch(by_model)
        passed("by model: upload, create, poll, both files")


if __name__ == "__main__":
    print("client litellm", importlib.metadata.version("litellm"))
    print("client openai", importlib.metadata.version("openai"))
    main()
