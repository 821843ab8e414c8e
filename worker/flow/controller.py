"""How many calls a model server should have in flight: found by trying, with nothing to tune.

The best limit is where one more call in flight no longer brings more answers a second. Throughput is
taken as calls in flight / mean latency (Little's law): it has none of the noise of counting bursts.
Every comparison is of two levels, a low and a high one, each watched once the calls of the level
before are out. *Elasticity* is how much of the rise in calls became a rise in throughput: 1 below
the knee, 0 above it. With one formula, the low limit times the throughput gained, the limit goes to
where the knee of a server that queues must be, so noise moves it a little and does not throw it about.

- climb: raise the limit, at first by doubling, while the elasticity stays near 1; then go to the knee;
- hold: stay, and learn the throughput here. If it leaps or falls, test at once. Else, ever more rarely
  while nothing changes, test a little higher and a little lower in turns. A test is as small as the
  number of answers allows: its step and its length make it about three times the noise, which is
  learned too. A throughput that falls by itself is answered by halving, and taken back if that hurts;
- a refusal: the caller has cut the limit to what is accepted. Tests upwards are of one slot or 2 %,
  and need only pass unrefused; then the climb goes on. Refusals stay below a percent;
- failures: 0.6 times, unless the last time did not help, and doubled again once they end;
- a server that publishes its queue: kept at two waiting, or 3 % of what is in flight, nothing else.

Intervals in which the lines were too few to reach the limit teach nothing and change nothing.
"""

import json
from dataclasses import asdict, dataclass, fields
from typing import Self

from worker.flow.sample import Sample
from worker.flow.search import LARGEST_STEP, PROBE_STEP, Search, State

FAILING_SHARE = 0.2
MOST_TOLERATED_SHARE = 0.5


LOOK_SECONDS = 1.2
"""A published queue is looked at once a second."""

