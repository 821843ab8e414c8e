"""Where throughput stops to grow: the climb, the hold and the tests of `controller`. Pure."""

import math
from dataclasses import dataclass, field
from typing import Literal

from worker.flow.sample import Sample, change_of, elasticity, learn_spread, noise_between

DOUBLE = 1.0
SMALLEST_STEP = 0.04
LARGEST_STEP = 0.3  # of a test; the climb takes larger ones
PROBE_STEP = 0.02
LOOK_SECONDS = 3.0
SURE = 3.5  # a step is so many times the noise of the look at it
UPSET = 4.0  # and so much noise is none
SURELY_BELOW = 0.85  # the elasticity of a level that is below the knee
SETTLED = 1.3  # of the calls in flight are answered before a level is looked at
SHORT = 0.2  # of a step less than the knee: what comes beside must find room
LONGEST_WAIT_SECONDS = 30.0
LONGEST_PROBE_WAIT_SECONDS = 20.0
# Below this mean latency our own turnaround hides what the server does: calls to cover it are kept.
TURNAROUND_SECONDS = 0.02


@dataclass(slots=True, kw_only=True)
class State:
    """All that a controller knows; another process may go on from it."""

    limit: int
    interval_seconds: float = 0.25
    phase: Literal["climb", "hold", "down", "probe"] = "climb"
    step: float = DOUBLE
    unsettled: float = 0.0  # answers that still come from the level before
    window: Sample = field(default_factory=Sample)
    base: Sample = field(default_factory=Sample)  # what the window is compared with
    base_limit: int = 0
    is_refused: bool = False  # the server refused what is above the limit
    has_risen: bool = False  # some level was found to be below the knee
    is_doubted: bool = False  # whether the level last climbed to brought enough
    leap: bool = False  # the next test upwards is a doubling
    plunge: bool = False  # the next test is a large one downwards
    held_seconds: float = 0.0
    up_wait_seconds: float = 1.0
    down_wait_seconds: float = 2.0
    calm_limit: int = 0  # where few calls failed last
    answered: float = 0.0
    failed: float = 0.0
    blamed_share: float = 0.0  # of calls that failed before the last retreat
    tolerated_share: float = 0.0  # of calls that fail however few there are
    rate: float = 0.0  # answers a second, last
    usual: Sample = field(default_factory=Sample)  # what the next look should show, if known
    spread: float = 1.0  # of one call's latency, relative: by how much looks at one level differ


