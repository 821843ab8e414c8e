"""Ending early: stopped, cancelled, expired or fenced off; and faults in mid-shard."""

import asyncio
import datetime as dt
import time
from dataclasses import replace

import pytest
from sqlalchemy import delete, update

from cli.simulator import SimulatedServer
from models import Batch, FileChunk, Shard
from models.lifecycle import BatchStatus
from models.lines import Endpoint, InputLine, decode_input_line
from models.queries import advance
from tests.factories import input_file, make_result
from tests.fixtures.runtime import (
    Reply,
    ScriptedServer,
    Switch,
    count_results,
    in_flight,
    reload,
    results_of,
    rings,
    run_shards,
    shards_of,
    started_batch,
    wait_until,
    waiting,
)
from tests.running import (
    POISON,
    Gate,
    finished,
    with_settings,
)
from worker.attempts import Attempts, Line
from worker.dispatch import dispatcher_of
from worker.runtime import Runtime
from worker.upstream import Outcome, Upstream


async def test_a_stopped_worker_lets_its_calls_end_and_begins_none(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    gate = Gate(scripted, lets_through=1)
    runtime = with_settings(scripted_runtime, max_in_flight=2)
    batch = await started_batch(runtime, input_file(7))
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: gate.held == 2 and waiting(runtime) > 0)
    runtime.draining.set()
    await wait_until(lambda: waiting(runtime) == 0)
    gate.open()
    await asyncio.wait_for(running, timeout=10)
    # One before, two in flight; no other, and not the other shard.
    assert len(scripted.requests) == 3
    assert len(await results_of(runtime.database, batch)) == 3
    first, second = await shards_of(runtime.database, batch)
    assert [first.state, second.state] == ["queued", "queued"]
    assert (first.succeeded, first.lease_owner) == (3, None)
    # Somebody else may go on at once.
    assert rings(runtime)[-1] == ("run", 1)
    assert in_flight(runtime) == 0
    await run_shards(runtime)
    assert len(scripted.requests) == 3


async def test_another_worker_calls_only_what_is_missing(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    gate = Gate(scripted, lets_through=2)
    runtime = with_settings(scripted_runtime, drain_seconds=0.1)
    batch = await started_batch(runtime, input_file(5))
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: gate.held == 3)
    runtime.draining.set()
    # Not even those in flight come to an end: the drain time is over first.
    await asyncio.wait_for(running, timeout=10)
    assert in_flight(runtime) == 0
    [shard] = await shards_of(runtime.database, batch)
    assert (shard.state, shard.succeeded) == ("queued", 2)

    gate.open()
    before = {request.headers["idempotency-key"]: request for request in scripted.requests}
    scripted.requests.clear()
    other = replace(scripted_runtime, owner="worker-2", draining=asyncio.Event())
    results = await finished(other, batch)
    assert len(results) == 5
    # The three that had no result, each known to the server by the same key as before.
    assert len(scripted.requests) == 3
    for request in scripted.requests:
        assert before[request.headers["idempotency-key"]].body == request.body


async def test_a_worker_that_is_stopped_while_lines_back_off(
    runtime: Runtime, model_server: SimulatedServer
) -> None:
    model_server.settings.outage = True
    runtime = with_settings(runtime, retry_base_seconds=60, retry_cap_seconds=60)
    batch = await started_batch(runtime, input_file(5))
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: len(model_server.calls()) == 5)
    runtime.draining.set()
    await asyncio.wait_for(running, timeout=5)
    assert in_flight(runtime) == 0
    [shard] = await shards_of(runtime.database, batch)
    assert (shard.state, shard.succeeded, shard.failed) == ("queued", 0, 0)


