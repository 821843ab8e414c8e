"""The stream of events: what changes is heard of, by those whom it concerns, and by nobody else."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import text, update
from sqlalchemy.dialects import postgresql

from api.services import events
from api.services.events import Watches
from cli.processes.api import ApiServer
from models import Batch, Shard
from models.database import Database
from models.lifecycle import BatchStatus
from models.project import DEFAULT_CALLER
from models.queries import advance
from tests.factories import make_batch, make_project, make_shard
from tests.fixtures.client import AUTHORIZATION
from tests.fixtures.engine import wait_for


@pytest.fixture
async def watches(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watches]:
    """Watches that look often."""
    monkeypatch.setattr(events, "_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(events, "_REST_FACTOR", 1)
    found = Watches(database)
    yield found
    found.close()


class Ear:
    """Somebody who listens."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self._heard: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any]:
        """The next batch of which something is told."""
        while not self._heard:
            async with asyncio.timeout(10):
                piece = await anext(self._stream)
            for event in piece.decode().split("\n\n"):
                if event.startswith("event: batch\n"):
                    self._heard.append(json.loads(event.partition("data: ")[2]))
        return self._heard.pop(0)


async def listening(watches: Watches) -> Ear:
    stream = await watches.listen(DEFAULT_CALLER)
    assert (await anext(stream)).endswith(b"event: hello\ndata: {}\n\n")
    return Ear(stream)


async def test_what_is_open_is_told_at_once_and_then_what_changes(
    watches: Watches, database: Database
) -> None:
    await make_batch(database, status=BatchStatus.COMPLETED)
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS, total=3)
    shard = await make_shard(database, batch)
    ear = await listening(watches)

    told = await ear.next()
    assert told["object"] == "batch.update"
    assert told["batch"]["id"] == told["progress"]["batch_id"] == batch.id

    async with database.begin() as session:
        await session.execute(
            update(Shard).where(Shard.pk == shard.pk).values(succeeded=2, failed=1)
        )
    told = await ear.next()
    counts = {"total": 3, "completed": 2, "failed": 1}
    assert told["batch"]["request_counts"] == told["progress"]["request_counts"] == counts

    async with database.begin() as session:
        await session.execute(
            update(Batch).values(paused_at=Batch.created_at).where(Batch.pk == batch.pk)
        )
    assert (await ear.next())["progress"]["paused"] is True

    async with database.begin() as session:
        assert await advance(session, batch.pk, BatchStatus.CANCELLING)
    assert (await ear.next())["batch"]["status"] == "cancelling"
    async with database.begin() as session:
        assert await advance(session, batch.pk, BatchStatus.CANCELLED)
    assert (await ear.next())["batch"]["status"] == "cancelled"


async def test_a_batch_that_begins_and_ends_between_two_looks(
    watches: Watches, database: Database
) -> None:
    ear = await listening(watches)
    batch = await make_batch(database, status=BatchStatus.FAILED)
    told = await ear.next()
    assert (told["batch"]["id"], told["batch"]["status"]) == (batch.id, "failed")


async def test_of_another_projects_batches_nothing_is_told(
    watches: Watches, database: Database
) -> None:
    other = await make_project(database)
    await make_batch(database, project_pk=other.project_pk)
    ear = await listening(watches)
    await make_batch(database, project_pk=other.project_pk)
    mine = await make_batch(database)
    assert (await ear.next())["batch"]["id"] == mine.id


async def test_all_who_listen_share_one_look(watches: Watches, database: Database) -> None:
    batch = await make_batch(database)
    ears = [await listening(watches) for _ in range(3)]
    assert len(watches._watches) == 1
    for ear in ears:
        assert (await ear.next())["batch"]["id"] == batch.id


async def test_the_last_to_leave_stops_the_looking(watches: Watches) -> None:
    streams = [await watches.listen(DEFAULT_CALLER) for _ in range(2)]
    for stream in streams:
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]  # a generator
    assert watches._watches == {}


