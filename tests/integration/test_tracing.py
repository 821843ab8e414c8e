"""One trace leads from a client's request to each call that was made for it, and through the logs."""

import io
import json
import logging
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import select

from models import Batch, tracing
from models.database import Database
from models.lifecycle import BatchStatus
from models.logline import JsonLine
from tests.answers import ok
from tests.factories import input_file
from tests.fixtures.runtime import Reply, ScriptedServer, run_to_end, started_batch
from worker.runtime import Runtime
from worker.stages.validate import validate_batch

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """What has been traced."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.trace_with(provider)
    yield exporter
    tracing.stop_tracing()


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [each for each in spans.get_finished_spans() if each.name == name]


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def parent_of(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


async def test_from_the_client_to_each_call(
    spans: InMemorySpanExporter,
    api_client: httpx.AsyncClient,
    app: object,
    database: Database,
    scripted_runtime: Runtime,
    scripted: ScriptedServer,
) -> None:
    del app
    scripted.replies = [Reply(503)]
    file = ok(
        await api_client.post(
            "/v1/files", files={"file": ("b.jsonl", input_file(7))}, data={"purpose": "batch"}
        )
    )
    response = await api_client.post(
        "/v1/batches",
        json={
            "input_file_id": file["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        },
        headers={"traceparent": f"00-{TRACE}-{SPAN}-01"},
    )
    batch = await batch_of(database, ok(response)["id"])
    await validate_batch(scripted_runtime, batch.pk)
    ended = await run_to_end(scripted_runtime, batch)
    assert ended.status == BatchStatus.COMPLETED

    (create,) = named(spans, "POST /v1/batches")
    assert parent_of(create) == SPAN
    shards, calls = named(spans, "shard"), named(spans, "POST /v1/chat/completions")
    of_batch = [*named(spans, "validate"), *shards, *named(spans, "finalize")]
    assert [each.name for each in of_batch] == ["validate", "shard", "shard", "finalize"]
    assert {parent_of(each) for each in of_batch} == {id_of(create)}
    assert {parent_of(each) for each in calls} == {id_of(each) for each in shards}
    for each in [create, *of_batch, *calls]:
        assert each.context is not None
        assert f"{each.context.trace_id:032x}" == TRACE

    told = sorted(request.headers["traceparent"] for request in scripted.requests)
    assert told == sorted(f"00-{TRACE}-{id_of(each)}-01" for each in calls)
    assert len(calls) == 8
    statuses = [each.attributes["http.response.status_code"] for each in calls if each.attributes]
    assert sorted(map(str, statuses)) == ["200"] * 7 + ["503"]
    for each in spans.get_finished_spans():
        assert "question" not in each.to_json()


async def batch_of(database: Database, batch_id: str) -> Batch:
    async with database.begin() as session:
        return (await session.scalars(select(Batch).where(Batch.id == batch_id))).one()


async def test_off_nothing_is_told(scripted_runtime: Runtime, scripted: ScriptedServer) -> None:
    batch = await started_batch(scripted_runtime, input_file(3))
    assert batch.traceparent is None
    await run_to_end(scripted_runtime, batch)
    assert len(scripted.requests) == 3
    assert not any("traceparent" in request.headers for request in scripted.requests)


async def test_what_a_shard_logs_names_it_and_its_batch(scripted_runtime: Runtime) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLine())
    logger = logging.getLogger("worker.stages.run")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        batch = await started_batch(scripted_runtime, input_file(12))
        await run_to_end(scripted_runtime, batch)
    finally:
        logger.removeHandler(handler)
        handler.close()
    (told,) = map(json.loads, written.getvalue().splitlines())
    assert told["message"] == f"batch {batch.id}: every line has its answer"
    assert (told["batch"], type(told["shard"])) == (batch.id, int)
