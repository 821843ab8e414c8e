"""The controller finds how many calls a server should have in flight: tried on a model, in virtual time."""

import math
import random
from itertools import pairwise

import pytest

from tests.flow_model import Change, Model, Server
from worker.flow.controller import Controller, Interval

PROCESSES = pytest.mark.parametrize("processes", [1, 2])


def slots(number: int) -> Change:
    """From now on the server has so many."""

    def change(server: Server) -> None:
        server.slots = number

    return change


def heavy_tail(chance: random.Random, _busy: int) -> float:
    return 0.2 * math.exp(chance.gauss(0, 1))


def interval(**values: object) -> Interval:
    """A second with 16 calls in flight that took 0.2 s each."""
    usual: dict[str, object] = {
        "seconds": 1.0,
        "limit": 16,
        "cut": 0,
        "in_flight": 16.0,
        "succeeded": 80,
        "refused": 0,
        "failed": 0,
        "latency_seconds": 16.0,
        "is_limited": True,
        "waiting": None,
    }
    return Interval(**(usual | values))  # type: ignore[arg-type]


@PROCESSES
def test_a_server_that_refuses_is_kept_full_from_cold(processes: int) -> None:
    seen = Model(Server(refuses=True), processes=processes).run()
    assert 20_000 / seen.seconds >= 0.97 * 320
    assert seen.refused < 0.002 * 20_000


@PROCESSES
def test_a_server_that_queues_is_kept_full_and_its_queue_short(processes: int) -> None:
    seen = Model(Server(), processes=processes).run()
    assert 20_000 / seen.seconds >= 0.97 * 320
    assert seen.highest(0) <= 2 * 64
    assert seen.highest(3) <= 1.1 * 64


@pytest.mark.parametrize("number", [24, 40, 90, 100])
def test_any_number_of_slots_is_found(number: int) -> None:
    seen = Model(Server(slots=number), lines=100 * number).run()
    assert 100 * number / seen.seconds >= 0.92 * number * 5
    assert seen.highest(0) <= 2 * number
    assert seen.highest(5) <= 1.2 * number


def test_interactive_traffic_beside_it_hardly_waits() -> None:
    """At 30 % of the capacity; each of its calls takes 0.2 s alone."""
    seen = Model(Server(), lines=12_000, interactive=96, seed=2).run()
    assert seen.percentile(0.99) <= 1.45 * 0.2
    assert 12_000 / seen.seconds >= 0.9 * 0.7 * 320


@pytest.mark.parametrize("refuses", [False, True])
def test_a_heavy_tail_does_not_mislead_it(refuses: bool) -> None:
    seen = Model(Server(seconds=heavy_tail, refuses=refuses), lines=12_000, seed=4).run()
    capacity = 64 / (0.2 * math.exp(0.5))
    assert seen.rate(0, seen.seconds - 3) >= 0.87 * capacity


def test_it_goes_to_where_more_in_flight_brings_little() -> None:
    """A server that is ever slower with more calls, and half as fast as it can ever be with 64."""
    server = Server(slots=10**6, seconds=lambda _chance, busy: (busy + 64) / 300)
    seen = Model(server, lines=10**9, until=60).run()
    assert seen.limit_at(30) >= 50
    assert seen.highest(0) <= 100


def test_a_server_without_latency_gets_a_modest_number() -> None:
    seen = Model(Server(slots=1, seconds=lambda *_: 1 / 2000), lines=30_000).run()
    assert 30_000 / seen.seconds >= 0.98 * 2000
    assert seen.lowest(0) >= 16
    assert seen.highest(0) <= 64


def test_after_an_outage_it_is_back_within_seconds() -> None:
    def die(server: Server) -> None:
        server.dead = True

    def revive(server: Server) -> None:
        server.dead = False

    seen = Model(Server(), lines=10**9, until=40, changes=((10, die), (30, revive))).run()
    assert seen.limit_at(29) < 32
    assert seen.rate(35, 40) >= 0.9 * 320


def test_time_outs_of_an_overloaded_server_lower_the_limit() -> None:
    server = Server(times_out_seconds=0.5)
    seen = Model(server, lines=10**9, until=40, changes=((10, slots(16)),)).run()
    assert seen.limit_at(20) <= 32
    assert seen.rate(25, 40) >= 0.9 * 80


