"""Calling the lines of a shard: what goes out, what is recorded, what is tried again."""

import asyncio
import datetime as dt
import email.utils
import json
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from cli.simulator import SimulatedServer, simulated_text
from models import Batch, Result
from models.ids import request_id
from models.lifecycle import BatchStatus
from models.lines import Endpoint
from tests.factories import input_file, input_line, json_lines
from tests.fixtures.runtime import (
    Reply,
    Request,
    ScriptedServer,
    count_results,
    in_flight,
    reload,
    results_of,
    rings,
    run_shards,
    shards_of,
    started_batch,
    upstream_settings_for,
    wait_until,
    waiting,
)
from tests.running import (
    GOOD,
    POISON,
    finished,
    question,
    run_one,
    with_settings,
)
from worker.dispatch import dispatcher_of
from worker.router import Router, Target
from worker.runtime import Runtime
from worker.upstream import Outcome, Upstream


async def test_every_line_is_called_once_and_recorded(
    runtime: Runtime, model_server: SimulatedServer
) -> None:
    batch = await started_batch(runtime, input_file(23))
    results = await finished(runtime, batch)
    assert sorted(results) == list(range(1, 24))
    for line_no, line in results.items():
        assert list(line) == ["id", "custom_id", "response", "error"]
        assert line["id"] == request_id(batch.id, line_no)
        assert line["custom_id"] == f"request-{line_no}"
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        said = line["response"]["body"]["choices"][0]["message"]["content"]
        assert said == simulated_text(f"question {line_no}")
    stats = model_server.stats()
    assert (stats.calls, stats.distinct_lines) == (23, 23)
    shards = await shards_of(runtime.database, batch)
    assert [(shard.state, shard.succeeded, shard.failed) for shard in shards] == [
        ("done", 5, 0),
        ("done", 5, 0),
        ("done", 5, 0),
        ("done", 5, 0),
        ("done", 3, 0),
    ]


BODIES: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT_COMPLETIONS: {"model": "m", "messages": [{"role": "user", "content": "q"}]},
    Endpoint.COMPLETIONS: {"model": "m", "prompt": "p"},
    Endpoint.EMBEDDINGS: {"model": "m", "input": "text", "dimensions": 4},
    Endpoint.RESPONSES: {"model": "m", "input": "text"},
    Endpoint.MODERATIONS: {"input": "text"},
    Endpoint.IMAGE_GENERATIONS: {"prompt": "p"},
    Endpoint.IMAGE_EDITS: {"prompt": "p", "images": [{"file_id": "file-1"}]},
    Endpoint.VIDEOS: {"prompt": "p"},
}


@pytest.mark.parametrize("endpoint", list(Endpoint))
async def test_each_endpoint_is_called_at_its_path(
    runtime: Runtime, model_server: SimulatedServer, endpoint: Endpoint
) -> None:
    model_server.settings.video_seconds = 0
    line = input_line(url=endpoint.value, body=BODIES[endpoint])
    batch = await started_batch(runtime, json_lines(line), endpoint=endpoint.value)
    results = await finished(runtime, batch)
    assert results[1]["response"]["status_code"] == 200
    posts = [call.path for call in model_server.calls() if call.method == "POST"]
    assert posts == [endpoint.value]


