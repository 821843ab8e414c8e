"""What can happen next, one transaction each, done by the engine's own functions.

A process is what it remembers: a `Run` is a claimed shard at work, a `Stage` a batch being validated or
finalized. It may die (it forgets), or be frozen for as long as the model likes while others go on, and
then do what it was about to do. Bells are left out: whatever a bell would start may start at any time, or
never, so that they may be lost, late and doubled.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from api.services import batches
from models import Batch
from models.errors import BatchNotCancellable
from models.lifecycle import BatchStatus
from models.project import DEFAULT_PROJECT_PK, Caller
from tests.factories import json_lines
from tests.model.world import FAILS, LEASE_SECONDS, World
from worker.answer import Usage
from worker.claim import ClaimedShard, claim_shard
from worker.lease import advance_if_all_done, claim_batch, close_shard, renew_batch
from worker.recorder import Recorder, Row
from worker.stages.finalize import _claim, _write_and_close
from worker.stages.shard import start_batch
from worker.stages.sweep import (
    _advance_finished,
    _expire,
    _ring_for_batches,
    _ring_for_shards,
)
from worker.stages.validate import _take_input

TOKENS_A_LINE = 10
_CALLER = Caller(DEFAULT_PROJECT_PK, "proj_default")


class Run(NamedTuple):
    """A claimed shard, as its worker remembers it."""

    worker: str
    shard_no: int
    claim_no: int
    lines: frozenset[int]
    """Those that had no result when it was claimed."""

    has_closed: bool = False
    """It found the shard done, and is about to look whether that was the last."""


class Stage(NamedTuple):
    """A batch that a control worker has taken up: in which status it found it, with how many lines."""

    control: str
    status: str
    total: int


class Step(NamedTuple):
    """Something that happens; who does it, if it is somebody, and with which lines or shard."""

    name: str
    run: Run | None = None
    stage: Stage | None = None
    who: str = ""
    lines: frozenset[int] = frozenset()
    shard_no: int = -1

    def __str__(self) -> str:
        """Say it for a person."""
        parts = [self.name, self.who]
        if self.run is not None:
            parts += [f"by {self.run.worker}, shard {self.run.shard_no} claim {self.run.claim_no}"]
        if self.stage is not None:
            parts += [f"by {self.stage.control} ({self.stage.status})"]
        if self.lines:
            parts += [f"lines {sorted(self.lines)}"]
        if self.shard_no >= 0:
            parts += [f"shard {self.shard_no}"]
        return " ".join(part for part in parts if part)


class Outcome(NamedTuple):
    """What a step leaves its process with, and what was rung for."""

    run: Run | None = None
    stage: Stage | None = None
    rung: frozenset[str] = frozenset()


async def _claim_shard(world: World, step: Step) -> Outcome:
    shard = await claim_shard(world.database, owner=step.who, lease_seconds=LEASE_SECONDS)
    if shard is None:
        return Outcome()
    claim_no = next(row["claims"] for row in world.read().table("shards") if row["pk"] == shard.pk)
    run = Run(step.who, shard.no, claim_no, frozenset(line[0] for line in shard.lines))
    world.claimed[run[:4]] = shard
    return Outcome(run)


def _shard_of(world: World, run: Run | None) -> ClaimedShard:
    assert run is not None
    return world.claimed[run[:4]]


async def _write(world: World, run: Run | None, rows: list[Row]) -> Outcome:
    recorder = Recorder(
        world.database,
        _shard_of(world, run),
        settings=world.sweeper.run_settings,
        on_status=lambda _: None,
        on_lost=lambda: None,
        may_give_up=lambda: False,
    )
    # Not by `add`: it would try again for ever what the database refuses.
    await recorder._write(rows)
    await recorder.close()
    return Outcome(run)


async def _record(world: World, step: Step) -> Outcome:
    rows = []
    for line_no in sorted(step.lines):
        # Every answer is another, so that one that replaced an earlier one would be seen.
        world.written += 1
        line = json_lines({"custom_id": f"request-{line_no}", "answer": world.written})
        usage = Usage(input_tokens=4, output_tokens=6, total_tokens=TOKENS_A_LINE)
        rows.append(Row(line_no, line_no != FAILS, line, usage))
    return await _write(world, step.run, rows)


async def _renew(world: World, step: Step) -> Outcome:
    return await _write(world, step.run, [])


async def _close(world: World, step: Step) -> Outcome:
    is_done = await close_shard(world.database, _shard_of(world, step.run))
    return Outcome(step.run._replace(has_closed=True) if step.run and is_done else None)


async def _advance(world: World, _: Step) -> Outcome:
    await advance_if_all_done(world.database, world.batch_pk)
    return Outcome()


def _stage_of(world: World, control: str, batch: Batch) -> Stage:
    stage = Stage(control, batch.status, batch.total)
    world.batches[stage] = batch
    return stage


async def _begin_validating(world: World, step: Step) -> Outcome:
    async with world.database.begin() as session:
        batch = await claim_batch(
            session,
            world.batch_pk,
            BatchStatus.VALIDATING,
            owner=step.who,
            lease_seconds=LEASE_SECONDS,
        )
        if batch is None:
            return Outcome()
        await _take_input(session, batch)
    return Outcome(stage=_stage_of(world, step.who, batch))


async def _start(world: World, step: Step) -> Outcome:
    assert step.stage is not None
    world.count_shards_from_one()
    await start_batch(
        world.database,
        world.batches[step.stage],
        model="m",
        tokens=3,
        shards=world.pieces,
        settings=world.sweeper.validate_settings,
    )
    return Outcome()


async def _begin_finalizing(world: World, step: Step) -> Outcome:
    batch = await _claim(world.controls[step.who], world.batch_pk)
    if batch is None:
        return Outcome()
    return Outcome(stage=_stage_of(world, step.who, batch))


async def _write_files(world: World, step: Step) -> Outcome:
    assert step.stage is not None
    await _write_and_close(world.controls[step.stage.control], world.batches[step.stage])
    return Outcome()


async def _renew_batch(world: World, step: Step) -> Outcome:
    assert step.stage is not None
    await renew_batch(
        world.database,
        world.batches[step.stage],
        owner=step.stage.control,
        lease_seconds=LEASE_SECONDS,
    )
    return Outcome(stage=step.stage)


async def _sweep(world: World, _: Step) -> Outcome:
    for look in (_expire, _advance_finished, _ring_for_batches, _ring_for_shards):
        await look(world.sweeper)
    return Outcome(rung=world.rung())


async def _cancel(world: World, _: Step) -> Outcome:
    try:
        await batches.cancel(world.database, _CALLER, bell=world.bell, batch_id=world.batch_id)
    except BatchNotCancellable:
        assert world.read().view.status not in {"validating", "in_progress"}
    return Outcome()


async def _let_lapse(world: World, step: Step) -> Outcome:
    if step.shard_no >= 0:
        world.let_shard_lapse(step.shard_no)
    else:
        world.let_batch_lapse()
    return Outcome()


async def _close_window(world: World, _: Step) -> Outcome:
    world.close_window()
    return Outcome()


_ACTS: dict[str, Callable[[World, Step], Awaitable[Outcome]]] = {
    "claim": _claim_shard,
    "record": _record,
    "renew": _renew,
    "close": _close,
    "advance": _advance,
    "begin validating": _begin_validating,
    "start": _start,
    "begin finalizing": _begin_finalizing,
    "write files": _write_files,
    "renew batch": _renew_batch,
    "sweep": _sweep,
    "cancel": _cancel,
    "lapse": _let_lapse,
    "lapse of batch": _let_lapse,
    "window closes": _close_window,
}


async def act(world: World, step: Step) -> Outcome:
    """Let it happen."""
    return await _ACTS[step.name](world, step)
