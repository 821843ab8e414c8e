"""The circuit breaker: when an outage is seen, how it is asked after, and what ends it."""

import pytest

from worker.flow.breaker import Breaker
from worker.retry import Blame


def fail(
    breaker: Breaker, times: int, blame: Blame, *, now: float = 0.0, is_first_try: bool = True
) -> list[bool]:
    """So many failures one after the other; which of them opened the breaker."""
    return [breaker.failed(blame, now, is_first_try=is_first_try) for _ in range(times)]


@pytest.fixture
def broken() -> Breaker:
    """One that opened at 0, with probes half a second apart at first and 4 at most."""
    breaker = Breaker(base_seconds=0.5, cap_seconds=4.0)
    fail(breaker, 3, Blame.AWAY)
    assert breaker.is_open
    return breaker


def test_a_server_that_cannot_be_reached_three_times_in_a_row_is_down() -> None:
    breaker = Breaker()
    assert fail(breaker, 2, Blame.AWAY) == [False, False]
    assert breaker.may_start(0.0)
    assert fail(breaker, 1, Blame.AWAY) == [True]
    assert not breaker.may_start(0.0)


def test_an_answer_in_between_starts_the_count_anew() -> None:
    breaker = Breaker()
    for _ in range(10):
        assert fail(breaker, 2, Blame.AWAY) == [False, False]
        assert not breaker.answered(0.0)


@pytest.mark.parametrize("blame", [Blame.UNCLEAR, Blame.OWN])
def test_failures_of_another_kind_open_it_after_ten_first_tries(blame: Blame) -> None:
    assert fail(Breaker(), 10, blame) == [False] * 9 + [True]


def test_lines_that_fail_again_and_again_are_no_outage() -> None:
    breaker = Breaker()
    assert not any(fail(breaker, 100, Blame.UNCLEAR, is_first_try=False))
    assert breaker.may_start(0.0)


def test_it_asks_with_one_call_at_a_time(broken: Breaker) -> None:
    assert not broken.may_start(0.49)
    assert broken.may_start(0.5)
    broken.started(0.5)
    assert not broken.may_start(4.49)


def test_a_probe_that_hangs_keeps_the_next_for_no_longer_than_four_seconds(
    broken: Breaker,
) -> None:
    broken.started(0.5)
    assert broken.may_start(4.5)


def test_it_asks_ever_more_seldom_and_never_less_than_every_four_seconds(broken: Breaker) -> None:
    now, waits = 0.0, []
    for _ in range(8):
        waits.append(broken.probe_at - now)
        now = broken.probe_at
        assert broken.may_start(now)
        broken.started(now)
        now += 0.125
        fail(broken, 1, Blame.AWAY, now=now)
        assert not broken.may_start(now)
    assert waits == pytest.approx([0.5, 0.8, 1.28, 2.048, 3.2768, 4.0, 4.0, 4.0])


def test_calls_that_were_in_flight_put_no_probe_off(broken: Breaker) -> None:
    assert not any(fail(broken, 50, Blame.AWAY, now=0.4))
    assert broken.may_start(0.5)


def test_the_first_answer_ends_it(broken: Breaker) -> None:
    broken.started(0.5)
    assert broken.answered(0.5)
    assert broken.may_start(0.5)
    assert not broken.answered(0.5)
    # It is told from a hiccup anew, and asks as soon as at first.
    assert fail(broken, 3, Blame.AWAY, now=10.0) == [False, False, True]
    assert broken.probe_at == 10.5


def test_it_remembers_since_when_it_is_open(broken: Breaker) -> None:
    broken.started(0.5)
    fail(broken, 1, Blame.AWAY, now=7.0)
    assert broken.opened_at == 0.0


def test_a_probe_that_was_stopped_from_here_is_made_again(broken: Breaker) -> None:
    broken.started(0.5)
    broken.dropped(0.75)
    assert [broken.may_start(now) for now in (1.24, 1.25)] == [False, True]


def test_the_end_of_another_call_makes_no_probe(broken: Breaker) -> None:
    broken.dropped(0.4)
    assert broken.may_start(0.5)


def test_the_late_answer_to_a_call_from_before_does_not_end_it(broken: Breaker) -> None:
    assert not broken.answered(-1.0)
    assert broken.is_open


def test_a_probe_that_hangs_puts_the_next_off_no_longer_than_any(broken: Breaker) -> None:
    broken.started(0.5)
    assert not broken.may_start(0.5 + broken.cap_seconds - 0.01)
    assert broken.may_start(0.5 + broken.cap_seconds)
