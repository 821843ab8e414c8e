"""The official `openai` client, unmodified: every call, and every object read by its own types."""

import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.pagination import SyncCursorPage
from openai.types import Batch, FileDeleted, FileObject, Model
from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model

from models.database import Database
from models.lifecycle import BatchStatus
from tests.factories import input_file, make_batch, make_file
from tests.fixtures.client import LiveApi, RecordingBell


@pytest.fixture
def client(live_api: LiveApi) -> Iterator[OpenAI]:
    """The client as a user makes it."""
    with OpenAI(base_url=live_api.base_url, api_key=live_api.api_key) as opened:
        yield opened


@pytest.fixture
async def async_client(live_api: LiveApi) -> AsyncIterator[AsyncOpenAI]:
    """The asynchronous client as a user makes it."""
    async with AsyncOpenAI(base_url=live_api.base_url, api_key=live_api.api_key) as opened:
        yield opened


def assert_conforms(answer: BaseModel) -> None:
    """Check an answer strictly against the client's own type.

    The client itself builds objects without validating them, and would take a float for a time.
    """
    kind = type(answer)
    found = answer.model_dump(mode="json", warnings="error")
    TypeAdapter(kind).validate_python(found, strict=True)
    assert not (answer.model_extra or {}).keys() - {"shutdown_date"}
    missing = set(kind.model_fields) - answer.model_fields_set
    assert not missing, f"{kind.__name__} lacks {missing}"


def upload(client: OpenAI, content: bytes | None = None) -> FileObject:
    return client.files.create(file=("in.jsonl", content or input_file()), purpose="batch")


def create(client: OpenAI, **options: Any) -> Batch:
    return client.batches.create(
        input_file_id=options.pop("input_file_id", "file-x"),
        endpoint="/v1/chat/completions",
        completion_window="24h",
        **options,
    )


# Files


@pytest.mark.parametrize("kind", ["bytes", "path", "open file", "named", "memory"])
def test_files_of_every_kind(client: OpenAI, tmp_path: Path, kind: str) -> None:
    content = input_file(200)
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with path.open("rb") as opened:
        given: dict[str, Any] = {
            "bytes": content,
            "path": path,
            "open file": opened,
            "named": ("in.jsonl", content, "application/jsonl"),
            "memory": io.BytesIO(content),
        }
        file = client.files.create(file=given[kind], purpose="batch")
    assert_conforms(file)
    assert file.bytes == len(content)
    assert file.filename == ("upload" if kind in {"bytes", "memory"} else "in.jsonl")
    assert file.status == "processed"
    assert client.files.content(file.id).read() == content


