"""The official Python SDK. One program for both of its major versions; webhooks are managed from 3 on."""

import asyncio
import http.server
import json
import queue
import threading
import time
from pathlib import Path
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

ENDED = {"completed", "failed", "expired", "cancelled"}
CHAT = "/v1/chat/completions"
# By environment variables, as any program of its users. Any, for one program serves two versions.
client: Any = OpenAI()


def passed(step: str) -> None:
    print("passed", step, flush=True)


def chat(text: str) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}


def write_input(name: str, bodies: list[dict[str, Any]], url: str = CHAT) -> Path:
    lines = [
        {"custom_id": f"request-{number}", "method": "POST", "url": url, "body": body}
        for number, body in enumerate(bodies)
    ]
    path = Path(name)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def create(path: Path, endpoint: str = CHAT, **options: Any) -> Any:
    with path.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    assert uploaded.bytes == path.stat().st_size
    assert (uploaded.purpose, uploaded.status) == ("batch", "processed")
    return client.batches.create(
        input_file_id=uploaded.id, endpoint=endpoint, completion_window="24h", **options
    )


def end(batch: Any) -> Any:
    deadline = time.monotonic() + 120
    while batch.status not in ENDED:
        assert time.monotonic() < deadline, batch
        time.sleep(0.3)
        batch = client.batches.retrieve(batch.id)
    return batch


def lines_of(file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    by_id = {line["custom_id"]: line for line in lines}
    assert len(by_id) == len(lines), "a custom_id came twice"
    return by_id


def run_chat() -> Any:
    """A batch from upload to both files; one of its lines is refused by the model server."""
    bodies = [chat(f"question {number}") for number in range(200)] + [chat("refuse this line")]
    path = write_input("chat.jsonl", bodies)
    batch = create(path, metadata={"purpose": "clients"})
    assert batch.request_counts.total == 0
    batch = end(batch)
    assert batch.status == "completed", batch
    assert batch.metadata == {"purpose": "clients"}
    assert (batch.request_counts.total, batch.request_counts.completed) == (201, 200)
    passed("upload, create, poll")
    outputs, errors = lines_of(batch.output_file_id), lines_of(batch.error_file_id)
    assert set(outputs) == {f"request-{number}" for number in range(200)}
    tokens = 0
    for line in outputs.values():
        answer = ChatCompletion.model_validate(line["response"]["body"], strict=True)
        assert answer.choices[0].message.content
        assert answer.usage
        tokens += answer.usage.total_tokens
    assert batch.usage.total_tokens == tokens
    passed("output file")
    assert set(errors) == {"request-200"}
    assert errors["request-200"]["response"]["status_code"] == 400
    assert errors["request-200"]["response"]["body"]["error"]["message"]
    passed("error file")
    return batch


def run_other_endpoints() -> None:
    path = write_input(
        "responses.jsonl", [{"model": "gpt-4o-mini", "input": "hello"}] * 5, "/v1/responses"
    )
    batch = end(create(path, "/v1/responses"))
    outputs = lines_of(batch.output_file_id)
    assert len(outputs) == 5, batch
    for line in outputs.values():
        assert Response.model_validate(line["response"]["body"]).output_text
    body = {"model": "text-embedding-3-small", "input": ["one", "two"]}
    batch = end(
        create(write_input("vectors.jsonl", [body] * 5, "/v1/embeddings"), "/v1/embeddings")
    )
    outputs = lines_of(batch.output_file_id)
    assert [len(line["response"]["body"]["data"]) for line in outputs.values()] == [2] * 5, batch
    passed("responses and embeddings")


def cancel() -> None:
    """Cancel a batch that runs: every line is in one of the two files."""
    batch = create(write_input("long.jsonl", [chat(f"question {n}") for n in range(1_000)]))
    assert client.batches.cancel(batch.id).status in {"cancelling", "cancelled"}
    batch = end(batch)
    assert batch.status == "cancelled", batch
    outputs, errors = lines_of(batch.output_file_id), lines_of(batch.error_file_id)
    if batch.request_counts.total:
        assert len(outputs) + len(errors) == 1_000
        assert not outputs.keys() & errors.keys()
        assert len(outputs) == batch.request_counts.completed
        assert {line["error"]["code"] for line in errors.values()} == {"batch_cancelled"}
    assert client.batches.cancel(batch.id).status == "cancelled"
    passed("cancel")


def fail() -> None:
    """Bad lines fail the whole batch, and each is named."""
    path = Path("bad.jsonl")
    good = {"custom_id": "a", "method": "POST", "url": CHAT, "body": chat("hello")}
    path.write_text("\n".join([json.dumps(good), "not JSON", json.dumps(good)]))
    batch = end(create(path))
    assert batch.status == "failed", batch
    found = [(error.line, error.code) for error in batch.errors.data]
    assert found == [(2, "invalid_json_line"), (3, "duplicate_custom_id")], found
    assert batch.output_file_id is None
    assert batch.error_file_id is None
    passed("failed validation")


def refuse(completed: Any) -> None:
    """Refusals arrive as the SDK's own exceptions; it is told not to try a conflict again."""
    for call, kind in (
        (lambda: client.batches.retrieve("batch_none"), openai.NotFoundError),
        (lambda: client.files.content("file-none"), openai.NotFoundError),
        (lambda: client.batches.list(limit=101), openai.BadRequestError),
        (lambda: client.batches.cancel(completed.id), openai.ConflictError),
        (OpenAI(api_key="sk-wrong").batches.list, openai.AuthenticationError),
    ):
        try:
            call()
        except kind as error:
            assert error.body["message"], error  # type: ignore[index]
            assert error.request_id
            if kind is openai.ConflictError:
                assert error.response.headers["x-should-retry"] == "false"
        else:
            raise AssertionError(kind)
    passed("refusals")


def page() -> None:
    """Auto-paging gives every batch and file once, newest first."""
    batches = list(client.batches.list(limit=2))
    assert len({batch.id for batch in batches}) == len(batches) >= 5
    created = [batch.created_at for batch in batches]
    assert created == sorted(created, reverse=True)

    async def found() -> list[str]:
        async with AsyncOpenAI() as other:
            return [batch.id async for batch in other.batches.list(limit=3)]

    assert asyncio.run(found()) == [batch.id for batch in batches]
    files = list(client.files.list(purpose="batch", limit=2, order="asc"))
    assert len({file.id for file in files}) == len(files) >= 5
    passed("auto-paging")


def delete(batch: Any) -> None:
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"
    assert client.files.delete(batch.output_file_id).deleted
    try:
        client.files.retrieve(batch.output_file_id)
    except openai.NotFoundError:
        passed("delete files")
    else:
        raise AssertionError("the file is still there")


def upload_in_parts() -> None:
    path = write_input("parts.jsonl", [chat("x" * 1_000)] * 300)
    upload = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="batch", part_size=65_536
    )
    assert upload.status == "completed"
    assert upload.file.bytes == path.stat().st_size
    assert client.files.content(upload.file.id).content == path.read_bytes()
    batch = client.batches.create(
        input_file_id=upload.file.id, endpoint=CHAT, completion_window="24h"
    )
    assert len(lines_of(end(batch).output_file_id)) == 300
    pending = client.uploads.create(
        bytes=10, filename="in.jsonl", mime_type="application/jsonl", purpose="batch"
    )
    assert client.uploads.cancel(pending.id).status == "cancelled"
    passed("upload in parts")


