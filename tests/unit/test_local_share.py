"""What a process may do at a gate alone: no more than its share was, and its part of the rates."""

from dataclasses import replace

import pytest

from worker.flow.exchange import Limits, Report
from worker.flow.local_share import LocalShare

LIMITS = Limits(fixed=None, start=16, most=1_000, requests_per_minute=None, tokens_per_minute=None)
FULL = Report(
    in_flight=16,
    demand=100,
    cut=0,
    succeeded=8,
    refused=0,
    failed=0,
    latency_seconds=8 * 0.2,
    slot_seconds=1.6,
    limited_seconds=0.1,
    pause_seconds=0.0,
    requests=0,
    tokens=0,
)
"""A tenth of a second with 16 calls of 0.2 s in flight, and more that wait."""


def report_at(limit: int, **changes: object) -> Report:
    """The same with so many in flight, from a server that takes any number."""
    usual = replace(
        FULL,
        in_flight=limit,
        succeeded=limit // 2,
        latency_seconds=(limit // 2) * 0.2,
        slot_seconds=0.1 * limit,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]  # the dataclass's fields


def limits_seen(share: LocalShare, seconds: float) -> list[int]:
    """The caps while a server that takes everything is called for so long."""
    seen, limit = [], 16
    for step in range(round(seconds * 10)):
        limit = share.exchange(report_at(limit), now=step / 10).cap
        seen.append(limit)
    return seen


def test_alone_it_climbs_to_what_may_be() -> None:
    seen = limits_seen(LocalShare(replace(LIMITS, most=100), cap=None, processes=1), 10)
    assert seen[0] == 16
    assert max(seen) == 100


@pytest.mark.parametrize("cap", [1, 7, 40])
def test_a_share_is_never_exceeded(cap: int) -> None:
    seen = limits_seen(LocalShare(LIMITS, cap=cap, processes=3), 10)
    assert seen[0] == cap
    assert max(seen) == cap


def test_a_share_of_none_is_one_lest_nothing_move() -> None:
    share = LocalShare(LIMITS, cap=0, processes=3)
    assert share.exchange(FULL, now=0.0).cap == 1


@pytest.mark.parametrize(("cap", "expected"), [(None, 8), (3, 3), (20, 8)])
def test_a_fixed_limit_is_not_moved(cap: int | None, expected: int) -> None:
    share = LocalShare(replace(LIMITS, fixed=8), cap=cap, processes=2)
    for step in range(100):
        grant = share.exchange(replace(FULL, cut=2, refused=2), now=step / 10)
        assert (grant.cap, grant.limit) == (expected, expected)


def test_what_was_cut_is_given_up_at_once() -> None:
    share = LocalShare(LIMITS, cap=40, processes=2)
    share.exchange(FULL, now=0.0)
    assert share.exchange(replace(FULL, cut=15, refused=15), now=0.01).cap == 25
    assert share.exchange(replace(FULL, cut=100), now=0.02).cap == 1


def test_it_is_the_only_process_and_keeps_its_own_pause() -> None:
    share = LocalShare(LIMITS, cap=4, processes=4)
    grant = share.exchange(replace(FULL, pause_seconds=2.5), now=0.0)
    assert (grant.pause_seconds, grant.processes, grant.totals) == (2.5, 1, None)


def test_without_rates_every_permit_is_granted() -> None:
    grant = LocalShare(LIMITS, cap=4, processes=2).exchange(
        replace(FULL, requests=70, tokens=900), now=0.0
    )
    assert (grant.requests, grant.tokens) == (70, 900)


def test_the_rate_is_parted_among_the_processes() -> None:
    limits = replace(LIMITS, requests_per_minute=1_200.0, tokens_per_minute=60_000.0)
    share = LocalShare(limits, cap=4, processes=4)
    greedy = replace(FULL, requests=10_000, tokens=10**6)
    grants = [share.exchange(greedy, now=step / 10) for step in range(601)]
    assert sum(grant.requests for grant in grants) == pytest.approx(300, abs=1)
    assert sum(grant.tokens for grant in grants) == pytest.approx(15_000, abs=30)


def test_permits_of_a_quiet_time_are_kept_for_two_seconds_only() -> None:
    share = LocalShare(replace(LIMITS, requests_per_minute=600.0), cap=4, processes=1)
    share.exchange(FULL, now=0.0)
    assert share.exchange(replace(FULL, requests=1_000), now=3_600.0).requests == 20
    assert share.exchange(replace(FULL, requests=1_000), now=3_600.0).requests == 0


def test_a_rate_of_less_than_one_a_second_lets_one_through_now_and_then() -> None:
    share = LocalShare(replace(LIMITS, requests_per_minute=7.5), cap=4, processes=1)
    wanting = replace(FULL, requests=1)
    granted = [second for second in range(60) if share.exchange(wanting, now=second).requests]
    assert granted == [8, 16, 24, 32, 40, 48, 56]


def test_overdrawn_tokens_are_paid_off_first() -> None:
    share = LocalShare(replace(LIMITS, tokens_per_minute=6_000.0), cap=4, processes=1)
    share.exchange(FULL, now=0.0)
    wanting = replace(FULL, tokens=10)
    # 200 are kept at most; 500 more were used than there were.
    assert share.exchange(replace(wanting, overdrawn_tokens=700), now=2.0).tokens == 0
    assert share.exchange(wanting, now=6.9).tokens == 0
    assert share.exchange(wanting, now=7.25).tokens == 10


def test_nothing_is_granted_of_what_is_given_back() -> None:
    share = LocalShare(
        replace(LIMITS, requests_per_minute=600.0, tokens_per_minute=6_000.0), cap=4, processes=1
    )
    grant = share.exchange(replace(FULL, requests=-5, tokens=-50), now=0.0)
    assert grant.requests <= 0
    assert grant.tokens <= 0
