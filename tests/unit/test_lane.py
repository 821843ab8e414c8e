"""A lane: what a call's end says of the server, and when the next may begin."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from models.hours import ActiveHours
from tests.clock import Clock
from tests.fixtures.runtime import run_settings
from worker.flow import lane as lane_module
from worker.flow.exchange import Grant, Limits
from worker.flow.gate import Gate
from worker.flow.lane import Lane, LaneKey
from worker.flow.rate_headers import RateHint
from worker.retry import Blame

LIMITS = Limits(fixed=None, start=16, most=1_000, requests_per_minute=None, tokens_per_minute=None)
GRANT = Grant(cap=8, limit=16, processes=2, pause_seconds=0.0, requests=0, tokens=0)


@dataclass(frozen=True)
class Shard:
    project_pk: int = 1
    weight: float = 1.0
    batch_pk: int = 1
    no: int = 0
    is_urgent: bool = False
    expires_at: datetime = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(eq=False)
class Source:
    """A shard with so many lines at hand."""

    unstarted: int
    again: int = 0
    shard: Shard = Shard()
    is_ready: bool = True

    @property
    def waiting(self) -> int:
        return self.unstarted + self.again

    @property
    def has_fresh(self) -> bool:
        return self.unstarted > 0

    def start_next(self, *, fresh_first: bool) -> None:
        del fresh_first
        self.unstarted -= 1


@dataclass
class Bench:
    """A lane whose gates were granted 8 each, and what happens to its calls."""

    lane: Lane
    clock: Clock

    def agree(self, **changes: object) -> None:
        for gate in self.lane.gates:
            report = gate.report(waiting=self.lane.waiting, tokens_a_line=1)
            grant = replace(GRANT, **changes)  # type: ignore[arg-type]  # the dataclass's fields
            gate.agree(report, grant)

    def is_blocked(self) -> bool:
        return self.lane.is_blocked

    def fill(self) -> int:
        begun = 0
        while self.lane.may_start() and begun < 1_000:
            self.lane.started(10)
            begun += 1
        return begun

    def answer(
        self, seconds: float = 0.2, *, is_success: bool = True, hint: RateHint | None = None
    ) -> None:
        self.lane.answered(
            seconds, is_success=is_success, tokens=10, used=10, answer_tokens=5, hint=hint
        )

    def refuse(
        self,
        asked: float | None = None,
        *,
        is_of_server: bool = False,
        hint: RateHint | None = None,
    ) -> None:
        self.lane.refused(asked, seconds=0.0, is_of_server=is_of_server, tokens=10, hint=hint)

    def fail(self, blame: Blame = Blame.AWAY, *, is_first_try: bool = True) -> None:
        self.lane.failed(blame, "503", tokens=10, is_first_try=is_first_try)

    def go_on(self, seconds: float, **changes: object) -> None:
        """Let time pass; every tenth of a second the lane is looked at, and agreed upon."""
        for _ in range(round(seconds * 10)):
            self.clock.go_on(0.1)
            self.lane.tick()
            self.agree(**changes)


def make(
    *,
    gates: int = 1,
    hours: ActiveHours | None = None,
    pause_server: Callable[[float], None] = lambda _: None,
    **settings: object,
) -> Bench:
    clock = Clock()
    lane = Lane(
        LaneKey("server", "m"),
        [Gate(f"gate {number}", LIMITS, clock) for number in range(gates)],
        settings=run_settings(retry_base_seconds=0.5, retry_cap_seconds=20, **settings),
        clock=clock,
        hours=hours,
        pause_server=pause_server,
    )
    bench = Bench(lane, clock)
    bench.agree()
    return bench


@pytest.fixture
def bench() -> Bench:
    return make()


@pytest.fixture
def hour(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The hour of the day, to be set."""
    at = [12]

    class Day(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Day":
            del tz
            return cls(2026, 1, 1, at[0], tzinfo=UTC)

    monkeypatch.setattr(lane_module, "datetime", Day)
    return at


def test_its_name_in_logs_and_in_redis() -> None:
    assert str(LaneKey("server", "org/model")) == "server/org/model"
    assert str(LaneKey("server", "")) == "server"


def test_calls_begin_until_the_share_is_used_up(bench: Bench) -> None:
    assert bench.fill() == 8
    assert bench.lane.in_flight == 8
    bench.answer()
    assert bench.fill() == 1


def test_every_gate_must_have_room() -> None:
    bench = make(gates=2)
    own, shared = bench.lane.gates
    # Another lane's calls go through the shared one.
    for _ in range(5):
        shared.started(10)
    assert bench.fill() == 3
    assert (own.in_flight, shared.in_flight) == (3, 8)
    assert bench.lane.is_limited
    shared.ended()
    assert bench.fill() == 1


@pytest.mark.parametrize("end", ["answer", "refuse", "fail", "drop"])
def test_every_end_of_a_call_gives_its_place_back_at_every_gate(end: str) -> None:
    bench = make(gates=2)
    bench.lane.started(10)
    ends: dict[str, Callable[[], None]] = {
        "answer": bench.answer,
        "refuse": bench.refuse,
        "fail": bench.fail,
        "drop": lambda: bench.lane.dropped(tokens=10),
    }
    ends[end]()
    assert [gate.in_flight for gate in bench.lane.gates] == [0, 0]


def test_the_first_refusal_pauses_all_of_the_lane(bench: Bench) -> None:
    bench.fill()
    bench.refuse(3.0)
    for _ in range(7):
        bench.answer()
    bench.go_on(2.9)
    assert bench.fill() == 0
    bench.go_on(0.4)
    assert bench.fill() > 0


def test_refusals_without_retry_after_pause_ever_longer_until_an_answer(bench: Bench) -> None:
    def pause_of_next() -> float:
        bench.lane.started(10)
        bench.refuse()
        pause = bench.lane.own.paused_until - bench.clock()
        bench.go_on(pause + 0.5)
        return pause

    for ceiling in (0.5, 1, 2, 4, 8, 16, 20, 20):
        assert ceiling / 2 <= pause_of_next() <= ceiling
    bench.lane.started(10)
    bench.answer()
    assert pause_of_next() <= 0.5


def test_those_that_were_in_flight_when_the_pause_began_make_it_no_longer(bench: Bench) -> None:
    bench.fill()
    for _ in range(8):
        bench.refuse()
    assert bench.lane.own.paused_until - bench.clock() <= 0.5


def test_only_the_lane_s_own_gate_is_cut_by_a_refusal() -> None:
    bench = make(gates=2)
    bench.fill()
    bench.refuse(1.0)
    own, shared = bench.lane.gates
    assert (own.cap, shared.cap) == (7, 8)
    assert own.paused_until > bench.clock() > shared.paused_until
    assert shared.report(waiting=0, tokens_a_line=1).refused == 1


def test_a_refusal_shows_that_the_server_is_there(bench: Bench) -> None:
    for _ in range(3):
        bench.lane.started(10)
        bench.fail()
    since = bench.lane.breaker.opened_at
    bench.go_on(0.6)
    assert bench.fill() == 1
    bench.refuse(1.0)
    assert since is not None
    assert bench.lane.breaker.opened_at is None


def test_an_outage_is_asked_after_by_one_call_at_a_time(bench: Bench) -> None:
    bench.fill()
    for _ in range(8):
        bench.fail()
    assert bench.fill() == 0
    bench.go_on(0.6)
    assert bench.fill() == 1
    bench.go_on(4.8)
    assert bench.fill() == 0


def test_in_an_outage_fresh_lines_are_claimed_only_to_ask_with(bench: Bench) -> None:
    bench.lane.queue.add(Source(unstarted=0, again=9))
    for _ in range(3):
        bench.lane.started(10)
        bench.fail()
    assert not bench.is_blocked()
    bench.lane.queue.add(Source(unstarted=1))
    assert bench.is_blocked()


def test_an_outage_is_asked_after_with_fresh_lines_if_there_are_any(bench: Bench) -> None:
    tried, fresh = Source(unstarted=0, again=9), Source(unstarted=1, shard=Shard(no=1))
    bench.lane.queue.add(tried)
    bench.lane.queue.add(fresh)
    assert bench.lane.next_source() is tried
    for _ in range(3):
        bench.lane.started(10)
        bench.fail()
    assert bench.lane.next_source() is fresh
    fresh.start_next(fresh_first=True)
    assert bench.lane.next_source() is tried


def test_a_server_that_asks_for_patience_for_itself_is_paused_whole() -> None:
    paused: list[float] = []
    bench = make(pause_server=paused.append)
    bench.fill()
    bench.refuse(3.0)
    assert paused == []
    bench.go_on(3.5)
    bench.refuse(4.0, is_of_server=True)
    assert paused == pytest.approx([4.0])


def test_no_server_s_wish_is_kept_for_longer_than_an_hour(bench: Bench) -> None:
    bench.fill()
    bench.refuse(1e9)
    assert bench.lane.own.paused_until == bench.clock() + 3600


def test_after_an_outage_calls_begin_by_and_by(bench: Bench) -> None:
    bench.fill()
    for _ in range(8):
        bench.fail()
    bench.go_on(0.6)
    bench.fill()
    bench.answer()
    assert bench.fill() == 1
    bench.go_on(0.1)
    assert bench.fill() == 7


def test_a_lane_that_is_paused_for_long_is_blocked(bench: Bench) -> None:
    bench.lane.started(10)
    bench.refuse(3.0)
    assert bench.is_blocked()
    bench.go_on(2.1)
    # Lines that are claimed now are at hand when it goes on.
    assert not bench.is_blocked()


def test_a_lane_that_wants_a_share_and_gets_none_is_blocked(bench: Bench) -> None:
    bench.agree(cap=0)
    # It wanted none; with lines to call it will get one.
    assert not bench.is_blocked()
    bench.lane.queue.add(Source(unstarted=3))
    assert bench.is_blocked()
    # What it may do is not known any more.
    bench.clock.go_on(10.0)
    assert not bench.is_blocked()


def test_a_full_lane_is_limited_and_a_paused_one_is_not(bench: Bench) -> None:
    seen = [bench.lane.is_limited]
    bench.fill()
    seen += [bench.lane.is_limited, bench.is_blocked()]
    bench.refuse(5.0)
    assert [*seen, bench.lane.is_limited] == [False, True, False, False]


def test_it_is_limited_for_as_long_as_lines_wait_at_a_full_gate() -> None:
    bench = make(gates=2)
    bench.lane.queue.add(Source(unstarted=3))
    bench.fill()
    own, shared = bench.lane.gates
    shared.cap = 9
    for _ in range(5):
        bench.clock.go_on(0.1)
        bench.lane.tick()
    reports = [gate.report(waiting=0, tokens_a_line=1) for gate in (own, shared)]
    assert [each.limited_seconds for each in reports] == pytest.approx([0.5, 0.0])


def test_a_full_lane_for_which_nothing_waits_is_not_limited(bench: Bench) -> None:
    bench.fill()
    bench.clock.go_on(0.1)
    bench.lane.tick()
    assert bench.lane.own.report(waiting=0, tokens_a_line=1).limited_seconds == 0


def test_a_paused_lane_s_lines_wait_for_another_reason_than_its_share(bench: Bench) -> None:
    bench.lane.queue.add(Source(unstarted=3))
    bench.fill()
    bench.refuse(5.0)
    bench.clock.go_on(0.1)
    bench.lane.tick()
    assert bench.lane.own.report(waiting=0, tokens_a_line=1).limited_seconds == 0


def test_what_waits_and_what_is_unstarted(bench: Bench) -> None:
    assert not bench.lane.is_in_use
    for source in (Source(unstarted=3, again=2), Source(unstarted=0, again=1)):
        bench.lane.queue.add(source)
    assert (bench.lane.unstarted, bench.lane.waiting) == (3, 6)
    assert bench.lane.is_in_use


def test_a_shard_whose_lines_all_back_off_keeps_its_lane_in_use(bench: Bench) -> None:
    bench.lane.queue.add(Source(unstarted=0, is_ready=False))
    assert bench.lane.is_in_use


def test_the_rate_of_starts_is_that_of_the_last_seconds(bench: Bench) -> None:
    for calls, expected in ((5, 50.0), (1, 10.0)):
        for _ in range(100):
            for _ in range(calls):
                bench.lane.started(1)
            bench.go_on(0.1)
        assert bench.lane.starts_a_second == pytest.approx(expected, rel=0.01)


def test_looking_twice_at_one_moment_changes_nothing(bench: Bench) -> None:
    bench.lane.started(1)
    bench.lane.tick()
    assert bench.lane.starts_a_second == 0
    bench.go_on(1.0)
    assert bench.lane.starts_a_second > 0


@pytest.mark.parametrize(("at", "is_open"), [(21, False), (22, True), (5, True), (6, False)])
def test_outside_its_hours_no_call_is_begun(hour: list[int], at: int, is_open: bool) -> None:
    hour[0] = at
    bench = make(hours=ActiveHours.parse(["22:00-06:00"]))
    assert bench.lane.is_open_by_hours() is is_open
    assert bench.lane.may_start() is is_open
    assert bench.is_blocked() is not is_open


def hint(**values: object) -> RateHint:
    return RateHint(**values)  # type: ignore[arg-type]  # the dataclass's fields


def test_no_more_calls_than_the_headers_say_remain_for_this_process(bench: Bench) -> None:
    bench.lane.started(10)
    # Two processes share what remains.
    bench.answer(hint=hint(requests_remaining=6, requests_per_second=2.0))
    assert bench.fill() == 3
    for _ in range(3):
        bench.lane.dropped(tokens=10)
    assert bench.fill() == 0
    bench.go_on(0.9)
    assert bench.fill() == 0
    bench.go_on(0.2)
    assert bench.fill() == 1


def test_no_more_tokens_than_the_headers_say_remain(bench: Bench) -> None:
    bench.lane.started(10)
    bench.answer(hint=hint(tokens_remaining=50, tokens_per_second=10.0))
    # 25 are this process's; the third call goes beyond, and is the last.
    assert bench.fill() == 3
    bench.go_on(0.9)
    assert bench.fill() == 0
    bench.go_on(0.3)
    assert bench.fill() == 1


def test_a_hint_is_good_until_the_next_one(bench: Bench) -> None:
    bench.lane.started(10)
    bench.refuse(0.1, hint=hint(requests_remaining=0, requests_per_second=0.01))
    bench.go_on(0.5)
    assert bench.fill() == 0
    bench.lane.started(10)
    bench.answer()
    assert bench.fill() == 0
    bench.lane.started(10)
    bench.answer(hint=hint(requests_remaining=100, requests_per_second=1.0))
    assert bench.fill() > 0


def test_a_hang_is_told_from_the_latencies_of_good_answers(bench: Bench) -> None:
    def hangs_from() -> float | None:
        return bench.lane.hang_seconds()

    for _ in range(200):
        bench.lane.started(10)
        bench.answer(0.001, is_success=False)
    assert hangs_from() is None
    for _ in range(50):
        bench.lane.started(10)
        bench.answer(7.0)
    # Ten times what 98 % take, in steps of a tenth.
    assert hangs_from() == pytest.approx(70.0, rel=0.1)


def test_settings_bound_what_is_taken_to_hang() -> None:
    for least, factor, expected in ((30.0, 10.0, 30.0), (0.0, 10.0, None), (0.1, 3.0, 0.6)):
        bench = make(hang_seconds=least, hang_factor=factor)
        for _ in range(50):
            bench.lane.started(10)
            bench.answer(0.2)
        found = bench.lane.hang_seconds()
        assert found == (None if expected is None else pytest.approx(expected, rel=0.1))


def test_a_call_s_tokens_are_its_prompt_s_and_an_answer_s_like_those_before(bench: Bench) -> None:
    assert bench.lane.tokens_of(400) == 100
    for _ in range(200):
        bench.lane.started(10)
        bench.lane.answered(0.2, is_success=True, tokens=1, used=1, answer_tokens=301, hint=None)
    assert bench.lane.tokens_of(400) == pytest.approx(400, abs=2)


def test_an_answer_that_says_nothing_of_tokens_used_what_was_thought(bench: Bench) -> None:
    limits = replace(LIMITS, tokens_per_minute=6_000.0)
    lane = Lane(
        LaneKey("server", "m"),
        [Gate("gate", limits, bench.clock)],
        settings=run_settings(),
        clock=bench.clock,
    )
    with_tokens = Bench(lane, bench.clock)
    with_tokens.agree(tokens=20)
    assert with_tokens.fill() == 2
    for used, overdrawn in ((0, 0), (25, 15)):
        lane.answered(0.2, is_success=True, tokens=10, used=used, answer_tokens=1, hint=None)
        assert lane.own.report(waiting=0, tokens_a_line=1).overdrawn_tokens == overdrawn
