"""A gate seen from one process: shares, refusals, pauses, permits, and what is told to the others."""

from dataclasses import replace

import pytest

from tests.clock import Clock
from worker.flow.exchange import Grant, Limits, Report
from worker.flow.gate import LAPSED_SECONDS, Gate

LIMITS = Limits(fixed=None, start=16, most=1_000, requests_per_minute=None, tokens_per_minute=None)
GRANT = Grant(cap=16, limit=16, processes=1, pause_seconds=0.0, requests=0, tokens=0)


def report_of(gate: Gate, *, waiting: int = 100) -> Report:
    return gate.report(waiting=waiting, tokens_a_line=10)


def agree(gate: Gate, *, waiting: int = 100, **changes: object) -> Report:
    """An exchange in which the others grant this."""
    report = report_of(gate, waiting=waiting)
    gate.agree(report, replace(GRANT, **changes))  # type: ignore[arg-type]  # the dataclass's fields
    return report


def fill(gate: Gate, clock: Clock, *, tokens: int = 1) -> int:
    """Begin as many calls as there is room for."""
    begun = 0
    while gate.has_room(clock()) and begun < 10_000:
        gate.started(tokens)
        begun += 1
    return begun


def stay(gate: Gate, clock: Clock, seconds: float, *, cap: int = 16) -> None:
    """Let time pass, with an exchange every tenth of a second."""
    for _ in range(round(seconds * 10)):
        clock.go_on(0.1)
        agree(gate, cap=cap, limit=cap)


def refuse(gate: Gate, *, asked: float | None = None, backoff: float = 0.5) -> bool:
    gate.ended()
    return gate.refused(asked, backoff)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate(clock: Clock) -> Gate:
    """One with a share of 16, cold."""
    gate = Gate("server/model", LIMITS, clock)
    agree(gate)
    return gate


def test_nothing_is_begun_before_a_share_is_agreed_upon(clock: Clock) -> None:
    gate = Gate("server/model", LIMITS, clock)
    assert not gate.is_agreed
    assert fill(gate, clock) == 0


def test_the_share_is_what_may_be_in_flight(gate: Gate, clock: Clock) -> None:
    assert (fill(gate, clock), gate.is_full) == (16, True)
    gate.ended()
    assert (gate.is_full, fill(gate, clock)) == (False, 1)


def test_a_share_that_shrank_stops_nothing_and_lets_nothing_begin(gate: Gate, clock: Clock) -> None:
    fill(gate, clock)
    agree(gate, cap=4)
    for _ in range(12):
        assert not gate.has_room(clock())
        gate.ended()
    assert not gate.has_room(clock())
    gate.ended()
    assert fill(gate, clock) == 1


def test_a_share_lapses_without_agreement_and_is_good_again_with_the_next(
    gate: Gate, clock: Clock
) -> None:
    clock.go_on(LAPSED_SECONDS - 0.01)
    assert gate.has_room(clock())
    clock.go_on(0.01)
    assert not gate.has_room(clock())
    assert not gate.is_agreed
    agree(gate)
    assert gate.has_room(clock())


def test_a_refusal_cuts_the_share_to_what_the_server_still_has(gate: Gate, clock: Clock) -> None:
    fill(gate, clock)
    for left in (15, 14, 13):
        refuse(gate)
        assert gate.cap == left
    report = report_of(gate)
    assert (report.cut, report.refused, report.in_flight) == (3, 3, 13)


def test_one_slot_is_left_whatever_is_refused(gate: Gate) -> None:
    gate.started(1)
    refuse(gate)
    assert gate.cap == 1
    assert report_of(gate).cut == 15


def test_a_refusal_below_a_share_cut_already_cuts_no_further_up(gate: Gate, clock: Clock) -> None:
    fill(gate, clock)
    agree(gate, cap=8)
    # Of 16 in flight 15 are left: more than the share, which says nothing of the share.
    refuse(gate)
    assert gate.cap == 8
    assert report_of(gate).cut == 0