LARGEST_QUEUE_STEP = 0.1
"""A moment without a queue says little about how much more there is room for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """What one lane did, over all processes, since the last step."""

    seconds: float
    limit: int  # in force at the end; cuts are already taken off
    cut: int  # slots given up because calls were refused
    in_flight: float  # mean
    succeeded: int  # calls that the server answered, be it with a 4xx
    refused: int  # 429, or 503 with Retry-After
    failed: int  # time-outs, 5xx, cut connections
    latency_seconds: float  # sum over the succeeded ones
    is_limited: bool  # more lines waited than the limit let through, most of the time
    waiting: int | None  # the queue that the server publishes


class Controller:
    """The limit of one lane. `interval_seconds` is how long the next interval should be."""

    def __init__(self, *, most: int, start: int = 16) -> None:
        limit = min(start, most)
        self._search = Search(State(limit=limit, calm_limit=limit, unsettled=limit), most=most)

    @property
    def limit(self) -> int:
        """Calls that may be in flight, over all processes."""
        return self._search.state.limit

    @property
    def interval_seconds(self) -> float:
        """How long the next interval should be."""
        return self._search.state.interval_seconds

    def dump(self) -> str:
        """The whole of it, as text."""
        return json.dumps(asdict(self._search.state))

    @classmethod
    def load(cls, text: str, *, most: int) -> Self:
        """Go on from what `dump` gave; `most` may have changed since."""
        values = json.loads(text)
        controller = cls(most=most)
        for name in ("window", "base", "usual"):
            values[name] = Sample(**values[name])
        known = {each.name for each in fields(State)}  # another release may have put in more
        controller._search.state = State(**{name: values[name] for name in values if name in known})
        return controller

    def step(self, interval: Interval) -> None:
        """Take in what the last interval showed."""
        state = self._search.state
        state.limit = max(1, min(interval.limit, self._search.most))
        state.answered += interval.succeeded + interval.failed
        state.failed += interval.failed
        if interval.cut:
            self._accept_refusal()
        elif self._is_failing():
            self._retreat()
        elif not interval.is_limited or interval.seconds * interval.in_flight <= 0:
            state.window = Sample()
        elif state.unsettled > 0:
            state.unsettled -= interval.succeeded + interval.failed
            state.rate = state.rate or interval.succeeded / interval.seconds
        elif interval.waiting is not None and (interval.waiting or state.phase != "climb"):
            state.rate = interval.succeeded / interval.seconds or state.rate
            self._keep_queue_short(interval, interval.waiting)
        else:
            self._search.look(
                Sample(
                    seconds=interval.seconds,
                    slot_seconds=interval.in_flight * interval.seconds,
                    calls=float(interval.succeeded),
                    latency_seconds=interval.latency_seconds,
                )
            )
        self._plan_interval()

    def _accept_refusal(self) -> None:
        state = self._search.state
        state.is_refused = True
        if state.phase != "hold":
            state.up_wait_seconds = self._search.longer(state.up_wait_seconds)
        if state.phase == "climb":  # all of it was worth it until here
            state.down_wait_seconds = self._search.longest_wait()
        state.usual = Sample()
        self._search.hold(self.limit)

    def _is_failing(self) -> bool:
        state = self._search.state
        share = state.failed / max(1.0, state.answered)
        if state.failed >= 3 and share >= max(FAILING_SHARE, 1.3 * state.tolerated_share):
            return share > MOST_TOLERATED_SHARE or not self._is_blameless(share)
        if state.answered >= max(state.limit, 20):
            if share < FAILING_SHARE / 2:
                state.calm_limit, state.blamed_share, state.tolerated_share = state.limit, 0.0, 0.0
            state.answered /= 2
            state.failed /= 2
        return False

    def _is_blameless(self, share: float) -> bool:
        """Whether the last retreat helped so little that the load is not the reason."""
        state = self._search.state
        if state.answered < 20 or share < 0.7 * state.blamed_share or not state.blamed_share:
            return False
        state.tolerated_share = share
        return True

    def _retreat(self) -> None:
        """Fewer at once; but no outage may end in a crawl: an eighth of what went well is kept."""
        state = self._search.state
        state.blamed_share = state.failed / state.answered
        was_climbing = state.phase == "climb"
        state.up_wait_seconds = self._search.longer(state.up_wait_seconds) if was_climbing else 1.0
        state.usual = Sample()
        self._search.hold(max(1, min(state.limit, state.calm_limit // 8), int(state.limit * 0.6)))
        state.leap = not was_climbing

    def _keep_queue_short(self, interval: Interval, waiting: int) -> None:
        state = self._search.state
        allowed = max(2.0, 0.03 * interval.in_flight)
        state.held_seconds += interval.seconds
        if state.held_seconds < LOOK_SECONDS:
            # What was read may be from before the last move.
            return
        if waiting > allowed:
            state.up_wait_seconds = self._search.longer(state.up_wait_seconds)
            self._search.move(max(state.limit // 2, round(state.limit - waiting + allowed / 2)))
            # They leave the queue as soon as as many others are answered.
            state.unsettled = waiting - allowed / 2
            state.step, state.held_seconds, state.phase = PROBE_STEP, 0.0, "hold"
        elif waiting == 0 and state.held_seconds >= state.up_wait_seconds:
            self._search.move(self._search.raised(state.step))
            state.step, state.up_wait_seconds = min(LARGEST_QUEUE_STEP, 2 * state.step), 1.0
            state.unsettled = state.held_seconds = 0.0

    def _plan_interval(self) -> None:
        """As soon as there should be enough to decide by."""
        state = self._search.state
        missing = state.unsettled
        if missing <= 0:
            missing = self._search.calls_needed() - state.window.calls
        rate = (state.rate or state.limit) * (1 + state.step if state.phase == "climb" else 1)
        shortest = 0.1 if state.phase == "climb" and state.step > LARGEST_STEP else 0.5
        state.interval_seconds = min(5.0, max(shortest, missing / rate))
