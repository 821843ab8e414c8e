"""How long calls take, and from when on one hangs."""

import random

import pytest

from worker.flow.latency import Latencies


def latencies(*seconds: float) -> Latencies:
    made = Latencies()
    for each in seconds:
        made.add(each)
    return made


def test_fewer_than_fifty_calls_tell_nothing() -> None:
    few = latencies(*[0.2] * 49)
    assert few.quantile(0.5) is None
    assert few.hang_seconds(least_seconds=1.0, factor=10.0) is None
    few.add(0.2)
    assert few.quantile(0.5) is not None


@pytest.mark.parametrize("seconds", [0.0011, 0.05, 0.2, 7.0, 900.0, 100_000.0])
def test_a_quantile_is_at_most_a_tenth_too_long_and_never_too_short(seconds: float) -> None:
    found = latencies(*[seconds] * 50).quantile(0.98)
    assert found is not None
    assert seconds <= found <= 1.1 * seconds * 1.000001


def test_quantiles_of_a_spread() -> None:
    chance = random.Random(3)
    values = sorted(chance.lognormvariate(0, 1) for _ in range(1_500))
    made = latencies(*values)
    for share in (0.1, 0.5, 0.9, 0.98):
        found = made.quantile(share)
        assert found is not None
        assert values[int(share * 1_500) - 1] <= found <= 1.1 * values[int(share * 1_500) + 1]


def test_one_call_in_a_hundred_does_not_make_the_limit_longer() -> None:
    usual = latencies(*[0.2] * 99).hang_seconds(least_seconds=0.0, factor=10.0)
    assert latencies(*[0.2] * 99, 500.0).hang_seconds(least_seconds=0.0, factor=10.0) == usual
    assert usual == pytest.approx(2.0, rel=0.1)


def test_the_limit_is_never_less_than_the_least() -> None:
    assert latencies(*[0.2] * 50).hang_seconds(least_seconds=30.0, factor=10.0) == 30.0


def test_it_follows_a_server_that_becomes_slower_and_one_that_becomes_faster() -> None:
    made = latencies(*[0.2] * 100_000)
    for seconds in (5.0, 0.1):
        for _ in range(4_000):
            made.add(seconds)
        assert made.quantile(0.5) == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e9])
def test_times_out_of_all_bounds_are_counted_at_the_bounds(seconds: float) -> None:
    found = latencies(*[seconds] * 50).quantile(0.5)
    assert found is not None
    assert found == pytest.approx(0.0011 if seconds < 1 else 0.001 * 1.1**200, rel=0.001)