def test_cold_any_refusal_pauses_for_as_long_as_the_server_asks(gate: Gate, clock: Clock) -> None:
    fill(gate, clock)
    assert refuse(gate, asked=3.0)
    gate.ended()
    stay(gate, clock, 2.9)
    assert not gate.has_room(clock())
    stay(gate, clock, 0.2)
    assert gate.has_room(clock())


def test_without_retry_after_the_pause_is_the_backoff(gate: Gate, clock: Clock) -> None:
    fill(gate, clock)
    assert refuse(gate, backoff=0.5)
    assert gate.paused_until == clock() + 0.5


def test_a_shorter_wish_does_not_end_a_longer_pause(gate: Gate, clock: Clock) -> None:
    fill(gate, clock)
    refuse(gate, asked=3.0)
    until = gate.paused_until
    refuse(gate, asked=1.0)
    assert gate.paused_until == until


def test_a_probe_at_the_edge_of_what_is_good_pauses_nothing(gate: Gate, clock: Clock) -> None:
    fill(gate, clock)
    stay(gate, clock, 1.5)
    agree(gate, cap=17)
    assert fill(gate, clock) == 1
    assert not refuse(gate, asked=30.0)
    assert (gate.cap, gate.paused_until) == (16, 0.0)
    assert report_of(gate).pause_seconds == 0


def test_what_was_only_just_begun_is_not_known_to_be_good(gate: Gate, clock: Clock) -> None:
    fill(gate, clock)
    clock.go_on(0.01)
    agree(gate)
    assert refuse(gate, asked=30.0)


def test_what_comes_and_goes_within_a_moment_is_not_known_to_be_good(
    gate: Gate, clock: Clock
) -> None:
    # Always 4, and 16 again and again.
    for _ in range(10):
        clock.go_on(0.1)
        fill(gate, clock)
        agree(gate)
        while gate.in_flight > 4:
            gate.ended()
        agree(gate)
    fill(gate, clock)
    # If 16 were known, the second would leave too few of them.
    assert [refuse(gate) for _ in range(4)] == [False, False, False, True]


def test_a_burst_of_refusals_pauses_even_at_the_edge(gate: Gate, clock: Clock) -> None:
    agree(gate, cap=100)
    fill(gate, clock)
    stay(gate, clock, 1.5, cap=100)
    # A quarter of the 100 that are good may be refused within a second, as a probe may be.
    answers = [refuse(gate, asked=30.0) for _ in range(10)]
    assert not any(answers)
    # The eleventh leaves less than nine tenths of what is known to be good.
    assert refuse(gate, asked=30.0)
    assert gate.paused_until == clock() + 30.0


def test_a_few_that_are_refused_one_after_the_other_are_a_burst(gate: Gate, clock: Clock) -> None:
    fill(gate, clock)
    stay(gate, clock, 1.5)
    answers = []
    for _ in range(5):
        agree(gate, cap=17)
        fill(gate, clock)
        answers.append(refuse(gate, asked=30.0))
    # A quarter of 16 may be probes.
    assert answers == [False] * 4 + [True]


def test_probes_that_are_a_second_apart_are_no_burst(gate: Gate, clock: Clock) -> None:
    fill(gate, clock)
    stay(gate, clock, 1.5)
    for _ in range(20):
        agree(gate, cap=17)
        assert fill(gate, clock) == 1
        assert not refuse(gate, asked=30.0)
        stay(gate, clock, 1.1)


def test_after_a_pause_calls_begin_by_twos_and_fours(gate: Gate, clock: Clock) -> None:
    agree(gate, cap=1_000)
    gate.pause(1.0)
    for _ in range(10):
        clock.go_on(0.1)
        agree(gate, cap=1_000)
    clock.now = gate.paused_until
    begun = []
    for _ in range(6):
        clock.go_on(0.001)
        begun.append(fill(gate, clock))
        clock.go_on(0.019)
    assert begun == [1, 1, 2, 4, 8, 16]
    for _ in range(10):
        clock.go_on(0.02)
    assert fill(gate, clock) == 1_000 - 32


def test_a_server_that_is_back_is_called_by_ones_and_twos_first(gate: Gate, clock: Clock) -> None:
    gate.ramp()
    assert fill(gate, clock) == 1
    clock.go_on(0.021)
    assert fill(gate, clock) == 1
    clock.go_on(1.0)
    assert fill(gate, clock) == 14