async def test_nothing_of_a_line_but_its_body_goes_upstream(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    line = input_line(
        headers={"Authorization": "Bearer client-key", "X-Other": "x"},
        authorization="client-key",
        base_url="http://elsewhere",
    )
    await run_one(scripted_runtime, line)
    [request] = scripted.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer upstream-own-key"
    assert "client-key" not in str(request)
    assert set(request.headers) == {
        "accept",
        "accept-encoding",
        "authorization",
        "content-length",
        "content-type",
        "host",
        "idempotency-key",
        "user-agent",
    }


ODD = (
    rb'{ "messages" :[1.50e-7,123456789012345678901234567890, -0],"x":"\u00e9\ud83d\ude00\/",'
    b'"y":"' + "é😀\u2028\x7f".encode() + rb'","model":"m","model":"m" , "nul":"\u0000"}'
)


async def test_a_body_goes_out_byte_for_byte(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    raw = b'{"method":"POST","body":' + ODD + b',"custom_id":"\xc3\xa9\\n","url":'
    content = raw + b'"/v1/chat/completions" } \r\n'
    batch = await started_batch(scripted_runtime, content)
    results = await finished(scripted_runtime, batch)
    assert [request.body for request in scripted.requests] == [ODD]
    assert results[1]["custom_id"] == "é\n"


ANSWER = rb'{"n":123456789012345678901234567890,"f":1.50e-7,"cut":"\ud83d","e":"\u00e9\/"}'


async def test_an_answer_comes_in_byte_for_byte(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    scripted.replies = [Reply(body=ANSWER, headers={"x-request-id": "req_7"})]
    batch = await started_batch(scripted_runtime, input_file(1))
    await finished(scripted_runtime, batch)
    [line] = await raw_results(scripted_runtime, batch)
    assert b'"request_id": "req_7", "body": ' + ANSWER + b"}, " in line


async def raw_results(runtime: Runtime, batch: Batch) -> list[bytes]:
    async with runtime.database.begin() as session:
        rows = select(Result.line).where(Result.batch_pk == batch.pk).order_by(Result.line_no)
        return list(await session.scalars(rows))


async def test_a_pretty_printed_answer_is_one_line(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    body = {"a": [1, {"b": "x\ny"}]}
    scripted.replies = [Reply(body=json.dumps(body, indent=4).encode())]
    batch = await started_batch(scripted_runtime, input_file(1))
    results = await finished(scripted_runtime, batch)
    assert results[1]["response"]["body"] == body
    [line] = await raw_results(scripted_runtime, batch)
    assert line.index(b"\n") == len(line) - 1


async def test_without_a_request_id_there_is_one_all_the_same(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    first = await run_one(scripted_runtime)
    assert len(first["response"]["request_id"]) == 36
    assert len(scripted.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_a_refusal_is_final_at_once(
    scripted_runtime: Runtime, scripted: ScriptedServer, status: int
) -> None:
    body = {"error": {"message": "no", "type": "t", "param": "messages", "code": "c"}}
    scripted.replies = [Reply(status, json.dumps(body).encode())]
    line = await run_one(scripted_runtime)
    assert len(scripted.requests) == 1
    assert line["error"] is None
    assert (line["response"]["status_code"], line["response"]["body"]) == (status, body)


HTML = Reply(502, b"<html>\r\n<h1>502 Bad Gateway</h1></html>", {"content-type": "text/html"})


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        *(Reply(status) for status in (408, 409, 429, 500, 502, 503, 504, 529)),
        HTML,
        Reply(400, headers={"x-should-retry": "true"}),
        Reply(body=b"{broken"),
        Reply(body=b"[]"),
        Reply(body=b""),
        Reply(204, body=b""),
        Reply(raw=HEAD + b'content-length: 100\r\n\r\n{"half":', closes=True),
        Reply(raw=HEAD + b'transfer-encoding: chunked\r\n\r\n5\r\n{"a":', closes=True),
        Reply(raw=b"", closes=True),
        Reply(raw=b"nonsense\r\n\r\n", closes=True),
    ],
    ids=lambda reply: f"{reply.status}-{(reply.raw or reply.body)[-12:]!r}",
)
async def test_what_may_pass_is_tried_again_with_the_same_key(
    scripted_runtime: Runtime, scripted: ScriptedServer, reply: Reply
) -> None:
    scripted.replies = [reply, reply, Reply(body=GOOD)]
    line = await run_one(scripted_runtime)
    assert line["response"]["status_code"] == 200
    keys = {request.headers["idempotency-key"] for request in scripted.requests}
    assert (len(scripted.requests), keys) == (3, {line["id"]})
    assert len({request.body for request in scripted.requests}) == 1


async def test_the_server_may_forbid_another_try(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    scripted.replies = [Reply(500, b"boom", {"x-should-retry": "false"})]
    line = await run_one(scripted_runtime)
    assert len(scripted.requests) == 1
    assert line["response"]["body"]["error"]["message"] == "boom"


async def test_waits_that_the_server_asks_for_are_kept(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)
    asked = {
        "question 1": {"retry-after-ms": "250"},
        "question 2": {"retry-after": "0.5"},
        "question 3": {"retry-after": email.utils.format_datetime(moment, usegmt=True)},
        "question 4": {"retry-after": "0"},
    }
    arrived: dict[str, list[float]] = {name: [] for name in asked}

    async def script(request: Request) -> Reply:
        times = arrived[question(request)]
        times.append(time.time())
        return Reply(body=GOOD) if len(times) > 1 else Reply(429, b"", asked[question(request)])

    scripted.script = script
    await finished(scripted_runtime, await started_batch(scripted_runtime, input_file(4)))
    first, second, third, fourth = arrived.values()
    assert first[1] - first[0] >= 0.25
    assert second[1] - second[0] >= 0.5
    # A date has whole seconds.
    assert third[1] >= moment.timestamp() - 1
    assert [len(times) for times in (first, second, third, fourth)] == [2, 2, 2, 2]


async def test_a_silent_server_is_called_again(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    async def script(request: Request) -> Reply:
        del request
        if len(scripted.requests) == 1:
            await asyncio.Event().wait()
        return Reply(body=GOOD)

    scripted.script = script
    upstream = Upstream.connect(upstream_settings_for(scripted.url, call_timeout_seconds=0.2))
    line = await run_one(replace(scripted_runtime, router=Router.single(upstream)))
    await upstream.aclose()
    assert line["response"]["status_code"] == 200
    assert len(scripted.requests) == 2


async def test_a_server_that_is_away_is_waited_for(
    runtime: Runtime, model_server: SimulatedServer
) -> None:
    """However long it takes: no line is charged with an outage."""
    batch = await started_batch(runtime, input_file(12))
    await model_server.stop()
    tries: Counter[bytes] = Counter()
    target = runtime.router.find(Endpoint.CHAT_COMPLETIONS, "m")
    assert isinstance(target, Target)
    send = target.upstream.send

    async def counting(
        endpoint: Endpoint, body: bytes, *, idempotency_key: str, **_: str | None
    ) -> Outcome:
        tries[body] += 1
        return await send(endpoint, body, idempotency_key=idempotency_key)

    target.upstream.send = counting  # type: ignore[method-assign]
    runtime = with_settings(runtime, line_max_tries=1)
    running = asyncio.create_task(finished(runtime, batch))
    await wait_until(lambda: len(tries) >= 3 and sum(tries.values()) > 20)
    assert await count_results(runtime.database, batch) == 0
    await model_server.start()
    results = await running
    assert {line["response"]["status_code"] for line in results.values()} == {200}
    assert model_server.stats().duplicates == 0


@pytest.mark.parametrize("trouble", [{"outage": True}, {"error_rate": 1.0}, {"drop_rate": 1.0}])
async def test_a_failing_server_is_waited_for_though_it_was_well_before(
    runtime: Runtime, model_server: SimulatedServer, trouble: dict[str, Any]
) -> None:
    runtime = with_settings(runtime, line_max_tries=3)
    await finished(runtime, await started_batch(runtime, input_file(5)))
    batch = await started_batch(runtime, input_file(20))
    well = {name: getattr(model_server.settings, name) for name in trouble}
    for name, value in trouble.items():
        setattr(model_server.settings, name, value)
    slots = [asyncio.create_task(run_shards(runtime)) for _ in range(4)]
    await wait_until(lambda: len(model_server.calls()) > 5 + 20 + 20)
    for name, value in well.items():
        setattr(model_server.settings, name, value)
    await asyncio.wait_for(asyncio.gather(*slots), timeout=30)
    results = await results_of(runtime.database, batch)
    assert len(results) == 20
    assert {line["response"]["status_code"] for line in results.values()} == {200}


@pytest.mark.parametrize("line_count", [5, 3], ids=["in the middle", "at the tail"])
@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (Reply(500, b'{"error": {"message": "bug"}}'), 500, None),
        (Reply(raw=b"", closes=True), None, "upstream_disconnected"),
        (Reply(body=b"?"), None, "upstream_broken_answer"),
    ],
    ids=["500", "cut", "broken"],
)
async def test_a_line_that_always_fails_is_given_up_alone(
    scripted_runtime: Runtime,
    scripted: ScriptedServer,
    line_count: int,
    reply: Reply,
    status: int | None,
    code: str | None,
) -> None:
    async def script(request: Request) -> Reply:
        return reply if POISON.encode() in request.body else Reply(body=GOOD)

    scripted.script = script
    runtime = with_settings(scripted_runtime, line_max_tries=4)
    batch = await started_batch(runtime, input_file(line_count))
    results = await finished(runtime, batch)
    tries = Counter(question(request) for request in scripted.requests)
    assert tries.pop("question 3") in {4, 5}
    assert set(tries.values()) == {1}
    bad = results.pop(3)
    if status is None:
        assert bad["response"] is None
        assert (bad["error"]["code"], bad["custom_id"]) == (code, "request-3")
    else:
        assert bad["error"] is None
        assert bad["response"]["status_code"] == status
        assert bad["response"]["body"] == {"error": {"message": "bug"}}
    assert all(line["response"]["status_code"] == 200 for line in results.values())
    [shard] = await shards_of(runtime.database, batch)
    assert (shard.succeeded, shard.failed) == (line_count - 1, 1)


async def test_a_gateway_s_own_failure_counts_while_neighbours_succeed(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    async def script(request: Request) -> Reply:
        if POISON.encode() in request.body:
            await asyncio.sleep(0.02)
            return Reply(504, b"")
        await asyncio.sleep(0.01)
        return Reply(body=GOOD)

    scripted.script = script
    runtime = with_settings(scripted_runtime, line_max_tries=2, max_in_flight=2)
    runtime.validate_settings.shard_lines = 100
    results = await finished(runtime, await started_batch(runtime, input_file(100)))
    assert results[3]["response"]["status_code"] == 504


async def test_a_line_that_is_always_refused_holds_no_other_up(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    """A prompt that is too long for a limit of tokens a minute, say: it is not first each time."""

    async def script(request: Request) -> Reply:
        return Reply(429) if POISON.encode() in request.body else Reply(body=GOOD)

    scripted.script = script
    runtime = with_settings(scripted_runtime, retry_cap_seconds=0.2)
    batch = await started_batch(runtime, input_file(40))
    running = asyncio.create_task(run_shards(runtime))

    async def are_done() -> bool:
        return await count_results(runtime.database, batch) == 39

    await wait_until(are_done)
    scripted.script = None
    await asyncio.wait_for(running, timeout=30)
    assert len(await results_of(runtime.database, batch)) == 40


async def test_another_model_s_success_says_nothing(
    runtime: Runtime, model_server: SimulatedServer
) -> None:
    """Behind one address, one model is down while the other answers."""
    runtime = with_settings(runtime, line_max_tries=2)
    lines = [
        input_line(n, body={"model": "down", "messages": [{"role": "user", "content": f"d {n}"}]})
        for n in range(1, 6)
    ]
    model_server.settings.fail_marker = '"down"'
    down = await started_batch(runtime, json_lines(*lines))
    well = await started_batch(runtime, input_file(40))
    slots = [asyncio.create_task(run_shards(runtime)) for _ in range(2)]

    async def has_finished() -> bool:
        return (await reload(runtime.database, well)).status == BatchStatus.FINALIZING

    await wait_until(has_finished)
    await wait_until(lambda: len(model_server.calls()) > 40 + 5 * 6)
    assert await count_results(runtime.database, down) == 0
    model_server.settings.fail_marker = None
    await asyncio.wait_for(asyncio.gather(*slots), timeout=30)
    results = await results_of(runtime.database, down)
    assert [line["error"] for line in results.values()] == [None] * 5


async def test_a_model_that_is_down_holds_no_other_up(
    runtime: Runtime, model_server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where a process takes lines from two shards only, and the batch that fails is urgent."""
    monkeypatch.setattr("worker.dispatch._REST_SECONDS", 0.0)
    runtime = with_settings(runtime, stall_seconds=0.1, shards_per_worker=2)
    model_server.settings.fail_marker = '"down"'
    model_server.settings.fail_status = 503
    lines = [
        input_line(n, body={"model": "down", "messages": [{"role": "user", "content": f"d {n}"}]})
        for n in range(1, 21)
    ]
    down = await started_batch(runtime, json_lines(*lines), window=dt.timedelta(hours=1))
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: len(model_server.calls()) > 10)
    well = await started_batch(runtime, input_file(12))
    dispatcher_of(runtime).wake()

    async def has_finished() -> bool:
        return (await reload(runtime.database, well)).status == BatchStatus.FINALIZING

    await wait_until(has_finished)
    assert await count_results(runtime.database, down) == 0
    model_server.settings.fail_marker = None
    await asyncio.wait_for(running, timeout=30)
    await run_shards(runtime)
    assert await count_results(runtime.database, down) == 20
    assert in_flight(runtime) == 0


async def test_a_shard_for_a_server_out_of_reach_is_given_back_but_one(
    runtime: Runtime, model_server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have more luck; the one asks whether the server is back."""
    monkeypatch.setattr("worker.dispatch._REST_SECONDS", 0.0)
    runtime = with_settings(runtime, stall_seconds=0.1, max_in_flight=1)
    model_server.settings.latency = 0.05
    batch = await started_batch(runtime, input_file(15))
    running = asyncio.create_task(run_shards(runtime))
    # All its shards are at hand.
    await wait_until(lambda: waiting(runtime) > 10)
    model_server.settings.outage = True

    async def are_given_back() -> bool:
        shards = await shards_of(runtime.database, batch)
        return sorted(shard.state for shard in shards) == ["queued", "queued", "running"]

    await wait_until(are_given_back)
    model_server.settings.outage = False
    await asyncio.wait_for(running, timeout=30)
    await run_shards(runtime)
    assert await count_results(runtime.database, batch) == 15


async def test_an_outage_is_said_once(
    runtime: Runtime, model_server: SimulatedServer, caplog: pytest.LogCaptureFixture
) -> None:
    model_server.settings.outage = True
    running = asyncio.create_task(finished(runtime, await started_batch(runtime, input_file(5))))
    await wait_until(lambda: len(model_server.calls()) > 20)
    model_server.settings.outage = False
    await running
    assert caplog.text.count("the model server default fails (503)") == 1


async def test_no_more_calls_are_in_flight_than_allowed(
    runtime: Runtime, model_server: SimulatedServer
) -> None:
    model_server.settings.latency = 0.02
    runtime = with_settings(runtime, max_in_flight=4)
    batch = await started_batch(runtime, input_file(40))
    await asyncio.wait_for(asyncio.gather(*(run_shards(runtime) for _ in range(3))), timeout=30)
    assert model_server.stats().peak_in_flight == 4
    assert await count_results(runtime.database, batch) == 40
    assert in_flight(runtime) == 0


async def test_two_workers_share_a_batch(
    runtime: Runtime, other_runtime: Runtime, model_server: SimulatedServer
) -> None:
    batch = await started_batch(runtime, input_file(100))
    workers = [run_shards(worker) for worker in [runtime, other_runtime] * 3]
    await asyncio.wait_for(asyncio.gather(*workers), timeout=30)
    assert await count_results(runtime.database, batch) == 100
    assert (await reload(runtime.database, batch)).status == BatchStatus.FINALIZING
    rung = Counter(rings(runtime) + rings(other_runtime))
    assert rung["finalize", batch.pk] == 1
    # Each was idle, and found something: others may, too.
    assert rung["run", 1] == 2
    assert model_server.stats().calls == 100
