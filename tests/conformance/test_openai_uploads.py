"""The official `openai` client, unmodified: uploads in parts, and every object read by its own types."""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from models.lines import MAX_ECHO
from tests.conformance.test_openai_client import assert_conforms
from tests.factories import input_file
from tests.fixtures.client import LiveApi

KIB = 1024


@pytest.fixture
def client(live_api: LiveApi) -> Iterator[OpenAI]:
    """The client as a user makes it."""
    with OpenAI(base_url=live_api.base_url, api_key=live_api.api_key) as opened:
        yield opened


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_step_by_step_with_parts_sent_at_once(client: OpenAI) -> None:
    content = input_file(3000)
    size = len(content) // 5 + 1
    cut = [content[start : start + size] for start in range(0, len(content), size)]
    upload = client.uploads.create(
        bytes=len(content),
        filename="in.jsonl",
        mime_type="application/jsonl",
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert_conforms(upload)
    assert (upload.status, upload.expires_at - upload.created_at) == ("pending", 3600)
    with ThreadPoolExecutor(len(cut)) as pool:
        parts = list(
            pool.map(lambda data: client.uploads.parts.create(upload_id=upload.id, data=data), cut)
        )
    for part in parts:
        assert_conforms(part)
        assert part.upload_id == upload.id
    part_ids = [part.id for part in parts]
    done = client.uploads.complete(upload.id, part_ids=part_ids, md5=md5_of(content))
    assert_conforms(done)
    assert done.status == "completed"
    assert done.file is not None
    assert_conforms(done.file)
    assert done.file.expires_at == done.file.created_at + 3600
    assert client.files.content(done.file.id).content == content
    assert [file.id for file in client.files.list()] == [done.file.id]
    batch = client.batches.create(
        input_file_id=done.file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert batch.status == "validating"
    # As the client itself would, had the answer been lost.
    assert client.uploads.complete(upload.id, part_ids=part_ids) == done


@pytest.mark.parametrize("part_size", [256 * KIB, 100_000, None])
@pytest.mark.parametrize("kind", ["path", "bytes"])
def test_a_file_that_the_client_cuts(
    client: OpenAI, tmp_path: Path, kind: str, part_size: int | None
) -> None:
    content = input_file(5000)
    if kind == "path":
        path = tmp_path / "in.jsonl"
        path.write_bytes(content)
        upload = client.uploads.upload_file_chunked(
            file=path,
            mime_type="application/jsonl",
            purpose="batch",
            part_size=part_size,
            md5=md5_of(content),
        )
    else:
        upload = client.uploads.upload_file_chunked(
            file=content,
            filename="in.jsonl",
            bytes=len(content),
            mime_type="application/jsonl",
            purpose="batch",
            part_size=part_size,
        )
    assert_conforms(upload)
    assert upload.file is not None
    assert (upload.file.filename, upload.file.bytes) == ("in.jsonl", len(content))
    assert client.files.content(upload.file.id).content == content


def test_refusals_are_the_clients_own_exceptions(client: OpenAI) -> None:
    upload = client.uploads.create(
        bytes=4, filename="x", mime_type="text/plain", purpose="assistants"
    )
    part = client.uploads.parts.create(upload_id=upload.id, data=io.BytesIO(b"abc"))
    with pytest.raises(openai.BadRequestError) as refusal:
        client.uploads.complete(upload.id, part_ids=[part.id])
    assert refusal.value.param == "part_ids"
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="status 'cancelled'"):
        client.uploads.parts.create(upload_id=upload.id, data=b"d")
    with pytest.raises(openai.NotFoundError) as missing:
        client.uploads.cancel("upload_" + "x" * MAX_ECHO)
    assert missing.value.param == "id"