def test_a_refusal_by_whose_limit_nobody_knows_only_counts(gate: Gate, clock: Clock) -> None:
    fill(gate, clock)
    gate.ended()
    gate.note_refused()
    assert (gate.cap, gate.paused_until) == (16, 0.0)
    assert report_of(gate).refused == 1


def test_others_are_told_of_a_pause_once_it_is_known_here(gate: Gate, clock: Clock) -> None:
    fill(gate, clock)
    refuse(gate, asked=3.0)
    clock.go_on(1.0)
    assert agree(gate).pause_seconds == pytest.approx(2.0)
    # What they say of it afterwards is no news that would have to be told again.
    clock.go_on(0.1)
    assert agree(gate, pause_seconds=1.9).pause_seconds == 0


def test_others_pauses_are_kept(gate: Gate, clock: Clock) -> None:
    agree(gate, pause_seconds=1.0)
    assert not gate.has_room(clock())
    assert report_of(gate).pause_seconds == 0
    stay(gate, clock, 1.1)
    assert gate.has_room(clock())


def test_what_is_said_of_a_pause_again_and_again_does_not_draw_it_out(
    gate: Gate, clock: Clock
) -> None:
    agree(gate, pause_seconds=1.0)
    until = gate.paused_until
    for _ in range(9):
        clock.go_on(0.1)
        agree(gate, pause_seconds=until - clock() + 0.04)
    assert gate.paused_until == until


def test_the_report_holds_what_was_done(gate: Gate, clock: Clock) -> None:
    for _ in range(4):
        gate.started(1)
    clock.go_on(0.5)
    gate.ended()
    gate.succeeded(0.5)
    gate.ended()
    gate.failed()
    clock.go_on(0.25)
    gate.note_limited(0.3)
    report = report_of(gate, waiting=7)
    assert (report.in_flight, report.demand) == (2, 9)
    assert (report.succeeded, report.refused, report.failed, report.cut) == (1, 0, 1, 0)
    assert report.latency_seconds == 0.5
    assert report.slot_seconds == pytest.approx(4 * 0.5 + 2 * 0.25)
    assert report.limited_seconds == 0.3


def test_what_was_reported_is_not_reported_again_and_nothing_is_lost(
    gate: Gate, clock: Clock
) -> None:
    fill(gate, clock)
    clock.go_on(0.5)
    gate.ended()
    gate.succeeded(0.5)
    under_way = report_of(gate)
    # While the answer is on its way:
    clock.go_on(0.1)
    gate.ended()
    gate.succeeded(0.6)
    gate.ended()
    gate.failed()
    refuse(gate)
    gate.note_limited(0.1)
    gate.agree(under_way, GRANT)
    report = report_of(gate)
    assert (report.succeeded, report.failed, report.refused) == (1, 1, 1)
    assert report.latency_seconds == pytest.approx(0.6)
    assert report.slot_seconds == pytest.approx(15 * 0.1)
    assert report.limited_seconds == pytest.approx(0.1)


def test_a_cut_while_the_answer_is_on_its_way_is_taken_off_it(gate: Gate, clock: Clock) -> None:
    fill(gate, clock)
    refuse(gate)
    under_way = report_of(gate)
    refuse(gate)
    refuse(gate)
    assert under_way.cut == 1
    gate.agree(under_way, replace(GRANT, cap=15))
    assert gate.cap == 13
    assert report_of(gate).cut == 2


def test_an_exchange_that_failed_takes_nothing_off(gate: Gate, clock: Clock) -> None:
    fill(gate, clock)
    gate.ended()
    gate.succeeded(0.5)
    first = report_of(gate)
    assert report_of(gate) == first


def test_a_share_of_none_stays_one(gate: Gate, clock: Clock) -> None:
    agree(gate, cap=0, limit=1, processes=2)
    assert not gate.has_room(clock())
    assert gate.is_agreed


def rated(clock: Clock, *, requests: float | None = None, tokens: float | None = None) -> Gate:
    limits = replace(LIMITS, requests_per_minute=requests, tokens_per_minute=tokens)
    return Gate("server/model", limits, clock)