def test_failures_that_fewer_calls_do_not_cure_do_not_starve_it() -> None:
    seen = Model(Server(answers=0.7), lines=10**9, until=60).run()
    assert seen.rate(40, 60) >= 0.6 * 0.7 * 320


def test_a_published_queue_is_kept_short() -> None:
    seen = Model(Server(publishes=True), lines=8_000).run()
    assert 8_000 / seen.seconds >= 0.95 * 320
    assert seen.highest(5) <= 64 * 1.1
    assert seen.lowest(5) >= 64


@pytest.mark.parametrize("refuses", [False, True])
def test_slow_answers_only_make_it_patient(refuses: bool) -> None:
    """30 seconds a call, 256 slots: half an hour of them."""
    server = Server(slots=256, refuses=refuses, seconds=lambda *_: 30.0)
    seen = Model(server, lines=10**9, until=1800, tick_seconds=1.0).run()
    assert seen.rate(600, 1800) >= 0.95 * 256 / 30
    assert seen.highest(600) <= 1.2 * 256
    assert seen.refused <= 0.05 * len(seen.ended)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_slow_server_with_few_slots_is_not_flooded(refuses: bool) -> None:
    server = Server(slots=8, refuses=refuses, seconds=lambda *_: 30.0)
    seen = Model(server, lines=10**9, until=3000, tick_seconds=1.0).run()
    assert seen.rate(60, 3000) >= 0.9 * 8 / 30
    assert seen.highest(1100) <= 10
    assert seen.refused <= 0.02 * len(seen.ended)


@PROCESSES
@pytest.mark.parametrize("refuses", [False, True])
def test_a_server_that_shrinks_is_followed(refuses: bool, processes: int) -> None:
    server = Server(refuses=refuses)
    seen = Model(
        server, lines=10**9, until=40, processes=processes, changes=((10, slots(16)),)
    ).run()
    assert seen.highest(20) <= 20
    assert seen.rate(20, 40) >= 0.95 * 80


@pytest.mark.parametrize("refuses", [False, True])
def test_a_server_that_grows_is_found_out(refuses: bool) -> None:
    server = Server(refuses=refuses)
    seen = Model(server, lines=10**9, until=70, changes=((25, slots(128)),)).run()
    assert seen.rate(60, 70) >= 0.9 * 640


def test_too_few_lines_teach_nothing() -> None:
    controller = Controller(most=1000)
    for _ in range(100):
        controller.step(
            interval(in_flight=3.0, succeeded=15, latency_seconds=3.0, is_limited=False)
        )
    assert controller.limit == 16


def test_another_process_goes_on_from_what_was_dumped() -> None:
    one, other = Controller(most=1000), Controller(most=1000)
    limits = []
    for number in range(100):
        # A server with 40 slots and a little noise.
        in_flight = float(one.limit)
        calls = int(min(in_flight, 40) * 5) + number % 3
        seen = interval(
            limit=one.limit,
            in_flight=in_flight,
            succeeded=calls,
            latency_seconds=calls * max(0.2, in_flight / 200),
        )
        one.step(seen)
        other = Controller.load(other.dump(), most=1000)
        other.step(seen)
        assert (one.limit, one.interval_seconds) == (other.limit, other.interval_seconds)
        limits.append(one.limit)
    assert len({late for early, late in pairwise(limits) if early != late}) > 3


def test_nothing_that_an_interval_may_say_upsets_it() -> None:
    chance = random.Random(7)
    controller = Controller(most=500)
    for _ in range(5000):
        succeeded = chance.choice([0, 1, 50, 3000])
        controller.step(
            interval(
                seconds=chance.choice([0.0, 0.1, 1.0, 60.0]),
                limit=max(1, controller.limit - chance.choice([0, 0, 0, 5])),
                cut=chance.choice([0, 0, 0, 5]),
                in_flight=chance.choice([0.0, 0.3, float(controller.limit)]),
                succeeded=succeeded,
                failed=chance.choice([0, 0, 0, 1, 40]),
                latency_seconds=succeeded * chance.choice([0.0, 0.001, 30.0]),
                is_limited=chance.random() < 0.9,
                waiting=chance.choice([None, None, None, None, 0, 1, 900]),
            )
        )
        assert 1 <= controller.limit <= 500
        assert 0.1 <= controller.interval_seconds <= 5
        controller = Controller.load(controller.dump(), most=500)