async def test_a_call_that_fails_while_its_worker_stops_is_left_to_another(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    gate = Gate(scripted, lets_through=2)
    gate.held_reply = Reply(500)
    batch = await started_batch(scripted_runtime, input_file(5))
    running = asyncio.create_task(run_shards(scripted_runtime))
    await wait_until(lambda: gate.held == 3)
    scripted_runtime.draining.set()
    await asyncio.sleep(0)
    gate.open()
    await asyncio.wait_for(running, timeout=10)
    assert len(scripted.requests) == 5
    assert len(await results_of(scripted_runtime.database, batch)) == 2


async def cancel(runtime: Runtime, batch: Batch) -> None:
    async with runtime.database.begin() as session:
        assert await advance(session, batch.pk, BatchStatus.CANCELLING)


async def test_a_cancel_stops_new_calls_and_keeps_what_ends(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    gate = Gate(scripted, lets_through=1)
    runtime = with_settings(scripted_runtime, max_in_flight=2)
    batch = await started_batch(runtime, input_file(7))
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: gate.held == 2 and waiting(runtime) > 0)
    began = time.monotonic()
    await cancel(runtime, batch)
    await wait_until(lambda: waiting(runtime) == 0)
    # With a heartbeat, of which there are four in a lease's time.
    assert time.monotonic() - began < runtime.run_settings.lease_seconds / 2
    gate.open()
    await asyncio.wait_for(running, timeout=10)
    assert len(scripted.requests) == 3
    assert len(await results_of(runtime.database, batch)) == 3
    first, _ = await shards_of(runtime.database, batch)
    assert (first.state, first.succeeded) == ("queued", 3)
    assert rings(runtime)[-1] == ("finalize", batch.pk)


async def test_a_cancelled_batch_s_hanging_calls_are_given_up_in_time(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    gate = Gate(scripted, lets_through=2)
    runtime = with_settings(scripted_runtime, cancel_grace_seconds=0.1)
    batch = await started_batch(runtime, input_file(5))
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: gate.held == 3)
    await cancel(runtime, batch)
    await asyncio.wait_for(running, timeout=10)
    assert len(await results_of(runtime.database, batch)) == 2
    assert in_flight(runtime) == 0
    await wait_until(lambda: scripted.connections == 2)


async def test_the_window_s_end_ends_every_call(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    gate = Gate(scripted, lets_through=2)
    runtime = with_settings(scripted_runtime, max_in_flight=3)
    batch = await started_batch(runtime, input_file(7), window=dt.timedelta(seconds=1.5))
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: gate.held == 3)
    await asyncio.wait_for(running, timeout=10)
    assert (await reload(runtime.database, batch)).expires_at <= dt.datetime.now(dt.UTC)
    assert len(scripted.requests) == 5
    assert len(await results_of(runtime.database, batch)) == 2
    assert in_flight(runtime) == 0


async def test_who_loses_the_lease_stops_and_the_new_holder_s_results_count(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    gate = Gate(scripted, lets_through=2)
    batch = await started_batch(scripted_runtime, input_file(5))
    running = asyncio.create_task(run_shards(scripted_runtime))
    await wait_until(lambda: gate.held == 3)
    async with scripted_runtime.database.begin() as session:
        # As if it had lapsed, and somebody else had claimed it.
        await session.execute(update(Shard).values(lease_owner="somebody"))
    await asyncio.wait_for(running, timeout=10)
    [shard] = await shards_of(scripted_runtime.database, batch)
    assert (shard.state, shard.lease_owner) == ("running", "somebody")
    assert await count_results(scripted_runtime.database, batch) == shard.succeeded <= 2
    assert in_flight(scripted_runtime) == 0


async def test_an_outage_of_the_database_loses_and_repeats_nothing(
    runtime: Runtime, model_server: SimulatedServer, outage: Switch
) -> None:
    model_server.settings.latency = 0.05
    runtime = with_settings(runtime, max_in_flight=3)
    runtime.validate_settings.shard_lines = 1000
    batch = await started_batch(runtime, input_file(150))
    running = asyncio.create_task(finished(runtime, batch))
    await wait_until(lambda: model_server.stats().calls > 5)
    await outage()
    # Calls in flight end, and no new one is begun.
    await wait_until(lambda: in_flight(runtime) == 0)
    calls = model_server.stats().calls
    assert calls < 150
    await outage()
    results = await running
    assert len(results) == 150
    assert (model_server.stats().calls, model_server.stats().repeated_calls) == (150, 0)


async def test_an_unforeseen_failure_is_its_line_s_alone(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    send = Upstream.send

    async def faulty(
        self: Upstream, endpoint: Endpoint, body: bytes, *, idempotency_key: str, **_: str | None
    ) -> Outcome:
        if POISON.encode() in body:
            raise ValueError(body)
        return await send(self, endpoint, body, idempotency_key=idempotency_key)

    monkeypatch.setattr(Upstream, "send", faulty)
    batch = await started_batch(runtime, input_file(5))
    results = await finished(runtime, batch)
    bad = results.pop(3)
    assert bad["response"] is None
    assert bad["error"]["code"] == "internal_error"
    assert all(line["error"] is None for line in results.values())
    assert len(results) == 4
    assert "line 3: ValueError at " in caplog.text
    assert "test_run_ends.py:" in caplog.text
    assert "question" not in caplog.text


async def test_a_line_that_cannot_be_taken_apart_fails_alone(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nested so deeply that one reader can just follow, and the other just not."""

    def fussy(raw: bytes) -> InputLine:
        if POISON.encode() in raw:
            raise RecursionError
        return decode_input_line(raw)

    monkeypatch.setattr("worker.attempts.decode_input_line", fussy)
    results = await finished(runtime, await started_batch(runtime, input_file(5)))
    assert (results[3]["custom_id"], results[3]["error"]["code"]) == ("request-3", "internal_error")
    assert len(results) == 5


@pytest.mark.parametrize("step", ["begin", "judge"])
async def test_a_fault_beside_a_call_costs_its_line_alone_and_no_place(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole = getattr(Attempts, step)

    def faulty(self: Attempts, line: Line, *rest: Outcome) -> object:
        if line.line_no == 3 and step == "begin":
            raise ValueError
        verdict = whole(self, line, *rest)
        if line.line_no == 3:
            raise ValueError
        return verdict

    monkeypatch.setattr(Attempts, step, faulty)
    # With fewer places than lines, so that one that is lost is missed.
    runtime = with_settings(runtime, max_in_flight=1)
    results = await finished(runtime, await started_batch(runtime, input_file(5)))
    codes = {no: line["error"] and line["error"]["code"] for no, line in results.items()}
    assert codes == {1: None, 2: None, 3: "internal_error", 4: None, 5: None}
    [lane] = dispatcher_of(runtime).lanes
    assert [gate.in_flight for gate in lane.gates] == [0]


async def test_an_input_that_cannot_be_read_gives_the_shard_back(
    runtime: Runtime, model_server: SimulatedServer
) -> None:
    batch = await started_batch(runtime, input_file(5))
    async with runtime.database.begin() as session:
        await session.execute(delete(FileChunk))
    await asyncio.wait_for(run_shards(runtime), timeout=10)
    [shard] = await shards_of(runtime.database, batch)
    assert (shard.state, shard.lease_owner) == ("queued", None)
    assert model_server.stats().calls == 0
    assert in_flight(runtime) == 0


async def test_a_line_that_is_aborted_before_it_began_gives_its_slot_back(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Attempts.begin
    begun = []

    def trip(self: Attempts, line: Line) -> None:
        """Just between the third line's taking its slot and its task's first step."""
        begin(self, line)
        begun.append(line)
        if len(begun) == 3:
            asyncio.get_running_loop().call_soon(runtime.draining.set)

    monkeypatch.setattr(Attempts, "begin", trip)
    runtime = with_settings(runtime, drain_seconds=0, max_in_flight=3)
    batch = await started_batch(runtime, input_file(5))
    await asyncio.wait_for(run_shards(runtime), timeout=10)
    assert len(begun) == 3
    assert in_flight(runtime) == 0
    assert await count_results(runtime.database, batch) == 0


async def test_no_prompt_and_no_completion_is_logged(
    runtime: Runtime,
    model_server: SimulatedServer,
    caplog: pytest.LogCaptureFixture,
    outage: Switch,
) -> None:
    caplog.set_level("DEBUG")
    model_server.settings.error_rate = 0.5
    model_server.settings.drop_rate = 0.3
    model_server.settings.bad_request_marker = '"question 2"'
    model_server.settings.latency = 0.02
    batch = await started_batch(runtime, input_file(5))
    running = asyncio.create_task(finished(runtime, batch))
    await wait_until(lambda: model_server.stats().calls > 3)
    await outage()
    await asyncio.sleep(0)
    await outage()
    await running
    text = caplog.text
    assert "question" not in text
    assert "Simulated answer" not in text
    assert "upstream-own-key" not in text


async def test_nothing_to_do(runtime: Runtime) -> None:
    await run_shards(runtime)
    assert rings(runtime) == []


async def test_a_shard_whose_results_are_all_there_is_just_closed(
    runtime: Runtime, model_server: SimulatedServer
) -> None:
    """The worker died between its last write and the closing."""
    batch = await started_batch(runtime, input_file(5))
    for line_no in range(1, 6):
        await make_result(runtime.database, batch, line_no)
    async with runtime.database.begin() as session:
        await session.execute(update(Shard).values(succeeded=5, claims=1))
    await finished(runtime, batch)
    assert model_server.stats().calls == 0
