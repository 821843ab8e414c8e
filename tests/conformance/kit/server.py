"""A server as the kit sees it: an address, keys, and what is done with it over and over."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import httpx
import openai

from tests.conformance.kit.expect import ok

CHAT = "/v1/chat/completions"
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
DAY_SECONDS = 86_400
PATIENCE_SECONDS = float(os.environ.get("PATIENCE_SECONDS", "90"))
_POLL_SECONDS = 0.1


@dataclass
class Server:
    """Any server of the contract; nothing of it is known but what its answers say."""

    base_url: str
    api_key: str
    other_api_key: str | None = None
    """A key of another project, for the cases of isolation."""
    model: str = "gpt-4o-mini"
    models: dict[str, str] = field(default_factory=dict)
    """Models of single endpoints, where they differ."""

    @cached_property
    def http(self) -> httpx.Client:
        """A client with the key. Paths are relative to the base URL."""
        return self._client(self.api_key)

    @cached_property
    def other(self) -> httpx.Client:
        """A client of another project."""
        assert self.other_api_key is not None
        return self._client(self.other_api_key)

    @cached_property
    def anonymous(self) -> httpx.Client:
        """A client without a key."""
        return self._client(None)

    @cached_property
    def sdk(self) -> openai.OpenAI:
        """The official client, told nothing but where and with which key."""
        return openai.OpenAI(base_url=self.base_url, api_key=self.api_key, timeout=60)

    def _client(self, key: str | None) -> httpx.Client:
        return httpx.Client(
            base_url=self.base_url.rstrip("/") + "/",
            headers={} if key is None else {"authorization": f"Bearer {key}"},
            timeout=60,
            trust_env=False,
        )

    def close(self) -> None:
        """Close what was opened."""
        for name in ("http", "other", "anonymous", "sdk"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    def post(self, path: str, body: object = None, **options: Any) -> httpx.Response:
        """POST a JSON body."""
        return self.http.post(path, json=body, **options)

    def send_file(
        self,
        content: bytes,
        *,
        purpose: str | None = "batch",
        filename: str = "in.jsonl",
        client: httpx.Client | None = None,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """POST a file; `fields` are further fields of the form."""
        form = {} if purpose is None else {"purpose": purpose}
        return (client or self.http).post(
            "files",
            data=form | dict(fields or {}),
            files={"file": (filename, content)},
            headers=headers,
        )

    def upload(self, content: bytes, **options: Any) -> dict[str, Any]:
        """A file that the server has taken."""
        file: dict[str, Any] = ok(self.send_file(content, **options))
        return file

    def upload_lines(self, *lines: object) -> dict[str, Any]:
        """A file of these lines."""
        return self.upload(json_lines(*lines))

    def batch_body(self, input_file_id: str = "file-none", **changes: Any) -> dict[str, Any]:
        """The body of a good creation, with some of it changed."""
        body = {
            "input_file_id": input_file_id,
            "endpoint": CHAT,
            "completion_window": "24h",
        }
        return body | changes

    def create(self, input_file_id: str = "file-none", **changes: Any) -> dict[str, Any]:
        """A batch that the server has taken."""
        batch: dict[str, Any] = ok(self.post("batches", self.batch_body(input_file_id, **changes)))
        return batch

    def batch(self, batch_id: str) -> dict[str, Any]:
        """A batch as it is now."""
        batch: dict[str, Any] = ok(self.http.get(f"batches/{batch_id}"))
        return batch

    def ended(self, batch_id: str) -> dict[str, Any]:
        """A batch, when it has ended."""
        for batch in self.polled(batch_id):
            if batch["status"] in ENDED:
                return batch
        raise AssertionError(f"{batch_id} did not end within {PATIENCE_SECONDS} s")

    def polled(self, batch_id: str) -> Iterator[dict[str, Any]]:
        """A batch again and again, for so long and no longer."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            yield self.batch(batch_id)
            time.sleep(_POLL_SECONDS)

    def run(self, content: bytes, **changes: Any) -> dict[str, Any]:
        """Upload, create, and wait for the end."""
        batch = self.create(self.upload(content)["id"], **changes)
        return self.ended(batch["id"])

    def errors_of(self, content: bytes, **changes: Any) -> list[dict[str, Any]]:
        """The validation errors of a batch that must fail."""
        batch = self.run(content, **changes)
        assert batch["status"] == "failed", f"the batch is {batch['status']}"
        errors: list[dict[str, Any]] = batch["errors"]["data"]
        return errors

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of an output or error file; none if there is no file."""
        if file_id is None:
            return []
        response = self.http.get(f"files/{file_id}/content")
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.content.split(b"\n") if line]

    def model_for(self, endpoint: str) -> str:
        """The model that lines of an endpoint name."""
        return self.models.get(endpoint, self.model)

    def line(self, custom_id: str = "r-1", endpoint: str = CHAT, **body: Any) -> dict[str, Any]:
        """A good line, with some of its body changed; `None` takes a member out."""
        whole = {"model": self.model_for(endpoint)} | INPUTS[endpoint] | body
        kept = {name: value for name, value in whole.items() if value is not None}
        return {"custom_id": custom_id, "method": "POST", "url": endpoint, "body": kept}

    @contextmanager
    def files(self, count: int, **options: Any) -> Iterator[list[dict[str, Any]]]:
        """Some small files, oldest first, that are deleted afterwards."""
        made = [
            self.upload(json_lines(self.line()), filename=f"page-{number}.jsonl", **options)
            for number in range(count)
        ]
        try:
            yield made
        finally:
            for file in made:
                self.http.delete(f"files/{file['id']}")


INPUTS: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "hello"},
    CHAT: {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/embeddings": {"input": "hello"},
    "/v1/completions": {"prompt": "hello"},
    "/v1/moderations": {"input": "hello"},
    "/v1/images/generations": {"prompt": "a lighthouse"},
    "/v1/images/edits": {
        "prompt": "at night",
        "images": [{"image_url": "data:image/png;base64,iVBORw0KGgo="}],
    },
    "/v1/videos": {"prompt": "a lighthouse at night"},
}
"""What a line of each endpoint asks for, besides its model."""


def json_lines(*lines: object) -> bytes:
    """JSON lines, each with its end."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def pages(client: httpx.Client, path: str, limit: int, **query: Any) -> Iterator[dict[str, Any]]:
    """A list's pages, as an SDK walks through them."""
    after: dict[str, Any] = {}
    while True:
        page = ok(client.get(path, params={"limit": limit} | query | after))
        yield page
        if not page["has_more"] or not page["data"]:
            return
        after = {"after": page["data"][-1]["id"]}


def ids(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ids of some objects."""
    return [item["id"] for item in items]
