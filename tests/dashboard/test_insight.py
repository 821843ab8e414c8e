"""What a batch's results tell: its history, its failures, any line beside its answer; and the workers."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from redis import Redis

from models import Batch
from models.database import Database
from models.ids import request_id
from models.lifecycle import BatchStatus
from models.lines import render_failure, render_response
from tests.answers import ok, refusal
from tests.factories import (
    input_file,
    json_lines,
    make_batch,
    make_file,
    make_key,
    make_project,
    make_result,
    make_shard,
)
from tests.fixtures.client import RecordingBell
from tests.fixtures.runtime import (
    Reply,
    Request,
    ScriptedServer,
    run_to_end,
    started_batch,
    wait_until,
)
from worker.queue import Doorbell
from worker.runtime import Runtime
from worker.standing import keep_standing, standing_of


def failure(batch: Batch, line_no: int, code: str, message: str = "no") -> bytes:
    return render_failure(
        request_id=request_id(batch.id, line_no),
        custom_id=f"request-{line_no}",
        code=code,
        message=message,
    )


def answer(batch: Batch, line_no: int, body: bytes, status_code: int = 200) -> bytes:
    return render_response(
        request_id=request_id(batch.id, line_no),
        custom_id=f"request-{line_no}",
        status_code=status_code,
        response_id="r",
        body=body,
    )


async def running_batch(database: Database, *, lines: int = 3, **values: Any) -> Batch:
    """A batch in progress, with its input and its shard."""
    content = input_file(lines)
    file = await make_file(database, content)
    batch = await make_batch(
        database,
        status=BatchStatus.IN_PROGRESS,
        input_file_id=file.id,
        input_file_pk=file.pk,
        total=lines,
        **values,
    )
    lengths = [len(line) for line in content.splitlines()]
    offsets = [sum(lengths[:index]) + index for index in range(lines)]
    numbers = list(range(1, lines + 1))
    await make_shard(database, batch, line_numbers=numbers, offsets=offsets, lengths=lengths)
    return batch


async def test_the_history_of_a_batch_that_runs(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    began = datetime.now(UTC) - timedelta(seconds=10.5)
    batch = await running_batch(database, lines=4, created_at=began)
    # Two calls from second 1 to 3, one of a second in second 5, and one that never was.
    for line_no, seconds, ended, succeeded in (
        (1, 2.0, 3.0, True),
        (2, 2.0, 3.0, True),
        (3, 1.0, 6.0, False),
        (4, None, 6.5, False),
    ):
        await make_result(
            database,
            batch,
            line_no,
            succeeded=succeeded,
            seconds=seconds,
            recorded_at=began + timedelta(seconds=ended - 0.001),
        )

    told = ok(await api_client.get(f"/v1/batches/{batch.id}/history"))

    assert told["object"] == "batch.history"
    assert told["begins_at"] == pytest.approx(began.timestamp(), abs=0.01)
    assert told["interval_seconds"] == 1.0
    points = told["points"]
    assert [point["completed"] for point in points] == [0, 0, 2, 0, 0, 0, 0]
    assert [point["failed"] for point in points] == [0, 0, 0, 0, 0, 1, 1]
    in_flight = [point["in_flight"] for point in points]
    assert in_flight == pytest.approx([0, 2, 2, 0, 0, 1, 0], abs=0.01)
    assert (points[2]["latency_p50"], points[2]["latency_p95"]) == (2.0, 2.0)
    assert (points[3]["latency_p50"], points[6]["latency_p50"]) == (None, None)
    assert [(each["line"], each["seconds"]) for each in told["slowest"]] == [(1, 2), (2, 2), (3, 1)]


async def test_a_long_life_has_no_more_points_than_a_chart_can_show(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    began = datetime.now(UTC) - timedelta(days=3)
    batch = await running_batch(database, created_at=began, window=timedelta(days=7))
    for line_no in (1, 2, 3):
        moment = began + timedelta(days=line_no - 0.01)
        await make_result(database, batch, line_no, seconds=5.0, recorded_at=moment)
    told = ok(await api_client.get(f"/v1/batches/{batch.id}/history"))
    assert 115 < len(told["points"]) <= 121
    assert sum(point["completed"] for point in told["points"]) == 3


async def test_without_results_there_is_no_history(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    for status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.COMPLETED):
        batch = await make_batch(database, status=status)
        told = ok(await api_client.get(f"/v1/batches/{batch.id}/history"))
        assert (told["points"], told["slowest"]) == ([], [])


async def test_a_batch_keeps_its_history_when_its_results_are_dropped(
    scripted_runtime: Runtime, scripted: ScriptedServer, api_client: httpx.AsyncClient
) -> None:
    async def reply(request: Request) -> Reply:
        if b"question 2" in request.body:
            return Reply(
                400, b'{"error": {"message": "too long", "code": "context_length_exceeded"}}'
            )
        return Reply(200, b'{"object": "chat.completion"}')

    scripted.script = reply
    batch = await started_batch(scripted_runtime, input_file(3))
    await run_to_end(scripted_runtime, batch)

    path = f"/v1/batches/{batch.id}"
    assert ok(await api_client.get(path))["status"] == "completed"
    told = ok(await api_client.get(f"{path}/history"))
    assert sum(point["completed"] for point in told["points"]) == 2
    assert sum(point["failed"] for point in told["points"]) == 1
    assert sorted(each["line"] for each in told["slowest"]) == [1, 2, 3]
    assert all(0 < each["seconds"] < 60 for each in told["slowest"])

    [group] = ok(await api_client.get(f"{path}/failures"))["data"]
    assert group == {
        "code": "context_length_exceeded",
        "status_code": 400,
        "message": "too long",
        "count": 1,
        "examples": [{"line": 2, "custom_id": "request-2"}],
    }
    line = ok(await api_client.get(f"{path}/lines/2"))
    assert json.loads(line["request"])["custom_id"] == "request-2"
    assert json.loads(line["answer"])["response"]["status_code"] == 400
    assert (line["succeeded"], line["seconds"]) == (False, None)
    line = ok(await api_client.get(f"{path}/lines/3"))
    assert json.loads(line["answer"])["custom_id"] == "request-3"
    assert line["succeeded"] is True


async def test_failures_are_grouped_by_what_was_said(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    batch = await running_batch(database, lines=9)
    lines = {
        1: failure(batch, 1, "upstream_timeout", "late"),
        2: failure(batch, 2, "upstream_timeout", "late"),
        3: answer(batch, 3, b'{"error": {"message": "bad", "type": "invalid"}}', 400),
        4: answer(batch, 4, b'{"error": "no room"}', 500),
        5: answer(batch, 5, b'{"error": {"message": "\\u0000", "code": 7}}', 500),
        6: answer(batch, 6, b'["what?"]', 418),
        7: failure(batch, 7, "upstream_timeout", "late"),
    }
    for line_no, line in lines.items():
        await make_result(database, batch, line_no, succeeded=False, line=line)
    await make_result(database, batch, 8, line=answer(batch, 8, b"{}"))

    told = ok(await api_client.get(f"/v1/batches/{batch.id}/failures"))

    assert (told["lines_read"], told["is_whole"]) == (7, True)
    found = {(each["code"], each["status_code"]): each for each in told["data"]}
    assert told["data"][0]["count"] == 3
    late = found["upstream_timeout", None]
    assert [each["line"] for each in late["examples"]] == [1, 2, 7]
    assert {key: each["count"] for key, each in found.items()} == {
        ("upstream_timeout", None): 3,
        ("invalid", 400): 1,
        ("http_500", 500): 2,
        ("http_418", 418): 1,
    }
    assert found["http_418", 418]["message"] == "The model server answered 418."


async def test_a_line_of_a_batch_that_runs(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    batch = await running_batch(database)
    await make_result(database, batch, 2, line=answer(batch, 2, b'{"n": 1}'), seconds=1.5)
    path = f"/v1/batches/{batch.id}/lines"
    two = ok(await api_client.get(f"{path}/2"))
    assert two["request"].encode() == input_file(3).splitlines()[1]
    assert json.loads(two["answer"])["response"]["body"] == {"n": 1}
    assert (two["succeeded"], two["seconds"]) == (True, 1.5)
    three = ok(await api_client.get(f"{path}/3"))
    assert json.loads(three["request"])["custom_id"] == "request-3"
    assert (three["answer"], three["succeeded"]) == (None, None)
    message = f"The input of batch '{batch.id}' has no line 4."
    refusal(await api_client.get(f"{path}/4"), 404, message, param="line")
    for word in ("0", "x", str(2**31)):
        assert (await api_client.get(f"{path}/{word}")).status_code == 400


async def test_the_lines_of_an_input_that_was_refused_can_be_seen(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    file = await make_file(database, b'{"good": 1}\n\n{ no json\n')
    batch = await make_batch(database, status=BatchStatus.FAILED, input_file_id=file.id)
    path = f"/v1/batches/{batch.id}/lines"
    assert ok(await api_client.get(f"{path}/3"))["request"] == "{ no json"
    # A blank line is none.
    for line_no in (2, 4):
        assert (await api_client.get(f"{path}/{line_no}")).status_code == 404


async def test_of_a_long_line_the_beginning_is_shown(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    file = await make_file(database, json_lines({"custom_id": "é" * 200_000}))
    batch = await make_batch(database, status=BatchStatus.FAILED, input_file_id=file.id)
    shown = ok(await api_client.get(f"/v1/batches/{batch.id}/lines/1"))
    assert shown["request_is_cut"]
    assert 0 < len(shown["request"]) <= 256 * 1024


def told(name: str, **changes: Any) -> bytes:
    model = {
        "server": "default",
        "model": "",
        "in_flight": 5,
        "waiting": 7,
        "limit": 32,
        "is_open": False,
        "paused_seconds": 0.0,
        "succeeded": 10,
        "refused": 1,
        "failed": 2,
        "latency_seconds": 20.0,
    }
    worker = {
        "name": name,
        "kind": "run",
        "in_flight": 5,
        "room": 100,
        "shards": 2,
        "began_at": 0.0,
        "is_draining": False,
        "models": [model | changes],
    }
    return json.dumps(worker).encode()


async def test_workers_and_what_they_say_of_model_servers_together(
    api_client: httpx.AsyncClient, bell: RecordingBell
) -> None:
    control = json.loads(told("c")) | {"kind": "control", "models": []}
    bell.told = [
        json.dumps(control).encode(),
        told("b", limit=40, is_open=True, paused_seconds=3.0),
        told("a"),
        b"of another version",
    ]
    found = ok(await api_client.get("/v1/workers"))
    assert [(each["kind"], each["name"]) for each in found["data"]] == [
        ("run", "a"),
        ("run", "b"),
        ("control", "c"),
    ]
    [upstream] = found["upstreams"]
    assert upstream == {
        "server": "default",
        "model": "",
        "workers": 2,
        "in_flight": 10,
        "waiting": 14,
        "limit": 40,
        "breaker": "open",
        "paused_seconds": 3.0,
        "succeeded": 20,
        "refused": 2,
        "failed": 4,
        "mean_latency_seconds": 2.0,
    }


async def test_a_model_server_that_nobody_calls_stands_idle(api_client: httpx.AsyncClient) -> None:
    found = ok(await api_client.get("/v1/workers"))
    assert found["data"] == []
    [idle] = found["upstreams"]
    assert (idle["server"], idle["workers"], idle["limit"]) == ("default", 0, None)


def test_word_of_workers_goes_through_the_broker(broker_url: str) -> None:
    doorbell = Doorbell(broker_url)
    try:
        assert doorbell.told_of_workers() == []
        for name, told_by_it in (("a:1", "{}"), ("b:2", "[1]"), ("a:1", "[2]")):
            doorbell.note_worker(name, told_by_it)
        assert sorted(doorbell.told_of_workers()) == [b"[1]", b"[2]"]
        with Redis.from_url(broker_url) as redis:
            assert 0 < redis.ttl("overnight:worker:a:1") <= 10
    finally:
        doorbell.close()


def test_without_a_broker_there_is_no_word_of_workers() -> None:
    doorbell = Doorbell("redis://127.0.0.1:1/0")
    try:
        doorbell.note_worker("a:1", "{}")
        assert doorbell.told_of_workers() == []
    finally:
        doorbell.close()


async def test_a_process_goes_on_telling_whatever_happens(scripted_runtime: Runtime) -> None:
    told_by_it: list[str] = []

    def note(name: str, told: str) -> None:
        assert name == scripted_runtime.owner
        told_by_it.append(told)
        raise RuntimeError

    with (
        patch("worker.standing._SECONDS", 0.0),
        patch.object(scripted_runtime.doorbell, "note_worker", note),
    ):
        telling = asyncio.create_task(keep_standing(scripted_runtime))
        await wait_until(lambda: len(told_by_it) > 2)
        telling.cancel()
    assert json.loads(told_by_it[0])["name"] == scripted_runtime.owner


async def test_workers_are_the_operators_to_see(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    key = await make_key(database, await make_project(database))
    answer = await api_client.get("/v1/workers", headers={"authorization": f"Bearer {key}"})
    message = "This is only for API keys of the project 'default', the operator's."
    refusal(answer, 403, message, code="operator_only")


async def test_what_a_worker_tells_is_what_the_api_reads(
    scripted_runtime: Runtime, scripted: ScriptedServer, api_client: httpx.AsyncClient, bell: Any
) -> None:
    del scripted
    batch = await started_batch(scripted_runtime, input_file(3))
    await run_to_end(scripted_runtime, batch)
    standing = standing_of(scripted_runtime, began_at=0.0)
    bell.told = [json.dumps(standing).encode()]
    found = ok(await api_client.get("/v1/workers"))
    [worker], [upstream] = found["data"], found["upstreams"]
    assert (worker["kind"], worker["in_flight"], worker["is_draining"]) == ("run", 0, False)
    assert (upstream["server"], upstream["succeeded"], upstream["failed"]) == ("default", 3, 0)