class Receiver(http.server.BaseHTTPRequestHandler):
    """Where webhooks arrive."""

    received: "queue.Queue[tuple[str, dict[str, str]]]" = queue.Queue()

    def do_POST(self) -> None:
        size = int(self.headers["content-length"])
        self.received.put((self.rfile.read(size).decode(), dict(self.headers.items())))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def manage_webhooks() -> None:
    """Register a receiver, and read with the SDK what it is sent when a batch completes."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert "batch.completed" in client.webhooks.event_types.list().data
    url = f"http://127.0.0.1:{server.server_port}/hook"
    made = client.webhooks.create(name="mine", url=url, event_types=["batch.completed"])
    assert made.signing_secret
    assert client.webhooks.retrieve(made.id).url == url
    assert [one.id for one in client.webhooks.list(limit=1)] == [made.id]
    assert client.webhooks.update(made.id, name="ours").name == "ours"
    secret = client.webhooks.rotate_secret(made.id).signing_secret
    assert secret != made.signing_secret

    tried = client.webhooks.test(made.id, event_type="batch.completed")
    assert (tried.status_code, tried.success) == (204, True)
    payload, headers = Receiver.received.get(timeout=30)
    assert client.webhooks.unwrap(payload, headers, secret=secret).type == "batch.completed"

    batch = end(create(write_input("hook.jsonl", [chat("hello")])))
    payload, headers = Receiver.received.get(timeout=60)
    event = client.webhooks.unwrap(payload, headers, secret=secret)
    assert (event.type, event.data.id) == ("batch.completed", batch.id)
    assert client.webhooks.delete(made.id).deleted
    server.shutdown()
    passed("webhook endpoints")


if __name__ == "__main__":
    print("client openai", openai.__version__)
    assert "gpt-4o-mini" in [model.id for model in client.models.list()]
    finished = run_chat()
    run_other_endpoints()
    cancel()
    fail()
    refuse(finished)
    page()
    delete(finished)
    upload_in_parts()
    if hasattr(client.webhooks, "create"):
        manage_webhooks()