async def test_a_slow_listener_hears_of_each_batch_once(
    watches: Watches, database: Database
) -> None:
    batch = await make_batch(database, status=BatchStatus.IN_PROGRESS, total=100)
    shard = await make_shard(database, batch, line_numbers=list(range(1, 101)))
    slow, quick = await listening(watches), await listening(watches)
    await quick.next()
    for count in range(1, 6):
        async with database.begin() as session:
            await session.execute(update(Shard).where(Shard.pk == shard.pk).values(succeeded=count))
        assert (await quick.next())["batch"]["request_counts"]["completed"] == count
    assert (await slow.next())["batch"]["request_counts"]["completed"] == 5
    assert slow._heard == []


async def test_streams_end_with_the_process(watches: Watches) -> None:
    stream = await watches.listen(DEFAULT_CALLER)
    await anext(stream)
    watches.close()
    async with asyncio.timeout(10):
        assert [piece async for piece in stream if piece.startswith(b"event")] == []
        late = await watches.listen(DEFAULT_CALLER)
        assert len([piece async for piece in late]) <= 2


async def test_a_stream_ends_so_that_the_key_is_judged_again(
    watches: Watches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_LIFE_SECONDS", 0.0)
    stream = await watches.listen(DEFAULT_CALLER)
    assert [piece async for piece in stream] == [events.HELLO]


async def test_a_look_reads_only_what_is_open(database: Database) -> None:
    """However many batches have ended: none of theirs is read, nor the whole table."""
    for status, count in (("completed", 5000), ("in_progress", 5)):
        times = "now(), now(), now()" if status == "completed" else "now(), NULL, NULL"
        fill = f"""
            INSERT INTO batches (id, endpoint, completion_window, input_file_id, status, created_at,
                expires_at, in_progress_at, finalizing_at, completed_at)
            SELECT 'batch_{status}' || n, '/v1/embeddings', '24h', 'file-x', '{status}',
                now() - n * interval '1 min', now() + interval '1 d', {times}
            FROM generate_series(1, {count}) AS n
        """  # noqa: S608  # words of this test
        async with database.begin() as session:
            await session.execute(text(fill))
    async with database.statement() as session:
        await session.execute(text("ANALYZE batches"))
        watch = events._Watch(database, DEFAULT_CALLER.project_pk)
        look = watch.statement().compile(
            dialect=postgresql.dialect(),  # type: ignore[no-untyped-call]  # SQLAlchemy's
            compile_kwargs={"literal_binds": True},
        )
        explain = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {look}"
        [plan] = (await session.execute(text(explain.replace(":", "\\:")))).scalar_one()
    reads = [node for node in nodes(plan["Plan"]) if node.get("Relation Name") == "batches"]
    assert reads
    assert "Seq Scan" not in {node["Node Type"] for node in reads}
    rows = sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in reads
    )
    assert rows < 400


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan's nodes."""
    yield node
    for child in node.get("Plans", []):
        yield from nodes(child)


def test_a_process_that_is_told_to_end_ends_its_streams_first(app: FastAPI) -> None:
    """Without that it would wait for them, for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = ApiServer(uvicorn.Config(app, log_config=None, lifespan="on"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/events"
    try:
        wait_for("the API has begun", lambda: server.started)
        with httpx.stream("GET", url, headers=AUTHORIZATION, trust_env=False, timeout=60) as answer:
            pieces = answer.iter_raw()
            assert b"event: hello" in next(pieces)
            server.should_exit = True
            # It ends well: cut off, it would raise.
            for piece in pieces:
                assert not piece.startswith(b"event")
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        listener.close()
    assert not thread.is_alive()


async def test_the_route_streams(app: Any, api_client: httpx.AsyncClient) -> None:
    # What listens to a process that ends hears no more than the greeting.
    app.state.watches.close()
    answer = await api_client.get("/v1/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert b"event: hello" in answer.content