def test_as_many_calls_as_permits(clock: Clock) -> None:
    gate = rated(clock, requests=60)
    agree(gate, requests=3)
    assert fill(gate, clock) == 3
    for _ in range(3):
        gate.ended()
    assert not gate.has_room(clock())
    agree(gate, requests=2)
    assert fill(gate, clock) == 2


def test_permits_are_wanted_for_what_could_be_begun_and_is_not_covered(clock: Clock) -> None:
    gate = rated(clock, requests=60)
    # Without a share one call is thought of.
    assert agree(gate, waiting=100, requests=1).requests == 1
    assert agree(gate, waiting=100, requests=10).requests == 15
    assert report_of(gate, waiting=100).requests == 5
    assert report_of(gate, waiting=12).requests == 1
    assert report_of(gate, waiting=2).requests == 0


def test_a_call_may_begin_on_the_last_token_and_then_none(clock: Clock) -> None:
    gate = rated(clock, tokens=6_000)
    agree(gate, tokens=25)
    assert fill(gate, clock, tokens=10) == 3
    assert not gate.has_room(clock())


def test_tokens_that_were_not_used_are_there_again(clock: Clock) -> None:
    gate = rated(clock, tokens=6_000)
    agree(gate, tokens=10)
    assert fill(gate, clock, tokens=10) == 1
    gate.ended(tokens_left_over=4)
    assert fill(gate, clock, tokens=4) == 1


def test_tokens_beyond_all_permits_are_told_and_then_settled(clock: Clock) -> None:
    gate = rated(clock, tokens=6_000)
    agree(gate, tokens=10)
    fill(gate, clock, tokens=10)
    gate.ended(tokens_left_over=-35)
    report = report_of(gate, waiting=0)
    assert (report.overdrawn_tokens, report.tokens) == (35, 0)
    gate.agree(report, GRANT)
    # The bucket has it now; here the account is even.
    assert report_of(gate, waiting=0).overdrawn_tokens == 0
    assert not gate.has_room(clock())
    agree(gate, tokens=1)
    assert gate.has_room(clock())


def test_what_is_overdrawn_while_the_answer_is_on_its_way_is_told_next(clock: Clock) -> None:
    gate = rated(clock, tokens=6_000)
    agree(gate, tokens=10)
    gate.started(10)
    gate.started(10)
    report = report_of(gate)
    assert report.overdrawn_tokens == 10
    gate.ended(tokens_left_over=-7)
    gate.agree(report, GRANT)
    assert report_of(gate).overdrawn_tokens == 7


def test_tokens_are_wanted_for_the_lines_that_could_go(clock: Clock) -> None:
    gate = rated(clock, tokens=6_000)
    agree(gate, tokens=30)
    assert report_of(gate, waiting=5).tokens == 5 * 10 - 30
    assert report_of(gate, waiting=100).tokens == 16 * 10 - 30


def test_the_last_report_gives_permits_back(clock: Clock) -> None:
    gate = rated(clock, requests=60, tokens=6_000)
    agree(gate, requests=5, tokens=50)
    gate.started(20)
    gate.ended()
    last = gate.last_report()
    assert (last.requests, last.tokens, last.demand) == (-4, -30, 0)
    # As the exchange answers it: what is given back is granted as so many less.
    gate.agree(last, replace(GRANT, requests=-4, tokens=-30))
    assert not gate.has_room(clock())
    again = gate.last_report()
    assert (again.requests, again.tokens, again.overdrawn_tokens) == (0, 0, 0)


def test_the_last_report_settles_a_debt_and_gives_no_permits(clock: Clock) -> None:
    gate = rated(clock, tokens=6_000)
    agree(gate, tokens=10)
    gate.started(30)
    gate.ended()
    last = gate.last_report()
    assert (last.tokens, last.overdrawn_tokens) == (0, 20)


def test_without_rates_nothing_is_counted_that_could_run_out(gate: Gate, clock: Clock) -> None:
    for _ in range(100):
        assert fill(gate, clock, tokens=10**6) == 16
        for _ in range(16):
            gate.ended(tokens_left_over=-(10**6))
        agree(gate)
