"""When a failure counts against its line, and how long to wait: arithmetic, with no clock."""

import pytest

from models.lines import Endpoint
from models.settings import UpstreamSettings
from worker.retry import Blame, Neighbours, backoff_seconds
from worker.runtime import NeighboursByModel
from worker.settings import RunSettings


@pytest.mark.parametrize("failures", [1, 2, 3, 4, 5])
def test_the_wait_doubles_and_is_spread_over_its_upper_half(failures: int) -> None:
    waits = [
        backoff_seconds(failures, base_seconds=0.5, cap_seconds=20, retry_after_seconds=None)
        for _ in range(200)
    ]
    ceiling = 0.5 * 2 ** (failures - 1)
    assert all(ceiling / 2 <= wait <= ceiling for wait in waits)
    assert len(set(waits)) > 100


@pytest.mark.parametrize("failures", [7, 40, 10**9])
def test_the_wait_is_capped_however_often_it_failed(failures: int) -> None:
    wait = backoff_seconds(failures, base_seconds=0.5, cap_seconds=20, retry_after_seconds=None)
    assert 10 <= wait <= 20


@pytest.mark.parametrize("asked", [0.001, 1.0, 3600.0])
def test_a_wait_that_is_asked_for_is_kept_and_only_ever_lengthened(asked: float) -> None:
    for failures in (1, 30):
        wait = backoff_seconds(
            failures, base_seconds=0.5, cap_seconds=20, retry_after_seconds=asked
        )
        assert asked <= wait <= 1.1 * asked


def charge(neighbours: Neighbours, blame: Blame, *, before: int | None = None, now: float) -> bool:
    seen = neighbours.successes if before is None else before
    return neighbours.charge(blame, successes_before=seen, now=now)


@pytest.mark.parametrize("blame", [Blame.BUSY, Blame.AWAY, Blame.UNCLEAR])
def test_nothing_is_charged_before_anything_has_succeeded(blame: Blame) -> None:
    assert not charge(Neighbours(), blame, now=1)


def test_what_a_server_that_was_seen_to_be_well_does_not_do_is_charged() -> None:
    assert charge(Neighbours(), Blame.OWN, now=1)


def test_a_busy_server_charges_nobody() -> None:
    neighbours = Neighbours()
    neighbours.succeeded(1)
    neighbours.succeeded(2)
    assert not charge(neighbours, Blame.BUSY, before=0, now=3)
    assert not charge(neighbours, Blame.BUSY, now=3)


@pytest.mark.parametrize("blame", [Blame.AWAY, Blame.UNCLEAR])
def test_a_success_of_another_line_meanwhile_charges_the_one_that_failed(blame: Blame) -> None:
    neighbours = Neighbours()
    before = neighbours.successes
    neighbours.succeeded(1)
    assert charge(neighbours, blame, before=before, now=2)


def test_an_unreachable_server_charges_nobody_without_such_a_success() -> None:
    neighbours = Neighbours()
    neighbours.succeeded(1)
    assert not charge(neighbours, Blame.AWAY, now=2)


def test_the_last_lines_of_a_batch_are_charged_though_nobody_is_left_to_succeed() -> None:
    neighbours = Neighbours(few=3)
    neighbours.succeeded(1)
    for _ in range(3):
        neighbours.first_try_failed()
    assert charge(neighbours, Blame.UNCLEAR, now=2)


def test_many_first_tries_failing_in_a_row_are_an_outage() -> None:
    neighbours = Neighbours(few=3)
    neighbours.succeeded(1)
    for _ in range(4):
        neighbours.first_try_failed()
    assert not charge(neighbours, Blame.UNCLEAR, now=2)
    # Until somebody succeeds again.
    neighbours.succeeded(3)
    assert charge(neighbours, Blame.UNCLEAR, now=4)


def test_a_success_of_long_ago_says_nothing_about_now() -> None:
    neighbours = Neighbours(recent_seconds=600)
    neighbours.succeeded(1)
    assert charge(neighbours, Blame.UNCLEAR, now=600)
    assert not charge(neighbours, Blame.UNCLEAR, now=601)


@pytest.mark.parametrize(("timeout", "seconds"), [(10, 600), (600, 4200)])
def test_evidence_outlasts_the_tries_of_a_line_that_times_out(timeout: int, seconds: int) -> None:
    settings = UpstreamSettings.model_validate(
        {"upstream_url": "http://m/v1", "call_timeout_seconds": timeout}
    )
    evidence = NeighboursByModel(RunSettings(), settings.upstreams())
    neighbours = evidence[Endpoint.EMBEDDINGS, "m"]
    assert evidence[Endpoint.EMBEDDINGS, "m"] is neighbours
    assert neighbours.recent_seconds == seconds
