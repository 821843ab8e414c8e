"""The simulated server as a busy, limited or failing one, and what it tells of that."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from cli.simulator import SimulatedServer, SimulatorSettings
from cli.simulator.connection import Connection
from cli.simulator.latencies import Latencies
from cli.simulator.prefixes import Prefixes, prefix_of
from cli.simulator.rates import Rates

FOREVER_SECONDS = 86_400


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    server = SimulatedServer(SimulatorSettings(control=True, remember=10))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def client(server: SimulatedServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.origin, timeout=10) as client:
        yield client


async def say(
    client: httpx.AsyncClient, content: str = "Hi", *, system: str | None = None, **headers: str
) -> httpx.Response:
    messages = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"model": "m", "messages": messages}
    return await client.post("/v1/chat/completions", json=body, headers=named)


async def control(client: httpx.AsyncClient, **changes: Any) -> httpx.Response:
    return await client.post("/control", json=changes)


async def stats(client: httpx.AsyncClient) -> dict[str, Any]:
    return dict((await client.get("/stats")).json())


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  # what is waited for happens on the other side of a socket
            await asyncio.sleep(0.002)


# The prefix cache


def test_the_least_recently_used_prefix_goes() -> None:
    kept = Prefixes()
    asked = [b"a", b"b", b"a", b"c", b"a", b"b"]
    assert [kept.look_up(prefix, 2) for prefix in asked] == [False, False, True, False, True, False]


SYSTEM = {"role": "system", "content": "Be brief."}
DEVELOPER = {"role": "developer", "content": "Be kind."}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("first", "second", "is_shared"),
    [
        ({"messages": [SYSTEM, user("a")]}, {"messages": [SYSTEM, user("b")]}, True),
        ({"messages": [SYSTEM, DEVELOPER]}, {"messages": [SYSTEM, user("b")]}, False),
        ({"messages": [user("a")]}, {"messages": [user("b")]}, False),
        ({"messages": [user("a" * 512 + "b")]}, {"messages": [user("a" * 512 + "c")]}, True),
        (
            {"messages": [user("a")], "tools": TOOLS},
            {"messages": [user("b")], "tools": TOOLS},
            True,
        ),
        ({"messages": [SYSTEM], "tools": TOOLS}, {"messages": [SYSTEM], "tools": []}, False),
        ({"instructions": "x", "input": "a"}, {"instructions": "x", "input": "b"}, True),
        ({"instructions": "x", "input": "a"}, {"instructions": "y", "input": "a"}, False),
        ({"prompt": "a" * 600}, {"prompt": "a" * 700}, True),
        ({"prompt": "ab"}, {"prompt": "ac"}, False),
        ({"model": "m", "prompt": "a"}, {"model": "n", "prompt": "a"}, False),
    ],
)
def test_what_a_prefix_is(first: dict[str, Any], second: dict[str, Any], is_shared: bool) -> None:
    assert (prefix_of(first) == prefix_of(second)) is is_shared


async def test_hits_are_told_in_the_usage_and_misses_take_longer(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    def cached(answer: httpx.Response) -> int:
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    system = "Be brief. " * 40
    assert cached(await say(client, "one", system=system)) == 0
    server.settings.prefix_cache = 1
    assert cached(await say(client, "two", system=system)) == 0
    server.settings.prefix_miss_latency = FOREVER_SECONDS
    hit = await say(client, "three", system=system)
    assert 100 <= cached(hit) <= hit.json()["usage"]["prompt_tokens"]
    miss = asyncio.create_task(say(client, "four", system="Other."))
    await until(lambda: server.stats().in_flight == 1)
    miss.cancel()
    counts = server.stats()
    assert (counts.prefix_hits, counts.prefix_misses) == (1, 2)


async def test_a_response_tells_its_hit_too(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    server.settings.prefix_cache = 8
    body = {"model": "m", "instructions": "Be brief.", "input": "How much is a kettle of fish?"}
    details = [
        (await client.post("/v1/responses", json=body)).json()["usage"]["input_tokens_details"]
        for _ in range(2)
    ]
    assert details[0]["cached_tokens"] == 0
    assert details[1]["cached_tokens"] > 0


# Metrics


@pytest.mark.parametrize(
    ("dialect", "lines"),
    [
        (
            "vllm",
            [
                'vllm:num_requests_running{engine="0",model_name="m"} 1.0',
                'vllm:num_requests_waiting{engine="0",model_name="m"} 2.0',
            ],
        ),
        (
            "sglang",
            [
                'sglang:num_running_reqs{model_name="m"} 1.0',
                'sglang:num_queue_reqs{model_name="m"} 2.0',
            ],
        ),
        ("llamacpp", ["llamacpp:requests_processing 1", "llamacpp:requests_deferred 2"]),
    ],
)
async def test_metrics_have_the_names_of_the_real_server(
    server: SimulatedServer, client: httpx.AsyncClient, dialect: Any, lines: list[str]
) -> None:
    assert (await client.get("/metrics")).status_code == 404
    settings = server.settings
    settings.metrics, settings.models, settings.api_key = dialect, ("m",), "key"
    settings.latency, settings.capacity, settings.over = FOREVER_SECONDS, 1, "queue"
    client.headers["authorization"] = "Bearer key"
    async with asyncio.TaskGroup() as asking:
        calls = [asking.create_task(say(client)) for _ in range(3)]
        await until(lambda: server.stats().queued == 2)
        async with httpx.AsyncClient() as scraper:  # which has no key
            answer = await scraper.get(f"{server.origin}/metrics")
        for call in calls:
            call.cancel()
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    said = answer.text.splitlines()
    assert [line for line in said if not line.startswith("#")] == lines
    assert sum(line.startswith("# TYPE ") and line.endswith(" gauge") for line in said) == 2


# Limits a minute


def test_a_bucket_begins_full_and_is_refilled_evenly() -> None:
    clock = Clock()
    rates = Rates(clock)

    def ask(times: int) -> list[float]:
        return [round(rates.admit(60, None, 1), 6) for _ in range(times)]

    assert ask(62) == [0.0] * 60 + [1.0, 1.0]
    assert b"remaining-requests: 0\r\nx-ratelimit-reset-requests: 1m0s\r\n" in rates.headers(
        60, None
    )
    clock.now = 2.25
    assert ask(3) == [0.0, 0.0, 0.75]
    clock.now = 3600
    assert ask(61) == [0.0] * 60 + [1.0]


def test_tokens_are_settled_and_a_huge_call_is_let_in_when_the_bucket_is_full() -> None:
    clock = Clock()
    rates = Rates(clock)
    assert rates.admit(None, 600, 500) == 0
    rates.settle(-400)
    assert b"x-ratelimit-remaining-tokens: 500\r\n" in rates.headers(None, 600)
    assert rates.admit(None, 600, 1_800) == pytest.approx(10)
    clock.now = 10
    assert rates.admit(None, 600, 1_800) == 0
    assert rates.headers(None, 600) == (
        b"x-ratelimit-limit-tokens: 600\r\nx-ratelimit-remaining-tokens: 0\r\n"
        b"x-ratelimit-reset-tokens: 3m0s\r\n"
    )
    # In debt: the next has to wait until that is worked off.
    assert rates.admit(None, 600, 1) == pytest.approx(120.1)


async def test_calls_above_a_limit_get_429_and_every_answer_says_how_things_stand(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    server.settings.requests_per_minute = 2
    server.settings.tokens_per_minute = 60
    first, second, third = [await say(client) for _ in range(3)]
    assert [answer.status_code for answer in (first, second, third)] == [200, 200, 429]
    remaining = [one.headers["x-ratelimit-remaining-requests"] for one in (first, second, third)]
    assert remaining == ["1", "0", "0"]
    assert {one.headers["x-ratelimit-limit-requests"] for one in (first, third)} == {"2"}
    # What the usage says, not the estimate from the body's size.
    used = first.json()["usage"]["total_tokens"]
    assert int(first.headers["x-ratelimit-remaining-tokens"]) == 60 - used
    assert 28 <= int(third.headers["retry-after"]) <= 30
    assert third.headers["x-ratelimit-reset-requests"].endswith("s")
    counts = server.stats()
    assert (counts.rate_limited, counts.refused, counts.other.refused) == (1, 0, 1)
    assert "x-ratelimit-limit-requests" not in (await client.get("/v1/models")).headers


# Control, and outages


async def test_control_changes_all_or_nothing(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    answer = await control(client, latency=0.5, capacity=3, error_status=502)
    assert answer.status_code == 200
    assert answer.json()["capacity"] == 3
    for nonsense in (
        {"latency": 7, "error_rate": 2},
        {"latency": 7, "port": 1},
        {"latency": 7, "over": ["queue"]},
        {"down": "yes"},
        {"capacity": True},
    ):
        assert (await control(client, **nonsense)).status_code == 400
    assert (await client.post("/control", content=b"[")).status_code == 400
    settings = server.settings
    assert (settings.latency, settings.capacity, settings.error_status) == (0.5, 3, 502)
    assert settings.outage is False


async def test_control_is_there_only_when_asked_for_and_wants_the_key(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    paths = ("/control", "/stats/reset")
    server.settings.api_key = "key"
    assert [(await client.post(path, json={})).status_code for path in paths] == [401, 401]
    client.headers["authorization"] = "Bearer key"
    assert [(await client.post(path, json={})).status_code for path in paths] == [200, 200]
    server.settings.control = False
    assert [(await client.post(path, json={})).status_code for path in paths] == [404, 404]


async def test_a_closing_outage_cuts_what_there_is_and_answers_nothing(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    server.settings.latency = FOREVER_SECONDS
    async with httpx.AsyncClient(base_url=server.origin) as controller:
        call = asyncio.create_task(say(client))
        await until(lambda: server.stats().in_flight == 1)
        assert (await control(controller, down=True, down_mode="close")).status_code == 200
        with pytest.raises(httpx.TransportError):
            await call
        with pytest.raises(httpx.TransportError):
            await say(client)
        with pytest.raises(httpx.TransportError):
            await client.get("/health")
        await control(controller, down_mode="503")
        assert (await say(client)).status_code == 503
        await control(controller, down=False, latency=0)
        assert (await say(client)).status_code == 200
        counts = await stats(controller)
    assert counts["by_endpoint"]["/v1/chat/completions"] == {"0": 2, "200": 1, "503": 1}


async def test_a_capacity_that_grows_lets_the_queue_in(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    server.settings.latency = FOREVER_SECONDS
    server.settings.capacity, server.settings.over = 1, "queue"
    async with asyncio.TaskGroup() as asking:
        calls = [asking.create_task(say(client)) for _ in range(3)]
        await until(lambda: server.stats().queued == 2)
        await control(client, capacity=3)
        await until(lambda: server.stats().in_flight == 3)
        for call in calls:
            call.cancel()


# Slots, and load


async def test_a_slot_is_free_before_the_answer_is_written(
    server: SimulatedServer, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_service: list[int] = []
    respond = Connection.respond

    def watched(self: Connection, *args: Any, **more: Any) -> None:
        in_service.append(server.stats().in_flight)
        respond(self, *args, **more)

    monkeypatch.setattr(Connection, "respond", watched)
    server.settings.capacity = 1
    server.settings.latency = 0.001
    for _ in range(3):
        assert (await say(client)).status_code == 200
    server.settings.error_rate = 1
    assert (await say(client)).status_code == 500
    assert in_service == [0, 0, 0, 0]


async def test_nobody_overtakes_the_queue(server: SimulatedServer) -> None:
    # Two requests in one piece: the second arrives in the moment in which the first one's end
    # frees the slot that the queue has waited for.
    server.settings.capacity, server.settings.over = 1, "queue"
    server.settings.latency = 0.05

    def request(name: str) -> bytes:
        body = json.dumps({"model": "m", "prompt": name}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nidempotency-key: {name}\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    port = httpx.URL(server.url).port
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
    (_, pipelined), (_, waiting) = connections
    pipelined.write(request("first") + request("third"))
    await until(lambda: server.stats().in_flight == 1)
    waiting.write(request("second"))
    await until(lambda: server.stats().calls == 3)
    # One at a time, so in the order in which they were served.
    names = [call.headers["idempotency-key"] for call in server.calls()]
    assert names == ["first", "second", "third"]
    for _, writer in connections:
        writer.close()
        await writer.wait_closed()


def test_a_call_takes_longer_for_each_other_one_in_service() -> None:
    server = SimulatedServer(SimulatorSettings(latency=2, token_latency=1, load_latency=0.5))
    seconds = []
    for _ in range(3):
        server._record.begin()
        seconds.append(server._service_seconds(2))
    assert seconds == [4, 6, 8]


# Counts


def test_percentiles_are_the_nearest_rank() -> None:
    seen = Latencies(seconds=[float(number) for number in range(100, 0, -1)])
    traffic = seen.traffic()
    figures = [traffic.p50_seconds, traffic.p90_seconds, traffic.p99_seconds, traffic.most_seconds]
    assert figures == [50, 90, 99, 100]
    assert (traffic.answered, traffic.mean_seconds) == (100, 50.5)
    assert Latencies().traffic().p99_seconds is None


async def test_interactive_calls_are_counted_apart_and_all_can_begin_anew(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    server.settings.capacity = 1
    server.settings.latency = 0.05
    first = asyncio.create_task(say(client))
    await until(lambda: server.stats().in_flight == 1)
    assert (await say(client, X_Traffic="Interactive")).status_code == 429
    server.settings.over = "queue"
    assert (await say(client, X_Traffic="interactive")).status_code == 200
    await first
    counts = await stats(client)
    assert counts["interactive"]["answered"] == counts["other"]["answered"] == 1
    assert (counts["interactive"]["refused"], counts["other"]["refused"]) == (1, 0)
    # It had to wait for the first one to end: time in the queue is part of it.
    assert counts["interactive"]["p99_seconds"] > 0.05
    assert counts["other"]["p50_seconds"] >= 0.045
    assert (counts["peak_in_flight"], counts["peak_in_system"]) == (1, 2)

    anew = (await client.post("/stats/reset")).json()
    assert anew["calls"] == anew["refused"] == anew["peak_in_system"] == 0
    assert anew["by_endpoint"] == {}
    assert anew["interactive"]["answered"] == 0


# The command


def test_every_option_of_the_command_reaches_the_server() -> None:
    options = (
        "--prefix-cache 2 --prefix-miss-latency 0.001 --metrics sglang --requests-per-minute 9 "
        "--tokens-per-minute 9000 --load-latency 0.1 --control --down-mode close --port 0"
    )
    command = [sys.executable, "-m", "cli.main", "simulate", *options.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            origin = process.stdout.readline().strip().removesuffix("/v1")
            with httpx.Client(base_url=origin) as client:
                answer = client.post("/v1/completions", json={"model": "m", "prompt": "Hello"})
                assert answer.headers["x-ratelimit-remaining-requests"] == "8"
                assert answer.headers["x-ratelimit-limit-tokens"] == "9000"
                assert client.get("/stats").json()["prefix_misses"] == 1
                assert "sglang:num_queue_reqs" in client.get("/metrics").text
                held = client.post("/control", json={}).json()
            expected = {"prefix_miss_latency": 0.001, "load_latency": 0.1, "down_mode": "close"}
            assert held.items() >= expected.items()
        finally:
            process.terminate()
