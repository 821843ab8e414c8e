"""Every order in which the steps can happen, each state once.

A state is what the database holds and what each process remembers. What a step does hangs on the rows
and on the memory of the process that takes it, not on what the others remember, so that it is run once for
each of those pairs: a few thousand transactions stand for a hundred times as many orders. States are
found breadth first, so that a fault is told by a shortest way to it.

At the end, every state must lead to the end of the batch by fair steps alone: of those who work, those
who look after the dead, and those whom the sweep has rung for. A process that is alive goes on; no bell
is needed but the sweep's.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.model.rules import check, is_held_by
from tests.model.steps import Outcome, Run, Stage, Step, act
from tests.model.world import CONTROLS, WORKERS, Moment, View, World

_TIDY_AFTER = 500


class State(NamedTuple):
    """A moment of the database, by number, and what the processes remember."""

    moment: int
    runs: frozenset[Run]
    stages: frozenset[Stage]


@dataclass(frozen=True)
class Bounds:
    """How much may go wrong."""

    claims: int = 2
    """No claim of a living worker lapses or is given back early once so many were made of all shards."""

    runs: int = 2
    """Shards that workers remember at once, lost ones with them."""

    workers: int = 2
    controls: int = 1
    by_line: bool = True
    """Whether a shard's answers come one by one, or only all at once."""

    def allow_faults(self, view: View) -> bool:
        """Whether one more claim may come to nothing: so there is an end to them."""
        return sum(shard.claims for shard in view.shards) < self.claims


class Broken(AssertionError):
    """A rule was broken; the message tells by which steps."""


class _Next(NamedTuple):
    step: Step
    bell: str | None = None
    """The sweep must have rung it before the step is a fair one; `never`: the step is a fault or a wish."""


_NEVER = "never"


