"""Results while a batch runs: an order that stays, nothing left out, nothing twice."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import delete, insert

from api.services import partial
from api.services.partial import Kind
from models import Batch, File, Result
from models.database import Database
from models.ids import request_id
from models.lifecycle import FINAL, BatchStatus
from models.lines import render_failure
from models.project import DEFAULT_CALLER
from tests.answers import refusal
from tests.factories import input_file, make_batch, make_file, make_key, make_project, make_result
from tests.fixtures.runtime import (
    Reply,
    Request,
    ScriptedServer,
    read_file,
    run_shards,
    run_to_end,
    started_batch,
    wait_until,
)
from tests.running import GOOD, Gate, question
from worker.runtime import Runtime
from worker.stages.finalize import finalize_batch


async def read(
    client: httpx.AsyncClient, batch: Batch, kind: str = "output", offset: int | None = None
) -> tuple[list[str], int | None]:
    """The custom ids of an answer's lines, and the number of the last one if more may come."""
    params = {} if offset is None else {"offset": offset}
    answer = await client.get(f"/v1/batches/{batch.id}/{kind}", params=params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/jsonl"
    assert not answer.content or answer.content.endswith(b"\n")
    last_line = answer.headers.get("x-last-line")
    assert answer.headers.get("x-incomplete") == (None if last_line is None else "true")
    ids = [json.loads(line)["custom_id"] for line in answer.content.split(b"\n")[:-1]]
    return ids, None if last_line is None else int(last_line)


def ids_of(*numbers: int) -> list[str]:
    return [f"request-{number}" for number in numbers]


@pytest.fixture
async def batch(database: Database) -> Batch:
    """A batch that runs, without a result."""
    return await make_batch(database, status=BatchStatus.IN_PROGRESS, total=9)


async def test_before_there_is_a_result(api_client: httpx.AsyncClient, batch: Batch) -> None:
    assert await read(api_client, batch) == ([], 0)
    assert await read(api_client, batch, "errors", 7) == ([], 7)


async def test_each_kind_for_itself_and_from_where_one_left_off(
    api_client: httpx.AsyncClient, database: Database, batch: Batch
) -> None:
    for line_no in (5, 2, 8):
        await make_result(database, batch, line_no)
    await make_result(database, batch, 3, succeeded=False)
    assert await read(api_client, batch) == (ids_of(5, 2, 8), 3)
    assert await read(api_client, batch, "errors") == (ids_of(3), 1)
    assert await read(api_client, batch, offset=2) == (ids_of(8), 3)
    await make_result(database, batch, 1)
    assert await read(api_client, batch, offset=3) == (ids_of(1), 4)
    assert await read(api_client, batch) == (ids_of(5, 2, 8, 1), 4)


@asynccontextmanager
async def recording(url: str, batch: Batch, *line_nos: int) -> AsyncIterator[None]:
    """Rows that are written at the beginning of the block and committed at its end."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        for line_no in line_nos:
            await connection.execute(
                "INSERT INTO results (batch_pk, line_no, succeeded, line, input_tokens,"
                " cached_tokens, output_tokens, reasoning_tokens, total_tokens)"
                " VALUES (%s, %s, true, %s, 0, 0, 0, 0, 0)",
                [batch.pk, line_no, b'{"custom_id": "request-%d"}\n' % line_no],
            )
        yield


async def test_nothing_appears_before_what_was_served(
    api_client: httpx.AsyncClient, database: Database, database_url: str, batch: Batch
) -> None:
    """Two shards write at once; the one that began first commits last."""
    await make_result(database, batch, 9)
    async with recording(database_url, batch, 4, 2):
        await make_result(database, batch, 1)
        # Line 1 is there, but 2 and 4 will come before it.
        assert await read(api_client, batch) == (ids_of(9), 1)
    assert await read(api_client, batch) == (ids_of(9, 2, 4, 1), 4)
    assert await read(api_client, batch, offset=1) == (ids_of(2, 4, 1), 4)


async def test_writers_that_overlap(
    api_client: httpx.AsyncClient, database: Database, database_url: str, batch: Batch
) -> None:
    """What is served only ever grows at its end, in whatever order writers begin and commit."""
    async with recording(database_url, batch, 7):
        async with recording(database_url, batch, 5):
            await make_result(database, batch, 3)
            assert await read(api_client, batch) == ([], 0)
        await make_result(database, batch, 1)
        # 5, 3 and 1 have been committed; 7 will come before them.
        assert await read(api_client, batch) == ([], 0)
    assert await read(api_client, batch) == (ids_of(7, 5, 3, 1), 4)
    async with recording(database_url, batch, 2):
        async with recording(database_url, batch, 9):
            assert await read(api_client, batch) == (ids_of(7, 5, 3, 1), 4)
        assert await read(api_client, batch) == (ids_of(7, 5, 3, 1), 4)
        assert await read(api_client, batch, offset=4) == ([], 4)
    assert await read(api_client, batch, offset=4) == (ids_of(2, 9), 6)


async def test_a_reader_gets_every_line_once_while_shards_write(
    runtime: Runtime, other_runtime: Runtime, api_client: httpx.AsyncClient
) -> None:
    batch = await started_batch(runtime, input_file(60))
    running = asyncio.gather(*(run_shards(each) for each in [runtime, other_runtime] * 2))
    seen: list[str] = []

    async def follow() -> bool:
        more, last_line = await read(api_client, batch, offset=len(seen))
        seen.extend(more)
        assert last_line == len(seen)
        return len(seen) == 60

    await wait_until(follow)
    await running
    assert sorted(seen) == sorted(ids_of(*range(1, 61)))
    assert await read(api_client, batch) == (seen, 60)


async def test_results_appear_while_others_are_in_flight(
    scripted_runtime: Runtime, scripted: ScriptedServer, api_client: httpx.AsyncClient
) -> None:
    gate = Gate(scripted, lets_through=2)
    batch = await started_batch(scripted_runtime, input_file(5))
    running = asyncio.create_task(run_shards(scripted_runtime))

    async def are_there() -> bool:
        return len((await read(api_client, batch))[0]) == 2

    await wait_until(are_there)
    gate.open()
    await asyncio.wait_for(running, timeout=10)


async def test_after_the_end_the_finished_files_are_served(
    scripted_runtime: Runtime, scripted: ScriptedServer, api_client: httpx.AsyncClient
) -> None:
    async def answer(request: Request) -> Reply:
        is_bad = question(request) in {"question 2", "question 4"}
        return Reply(400, b'{"error": {}}') if is_bad else Reply(body=GOOD)

    scripted.script = answer
    database = scripted_runtime.database
    batch = await run_to_end(scripted_runtime, await started_batch(scripted_runtime, input_file(6)))
    assert await read(api_client, batch) == (ids_of(1, 3, 5, 6), None)
    assert await read(api_client, batch, "errors") == (ids_of(2, 4), None)
    # Whoever went on from a place in the order of recording would miss some and see others twice.
    for offset in (3, 4, 2**31 - 1):
        assert await read(api_client, batch, offset=offset) == (ids_of(1, 3, 5, 6), None)
    whole = await api_client.get(f"/v1/batches/{batch.id}/output")
    assert whole.content == await read_file(database, batch.output_file_id)


@pytest.mark.parametrize("status", sorted(FINAL))
async def test_a_finished_batch_without_a_file(
    api_client: httpx.AsyncClient, database: Database, status: BatchStatus
) -> None:
    batch = await make_batch(database, status=status)
    assert await read(api_client, batch) == ([], None)
    assert await read(api_client, batch, "errors") == ([], None)


async def test_a_finished_file_that_was_deleted(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    file = await make_file(database, purpose="batch_output")
    values: dict[str, Any] = {"output_file_id": file.id, "status": BatchStatus.COMPLETED}
    batch = await make_batch(database, **values)
    await api_client.delete(f"/v1/files/{file.id}")
    answer = await api_client.get(f"/v1/batches/{batch.id}/output")
    refusal(answer, 404, f"No such File object: {file.id}", param="id")


async def rendered_results(database: Database, batch: Batch, count: int) -> None:
    """Results as workers write them, a kilobyte each."""
    async with database.begin() as session:
        rows = [
            {
                "batch_pk": batch.pk,
                "line_no": n,
                "succeeded": True,
                "line": render_failure(
                    request_id=request_id(batch.id, n),
                    custom_id=f"request-{n}",
                    code="x",
                    message="y" * 1000,
                ),
                **dict.fromkeys(
                    [
                        f"{kind}_tokens"
                        for kind in ["input", "cached", "output", "reasoning", "total"]
                    ],
                    0,
                ),
            }
            for n in range(1, count + 1)
        ]
        await session.execute(insert(Result), rows)


async def test_many_lines_come_in_pages(
    api_client: httpx.AsyncClient, database: Database, batch: Batch
) -> None:
    await rendered_results(database, batch, 2500)
    lines = await partial.read(
        database, DEFAULT_CALLER, batch_id=batch.id, kind=Kind.OUTPUT, offset=10
    )
    pieces = [piece async for piece in lines.pieces]
    assert lines.last_line == 2500
    assert [piece.count(b"\n") for piece in pieces] == [1000, 1000, 490]
    assert await read(api_client, batch) == (ids_of(*range(1, 2501)), 2500)


async def test_the_batch_ends_in_mid_answer(runtime: Runtime) -> None:
    database = runtime.database
    batch = await make_batch(database, status=BatchStatus.FINALIZING, total=2500)
    await rendered_results(database, batch, 2500)
    lines = await partial.read(
        database, DEFAULT_CALLER, batch_id=batch.id, kind=Kind.OUTPUT, offset=0
    )
    first = await anext(lines.pieces)
    await finalize_batch(runtime, batch.pk)
    rest = b"".join([piece async for piece in lines.pieces])
    ids = [json.loads(line)["custom_id"] for line in (first + rest).splitlines()]
    assert ids == ids_of(*range(1, 2501))


async def test_the_batch_ends_in_mid_answer_and_its_file_is_deleted(runtime: Runtime) -> None:
    database = runtime.database
    batch = await make_batch(database, status=BatchStatus.FINALIZING, total=1500)
    await rendered_results(database, batch, 1500)
    lines = await partial.read(
        database, DEFAULT_CALLER, batch_id=batch.id, kind=Kind.OUTPUT, offset=0
    )
    await anext(lines.pieces)
    await finalize_batch(runtime, batch.pk)
    async with database.begin() as session:
        await session.execute(delete(File))
    # What has begun can only be cut off: never a short answer that looks whole.
    with pytest.raises(Exception, match="No such File object"):
        await anext(lines.pieces)


@pytest.mark.parametrize(
    ("offset", "code"),
    [
        ("-1", "integer_below_min_value"),
        ("2147483648", "integer_above_max_value"),
        ("x", "invalid_type"),
    ],
)
async def test_an_offset_that_is_none(
    api_client: httpx.AsyncClient, batch: Batch, offset: str, code: str
) -> None:
    answer = await api_client.get(f"/v1/batches/{batch.id}/output?offset={offset}")
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, "offset")


@pytest.mark.parametrize("kind", ["output", "errors"])
async def test_another_projects_batch_is_not_found(
    api_client: httpx.AsyncClient, database: Database, batch: Batch, kind: str
) -> None:
    await make_result(database, batch)
    key = await make_key(database, await make_project(database))
    answer = await api_client.get(
        f"/v1/batches/{batch.id}/{kind}", headers={"authorization": f"Bearer {key}"}
    )
    refusal(answer, 404, f"No batch found with id '{batch.id}'.")