class Search:
    """Moves the limit of its state by what is seen."""

    def __init__(self, state: State, *, most: int) -> None:
        self.state = state
        self.most = most

    def look(self, seen: Sample) -> None:
        """Take in what came of calls that the limit alone held back."""
        state = self.state
        known = state.base if state.phase == "hold" and state.base.calls else state.window
        state.spread = learn_spread(state.spread, known, seen)
        state.window.add(seen)
        if self._is_upset():
            self.hold(state.limit)
            state.unsettled = state.limit
        elif self._has_seen_enough():
            self._decide()

    def _is_upset(self) -> bool:
        """Whether the throughput fell by more than the test can have done: the server has changed."""
        state = self.state
        seen, base = state.window, state.base
        if seen.seconds < 1.0 or seen.calls < 16 or not base.calls or state.phase == "probe":
            return False
        expected = base.rate * min(1.0, seen.in_flight / base.in_flight)
        change = change_of(expected, seen.rate)
        return change < -max(0.25, UPSET * noise_between(seen, base, state.spread))

    def _has_seen_enough(self) -> bool:
        state = self.state
        is_large = state.phase in ("climb", "down") and state.step > LARGEST_STEP
        least_seconds = 0.1 if is_large else 1.0
        return state.window.seconds >= least_seconds and state.window.calls >= self.calls_needed()

    def calls_needed(self) -> float:
        """So many answers that their noise is well below the step."""
        state = self.state
        if state.phase in ("hold", "probe"):
            return max(state.limit, 16)
        turnover = state.limit / 2 if state.step > LARGEST_STEP else state.limit
        return max(turnover, 16, min(1000, (SURE * state.spread / state.step) ** 2))

    def _decide(self) -> None:
        state = self.state
        seen = state.window
        is_first = not state.base.calls
        is_climb = state.phase == "climb" and not is_first
        if is_climb and seen.calls < 100 and self._is_doubtful(seen):
            return
        state.window = Sample()
        state.rate = seen.rate
        if state.phase == "hold":
            self._watch(seen)
        elif state.phase == "probe":
            state.is_refused = False
            state.up_wait_seconds = 1.0
            self._climb(self._test_step(), base=seen)
        elif is_first:
            self._climb(state.step, base=seen)
        elif is_climb:
            self._judge_climb(seen)
        else:
            self._judge_descent(seen)

    def _is_doubtful(self, high: Sample) -> bool:
        """Whether too few answers say that the climb is over."""
        state = self.state
        noise = noise_between(state.base, high, state.spread)
        doubt = noise / max(0.01, change_of(state.base.in_flight, high.in_flight))
        return SURELY_BELOW - doubt < elasticity(state.base, high) < SURELY_BELOW

    def _judge_climb(self, high: Sample) -> None:
        state = self.state
        gain = elasticity(state.base, high)
        is_large = state.step > LARGEST_STEP
        if gain >= SURELY_BELOW or (is_large and self._is_doubtful(high)):
            state.up_wait_seconds, state.has_risen = 1.0, True
            state.is_doubted = gain < SURELY_BELOW
            self._climb(min(DOUBLE, 2 * state.step), base=high)
        elif gain >= 0.5 and not is_large:
            state.up_wait_seconds = 1.0
            self._climb(min(LARGEST_STEP, 1.5 * state.step), base=high)
        else:
            state.up_wait_seconds = 0.0 if gain >= 0.5 else self.longer(state.up_wait_seconds)
            state.usual = max(state.base, high, key=lambda sample: sample.rate)
            is_hasty = is_large and state.base.calls < 64
            is_uncertain = is_hasty and noise_between(state.base, high, state.spread) > 0.2
            is_first = is_large and not state.has_risen and self._floor() <= state.base_limit / 2
            if is_first and gain < 0.3 and not is_uncertain:
                self._fall_back(state.base)
                return
            self.hold(self._knee(state.base_limit, state.base, high, state.limit))
            state.leap = is_uncertain  # once more, against a better look at this level
            # The knee may have been below the level before.
            state.plunge = is_large and state.is_doubted and not is_uncertain

    def _fall_back(self, first: Sample) -> None:
        """Doubling brought nothing at all: the level before, the first, may be far too high itself."""
        state = self.state
        unsettled = SETTLED * state.limit
        self.move(state.base_limit)
        self._descend(0.5, base=first)
        state.unsettled = unsettled

    def _judge_descent(self, low: Sample) -> None:
        state = self.state
        if elasticity(low, state.base) <= (0.3 if state.step > LARGEST_STEP else 0.15):
            state.down_wait_seconds = 1.0
            self._descend(min(0.5, 2 * state.step), base=low)
        else:
            state.down_wait_seconds = self.longer(state.down_wait_seconds)
            state.usual = max(state.base, low, key=lambda sample: sample.rate)
            self.hold(self._knee(state.limit, low, state.base, state.base_limit))

    def _watch(self, seen: Sample) -> None:
        """Learn what is normal here; test when it changes, or when it is time."""
        state = self.state
        usual = state.base if state.base.calls else state.usual
        if usual.calls:
            change = change_of(usual.rate, seen.rate)
            if abs(change) > max(0.25, UPSET * noise_between(seen, usual, state.spread)):
                state.up_wait_seconds, state.down_wait_seconds = 2.0, 1.0
                if change < 0:
                    self._descend(min(0.5, 1 - math.exp(change)), base=seen)
                elif not state.is_refused:
                    self._climb(LARGEST_STEP, base=seen)
                return
        state.held_seconds += seen.seconds
        state.base.add(seen, at_most=2000)
        step = self._test_step()
        if state.leap:
            if state.base.calls >= 64:
                self._climb(DOUBLE, base=state.base)
        elif state.plunge:
            if state.base.calls >= max(64, (SURE * state.spread / LARGEST_STEP) ** 2):
                self._descend(LARGEST_STEP, base=state.base)
        elif state.base.calls >= min(1000, (SURE * state.spread / step) ** 2):
            self._test(step)

    def _test(self, step: float) -> None:
        """A little higher or a little lower, whichever is due."""
        state = self.state
        if state.held_seconds < min(state.up_wait_seconds, state.down_wait_seconds):
            return
        if state.up_wait_seconds > state.down_wait_seconds:
            self._descend(step, base=state.base)
        elif state.is_refused:
            self.move(self.raised(PROBE_STEP))
            state.phase = "probe"
        else:
            self._climb(step, base=state.base)

    def _test_step(self) -> float:
        """The smallest that the answers of a few seconds can tell from noise."""
        state = self.state
        calls = min(1000.0, max(100.0, 4.0 * state.limit, LOOK_SECONDS * state.rate))
        return min(LARGEST_STEP, max(SMALLEST_STEP, SURE * state.spread / math.sqrt(calls)))

    def _floor(self) -> int:
        """How low the search may go: eight are nothing to a fast server, and a long queue to a slow one."""
        rate = self.state.rate
        return math.ceil(max(2, min(8, rate * 0.4), rate * TURNAROUND_SECONDS))

    def _knee(self, low_limit: int, low: Sample, high: Sample, high_limit: int) -> int:
        """Where a line from nothing through the low level reaches the throughput of the high one."""
        state = self.state
        knee = low_limit * high.rate / low.rate * (1 - SHORT * min(state.step, 0.2))
        return round(min(high_limit, max(low_limit, knee, state.rate * TURNAROUND_SECONDS)))

    # moves

    def _climb(self, step: float, *, base: Sample) -> None:
        state = self.state
        state.phase, state.step, state.base, state.base_limit = "climb", step, base, state.limit
        state.leap = state.plunge = False
        self.move(self.raised(step))
        if state.limit == state.base_limit:  # as high as it may be
            state.up_wait_seconds = self.longer(state.up_wait_seconds)
            self.hold(state.limit)

    def _descend(self, step: float, *, base: Sample) -> None:
        state = self.state
        state.phase, state.step, state.base, state.base_limit = "down", step, base, state.limit
        state.plunge = False
        lower = max(self._floor(), math.ceil(state.limit * (1 - step) - 0.5))
        self.move(min(state.limit, lower))
        if state.limit == state.base_limit:
            state.down_wait_seconds = self.longer(state.down_wait_seconds)
            self.hold(state.limit)

    def hold(self, limit: int) -> None:
        """Stay there, and learn anew what is normal."""
        state = self.state
        state.phase, state.base, state.held_seconds = "hold", Sample(), 0.0
        state.leap = state.plunge = False
        self.move(limit)

    def move(self, limit: int) -> None:
        """Change the limit; what is under way from the old one is not looked at."""
        state = self.state
        limit = max(1, min(limit, self.most))
        state.unsettled = SETTLED * max(limit, state.limit) if limit != state.limit else 0.0
        state.limit = limit
        state.window = Sample()
        state.answered = state.failed = 0.0

    def raised(self, step: float) -> int:
        """The limit after a step up: by one at least."""
        limit = self.state.limit
        return min(self.most, max(limit + 1, int(limit * (1 + step))))

    def longer(self, wait_seconds: float) -> float:
        """Twice as long, to a bound."""
        state = self.state
        longest = LONGEST_PROBE_WAIT_SECONDS if state.is_refused else LONGEST_WAIT_SECONDS
        return min(max(1.0, 2 * wait_seconds), self.longest_wait(longest))

    def longest_wait(self, seconds: float = LONGEST_WAIT_SECONDS) -> float:
        """Where the server is slow, so long that the refusals of a probe stay below a percent."""
        state = self.state
        calls = 100 * max(3, PROBE_STEP * state.limit)
        return max(seconds, calls / state.rate) if state.rate else seconds