def test_a_file_with_a_life(client: OpenAI) -> None:
    file = client.files.create(
        file=input_file(),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert file.expires_at == file.created_at + 7200


def test_showing_and_deleting_a_file(client: OpenAI) -> None:
    file = upload(client)
    assert client.files.retrieve(file.id) == file
    deleted = client.files.delete(file.id)
    assert_conforms(deleted)
    assert deleted == FileDeleted(id=file.id, object="file", deleted=True)
    with pytest.raises(openai.NotFoundError, match="No such File object") as caught:
        client.files.retrieve(file.id)
    assert caught.value.param == "id"
    assert (caught.value.request_id or "").startswith("req_")


def test_waiting_for_a_file_ends_at_once(client: OpenAI) -> None:
    file = upload(client)
    assert client.files.wait_for_processing(file.id, max_wait_seconds=0) == file


async def test_listing_files(client: OpenAI, database: Database) -> None:
    ids = [(await make_file(database, b"{}")).id for _ in range(7)]
    page = client.files.list(limit=3)
    assert isinstance(page, SyncCursorPage)
    for file in page.data:
        assert_conforms(file)
    assert [file.id for file in client.files.list(limit=3)] == ids[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc", purpose="batch")] == ids
    assert [file.id for file in client.files.list(purpose="evals")] == []


async def test_deleting_while_listing(client: OpenAI, database: Database) -> None:
    for _ in range(7):
        await make_file(database, b"{}")
    for file in client.files.list(limit=3):
        client.files.delete(file.id)
    assert client.files.list().data == []


def test_downloads(client: OpenAI, tmp_path: Path) -> None:
    content = input_file(5000)
    file = upload(client, content)
    assert client.files.content(file.id).text == content.decode()
    path = tmp_path / "out.jsonl"
    client.files.content(file.id).write_to_file(path)
    assert path.read_bytes() == content
    with client.files.with_streaming_response.content(file.id) as response:
        assert b"".join(response.iter_bytes()) == content


# Batches


def test_a_batch(client: OpenAI, bell: RecordingBell) -> None:
    file = upload(client)
    batch = create(
        client,
        input_file_id=file.id,
        metadata={"customer": "user_123"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert_conforms(batch)
    assert batch.status == "validating"
    assert batch.input_file_id == file.id
    assert batch.metadata == {"customer": "user_123"}
    assert batch.request_counts is not None
    assert batch.request_counts.total == 0
    assert client.batches.retrieve(batch.id) == batch
    assert len(bell.rings) == 1


@pytest.mark.parametrize("status", list(BatchStatus))
async def test_a_batch_of_every_status(
    client: OpenAI, database: Database, status: BatchStatus
) -> None:
    usage = {
        "input_tokens": 10,
        "cached_tokens": 4,
        "output_tokens": 20,
        "reasoning_tokens": 5,
        "total_tokens": 30,
    }
    errors = [{"code": "c", "message": "m", "param": None, "line": 1}]
    values: dict[BatchStatus, dict[str, Any]] = {
        BatchStatus.COMPLETED: {"usage": usage, "output_file_id": "file-x"},
        BatchStatus.FAILED: {"errors": errors},
    }
    made = await make_batch(database, status=status, **values.get(status, {}))
    shown = client.batches.retrieve(made.id)
    assert_conforms(shown)
    assert shown.status == status
    if shown.usage is not None:
        assert_conforms(shown.usage)
        assert shown.usage.input_tokens_details.cached_tokens == 4
    if shown.errors is not None:
        assert_conforms(shown.errors)
        assert_conforms((shown.errors.data or [])[0])


async def test_listing_batches(client: OpenAI, database: Database) -> None:
    ids = [(await make_batch(database)).id for _ in range(7)]
    for limit in (1, 3, 7, 100):
        assert [batch.id for batch in client.batches.list(limit=limit)] == ids[::-1]
    page = client.batches.list(limit=3)
    assert page.has_more
    assert page.get_next_page().data[0].id == ids[3]


def test_cancelling(client: OpenAI) -> None:
    batch = create(client)
    cancelled = client.batches.cancel(batch.id)
    assert_conforms(cancelled)
    assert cancelled.status == "cancelling"
    assert client.batches.cancel(batch.id) == cancelled


async def test_a_conflict_is_not_tried_again(live_api: LiveApi, database: Database) -> None:
    made = await make_batch(database, status=BatchStatus.COMPLETED)
    calls = 0

    def count(_: httpx.Request) -> None:
        nonlocal calls
        calls += 1

    with (
        httpx.Client(event_hooks={"request": [count]}) as http,
        OpenAI(base_url=live_api.base_url, api_key=live_api.api_key, http_client=http) as client,
        pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"),
    ):
        client.batches.cancel(made.id)
    assert calls == 1


# Refusals


def test_refusals(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"Must be \.jsonl"):
        client.files.create(file=b"notes", purpose="batch")
    with pytest.raises(openai.BadRequestError, match="Supported values are") as bad_endpoint:
        client.batches.create(
            input_file_id="file-x",
            endpoint="/v1/audio/speech",  # type: ignore[arg-type]
            completion_window="24h",
        )
    assert (bad_endpoint.value.code, bad_endpoint.value.param) == ("invalid_value", "endpoint")
    with pytest.raises(openai.NotFoundError, match="No batch found with id 'batch_x'"):
        client.batches.retrieve("batch_x")
    with pytest.raises(openai.NotFoundError, match="No such File object: file-x"):
        client.files.content("file-x")
    with pytest.raises(openai.BadRequestError, match=r"<= 100, but got 101"):
        client.batches.list(limit=101)
    with pytest.raises(openai.BadRequestError, match="Missing required parameter") as missing:
        client.post("/batches", cast_to=Batch, body={})
    assert missing.value.type == "invalid_request_error"


def test_a_wrong_key(live_api: LiveApi) -> None:
    with (
        OpenAI(base_url=live_api.base_url, api_key="sk-wrong") as client,
        pytest.raises(openai.AuthenticationError, match="Incorrect API key") as caught,
    ):
        client.files.create(file=input_file(10_000), purpose="batch")
    assert caught.value.code == "invalid_api_key"


# Models


def test_models(client: OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["gpt-4o-mini", "meta-llama/Llama-3"]
    for model in models:
        assert_conforms(model)
        assert client.models.retrieve(model.id) == model
    assert isinstance(models[0], Model)
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("unknown")
    assert caught.value.code == "model_not_found"


# The asynchronous client


async def test_the_asynchronous_client(async_client: AsyncOpenAI, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(input_file(100))
    file = await async_client.files.create(file=path, purpose="batch")
    batch = await async_client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={},
    )
    assert_conforms(batch)
    assert batch.metadata == {}
    assert [one.id async for one in async_client.batches.list(limit=1)] == [batch.id]
    assert [one.id async for one in async_client.files.list()] == [file.id]
    assert (await async_client.batches.cancel(batch.id)).status == "cancelling"
    content = await async_client.files.content(file.id)
    assert content.content == path.read_bytes()
    assert (await async_client.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await async_client.files.content(file.id)


def test_the_check_of_conformance_is_strict() -> None:
    loose = create_model("Loose", __config__=ConfigDict(extra="allow"), at=(int, ...))
    assert_conforms(loose(at=1))
    for wrong in (loose.model_construct(at=1.5), loose.model_construct(at=None)):
        with pytest.raises(Exception, match="at"):
            assert_conforms(wrong)