@dataclass
class Explorer:
    """A search, and what it has found so far."""

    world: World
    bounds: Bounds
    states: dict[State, tuple[State, Step] | None] = field(default_factory=dict)
    """Each state that was reached, and how."""

    transactions: int = 0
    moments: list[Moment] = field(default_factory=list)
    _numbers: dict[View, int] = field(default_factory=dict)
    _done: dict[tuple[int, Step], tuple[int, Outcome]] = field(default_factory=dict)
    _fair: dict[State, list[tuple[State, str | None]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """The states that a fair step leads from, and the bell that it waits for."""

    async def explore(self) -> None:
        """Go everywhere.

        Raises:
            Broken: some order of steps breaks a rule.
        """
        first = State(self._number(self.world.now), frozenset(), frozenset())
        self.states[first] = None
        queue = [first]
        for state in queue:
            view = self.moments[state.moment].view
            for step, bell in steps_from(view, state.runs, state.stages, self.bounds):
                reached = await self._after(state, step)
                if bell != _NEVER:
                    self._fair[reached].append((state, bell))
                if reached not in self.states:
                    self.states[reached] = (state, step)
                    queue.append(reached)
        self._require_an_end()

    async def _after(self, state: State, step: Step) -> State:
        runs = state.runs - {step.run} if step.run else state.runs
        stages = state.stages - {step.stage} if step.stage else state.stages
        if step.name == "die":
            return State(
                state.moment,
                frozenset(run for run in runs if run.worker != step.who),
                frozenset(stage for stage in stages if stage.control != step.who),
            )
        moment, outcome = await self._do(state, step)
        runs |= {outcome.run} if outcome.run else set()
        stages |= {outcome.stage} if outcome.stage else set()
        return State(moment, runs, stages)

    async def _do(self, state: State, step: Step) -> tuple[int, Outcome]:
        key = (state.moment, step)
        if key not in self._done:
            before = self.moments[state.moment]
            self.world.return_to(before)
            try:
                outcome = await act(self.world, step)
            except Exception as error:  # whatever a guard of the database says, say
                raise Broken(self._tell(f"{type(error).__name__}: {error}", state, step)) from error
            after = self.world.read()
            if faults := await check(self.world, before, step, outcome, after):
                raise Broken(self._tell("; ".join(faults), state, step))
            self._done[key] = (self._number(after), outcome)
            self.transactions += 1
            if self.transactions % _TIDY_AFTER == 0:
                self.world.tidy()
        return self._done[key]

    def _number(self, moment: Moment) -> int:
        if moment.view not in self._numbers:
            self._numbers[moment.view] = len(self.moments)
            self.moments.append(moment)
        return self._numbers[moment.view]

    def _require_an_end(self) -> None:
        """Every state leads to the batch's end by fair steps."""
        ends = [state for state in self.states if self.moments[state.moment].view.is_final]
        reaching, queue = set(ends), ends
        for state in queue:
            for earlier, bell in self._fair[state]:
                if earlier not in reaching and (bell is None or bell in self._rung(earlier)):
                    reaching.add(earlier)
                    queue.append(earlier)
        for state in self.states:
            if state not in reaching:
                raise Broken(self._tell("stuck: nothing fair leads to the end", state))

    def _rung(self, state: State) -> frozenset[str]:
        return self._done[state.moment, Step("sweep")][1].rung

    def _tell(self, fault: str, state: State, last: Step | None = None) -> str:
        steps = [] if last is None else [str(last)]
        at: State = state
        while (came := self.states[at]) is not None:
            at, step = came
            steps.append(str(step))
        story = "\n".join(f"  {no}. {step}" for no, step in enumerate(reversed(steps), start=1))
        return f"{fault}\n{story}\nfrom {self.moments[state.moment].view}"


def steps_from(
    view: View, runs: frozenset[Run], stages: frozenset[Stage], bounds: Bounds
) -> Iterator[_Next]:
    """What can happen in a state."""
    yield _Next(Step("sweep"))
    yield _Next(Step("cancel"), _NEVER)
    if view.status in {"validating", "in_progress"} and not view.is_window_closed:
        yield _Next(Step("window closes"), _NEVER)
    for run in sorted(runs):
        yield from _steps_of_run(view, run, bounds)
    for stage in sorted(stages):
        yield _Next(Step("start" if stage.status == "validating" else "write files", stage=stage))
        if view.lease != "live" or view.owner != stage.control:
            yield _Next(Step("renew batch", stage=stage), _NEVER)
        yield _Next(Step("die", who=stage.control), _NEVER)
    yield from _steps_of_workers(view, runs, bounds)
    yield from _steps_of_controls(view, stages, bounds)
    for shard in view.shards:
        if shard.lease == "live":
            held = [run for run in runs if run.shard_no == shard.no and is_held_by(view, run)]
            if not held or bounds.allow_faults(view):
                yield _Next(Step("lapse", shard_no=shard.no), _NEVER if held else None)
    if view.lease == "live":
        is_held = any(stage.control == view.owner for stage in stages)
        yield _Next(Step("lapse of batch"), _NEVER if is_held else None)


def _steps_of_run(view: View, run: Run, bounds: Bounds) -> Iterator[_Next]:
    if run.has_closed:
        yield _Next(Step("advance", run=run))
        return
    yield _Next(Step("record", run=run, lines=run.lines))
    if bounds.by_line and len(run.lines) > 1:
        # With the one before: some of what is written stands already.
        yield _Next(Step("record", run=run, lines=frozenset({min(run.lines)})))
    shard = view.shard(run.shard_no)
    if shard is None or shard.lease != "live" or not is_held_by(view, run):
        yield _Next(Step("renew", run=run), _NEVER)
    is_early = (
        is_held_by(view, run) and view.status == "in_progress" and not run.lines <= view.answered
    )
    if not is_early:
        yield _Next(Step("close", run=run))
    elif bounds.allow_faults(view):
        yield _Next(Step("close", run=run), _NEVER)


def _steps_of_workers(view: View, runs: frozenset[Run], bounds: Bounds) -> Iterator[_Next]:
    for worker in WORKERS[: bounds.workers]:
        own = [run for run in runs if run.worker == worker]
        if own and (bounds.allow_faults(view) or not any(is_held_by(view, run) for run in own)):
            yield _Next(Step("die", who=worker), _NEVER)
        if len(runs) < bounds.runs:
            yield _Next(Step("claim", who=worker), "run")
        if not own and not any((shard.owner or "").startswith(worker) for shard in view.shards):
            # Nobody knows this one yet, so that the next would be the same under another name.
            break


def _steps_of_controls(view: View, stages: frozenset[Stage], bounds: Bounds) -> Iterator[_Next]:
    busy = {stage.control for stage in stages}
    for control in CONTROLS[: bounds.controls]:
        if control not in busy:
            if view.status == "validating" or view.is_final:
                yield _Next(Step("begin validating", who=control), "validate")
            yield _Next(Step("begin finalizing", who=control), "finalize")
            if view.owner != control:
                break
