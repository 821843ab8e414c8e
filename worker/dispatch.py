"""The dispatcher of a run process: which shards it holds, and which line goes next.

A bell only wakes it. It claims a shard whenever a lane is short of lines, or a batch waits that it has no
shard of; it keeps their lines at hand, and begins a call as soon as a lane has room. A shard whose last
lines take long is no obstacle: it counts no more once its lines are on their way.

Promises: a call is begun only for a shard whose lease is held; no call is begun once the process drains.
"""

import asyncio
import logging
from operator import attrgetter

from models.faults import describe
from models.lines import LineError
from models.logline import context_with_ids
from models.tracing import TracedSpan, begin_span
from models.upstreams import ModelFilter
from worker.claim import ClaimedShard, claim_shard
from worker.flow.lane import Lane, LaneKey
from worker.flow.lanes import Lanes
from worker.flow.slots import Slots
from worker.flow.tally import Tallies
from worker.runtime import Runtime
from worker.stages.run import ShardRun, finish_shard

log = logging.getLogger(__name__)

_AHEAD_SECONDS = 1.0
"""Lines for so long are kept at hand, at the rate at which calls are begun."""

_REST_SECONDS = 2.0
_DRY_SECONDS = 0.5
_MOST_HELD = 8
"""Times as many shards may be held in all, most of which wait for their last lines."""


_MOST_OF_A_LANE = 0.5
"""The part of a process's shards that one lane may have, so that others find room."""


class Dispatcher:
    """One a process, made on first use by `dispatcher_of`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._settings = runtime.run_settings
        self._upstreams = runtime.router.upstreams
        self.lanes = Lanes(
            self._upstreams.servers,
            settings=self._settings,
            exchange=runtime.exchange,
            on_change=self._look_around,
            tallies=Tallies(self._upstreams),
        )
        self.slots = Slots(self._settings.max_in_flight, list(self._upstreams.servers))
        self._runs: dict[asyncio.Task[None], ShardRun] = {}
        self._resting: dict[int, float] = {}
        self._dry_until = 0.0
        self._is_short = False
        self._claiming = asyncio.Lock()
        self._is_woken = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._keep_claiming()),
            asyncio.create_task(self.lanes.keep_agreeing()),
            asyncio.create_task(self._stop_when_draining()),
        ]

    @property
    def in_flight(self) -> int:
        """Calls of this process."""
        return self.slots.in_flight

    @property
    def shards(self) -> int:
        """Shards that this process holds."""
        return len(self._runs)

    def wake(self) -> None:
        """A shard may be runnable."""
        self._is_woken.set()

    async def settle(self) -> None:
        """Wait until nothing is runnable here, and everything claimed has been given back."""
        while True:
            await self._claim_what_fits()
            if not self._runs:
                return
            await asyncio.wait(list(self._runs), return_when=asyncio.FIRST_COMPLETED)
            # Lets those that have ended be forgotten.
            await asyncio.sleep(0)

    async def aclose(self) -> None:
        """Claim no more, let what is claimed come to its end, and give back every share."""
        self._runtime.draining.set()
        async with self._claiming:
            pass
        if self._runs:
            await asyncio.wait(list(self._runs))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.lanes.aclose()

    def pump(self, lane: Lane) -> None:
        """Begin calls as long as there are lines, and room for them."""
        while self.slots.has_room(lane.key.server) and lane.may_start():
            source = lane.next_source()
            if source is None:
                break
            self.slots.take(lane.key.server)
            source.start_next(fresh_first=lane.breaker.is_open)
        if lane.unstarted < self._enough(lane):
            self._is_short = True
            self._claim_if_short()

    def _claim_if_short(self) -> None:
        if self._is_short and self._runtime.clock() > self._dry_until:
            self._is_short = False
            self.wake()

    def _look_around(self) -> None:
        """See to what changes without a call's end: pauses and shares, hours, outages, calls that hang."""
        self._claim_if_short()
        for lane in self.lanes:
            if lane.in_flight and (seconds := lane.hang_seconds()) is not None:
                for run in self._runs_of(lane):
                    run.give_up_hung(seconds)
            if lane.waiting:
                self._give_back_idle(lane)
                self.pump(lane)

    def _give_back_idle(self, lane: Lane) -> None:
        """Another process may have more luck with a server; and this one at another time of the day."""
        since = lane.breaker.opened_at
        if not lane.is_open_by_hours():
            for run in self._runs_of(lane):
                run.make_room()
            lane.say_closed()
        elif lane.is_shut:
            for run in self._runs_of(lane):
                run.make_room()
        elif since is not None and lane.clock() - since > self._settings.stall_seconds:
            # One is kept, to ask after the server with: one with fresh lines, if there is any.
            runs = [run for run in self._runs_of(lane) if run.waiting]
            for run in sorted(runs, key=lambda run: not run.unstarted)[1:]:
                run.make_room()

    def _runs_of(self, lane: Lane) -> list[ShardRun]:
        return [run for run in self._runs.values() if run.lane is lane]

    async def _stop_when_draining(self) -> None:
        await self._runtime.draining.wait()
        for run in self._runs.values():
            run.stop(self._settings.drain_seconds)

    async def _keep_claiming(self) -> None:
        while True:
            await self._is_woken.wait()
            self._is_woken.clear()
            try:
                await self._claim_what_fits()
            except Exception as error:  # noqa: BLE001  # a process that claims no more would look alive
                self._dry_until = self._runtime.clock() + _REST_SECONDS
                log.warning(
                    "no shard could be claimed (%s); the sweep rings again", describe(error)
                )

    async def _claim_what_fits(self) -> None:
        async with self._claiming:
            was_idle = not self._runs
            while not self._runtime.draining.is_set() and await self._claim():
                pass
            has_found = was_idle and bool(self._runs)
        if has_found:
            # There may be more than this process can do, and others who know nothing of it yet.
            await self._runtime.ring(self._runtime.doorbell.ring_run)

    async def _claim(self) -> bool:
        """Claim the most urgent shard that this process has room for, and begin with it."""
        feeding = [run for run in self._runs.values() if run.unstarted]
        most = self._settings.shards_per_worker
        if len(feeding) >= most or len(self._runs) >= _MOST_HELD * most:
            return False
        shard = await claim_shard(
            self._runtime.database,
            owner=self._runtime.owner,
            lease_seconds=self._settings.lease_seconds,
            models=self._models_with_room(feeding),
            without_batches=self._batches_at_hand(),
            suspect_lapses=self._settings.suspect_lapses,
            # Of two, nobody could tell which it was that the process died of.
            without_suspects=any(run.shard.is_suspect for run in self._runs.values()),
        )
        if shard is None:
            # A bell tells when there is something again; until then the end of each call need not ask.
            self._dry_until = self._runtime.clock() + _DRY_SECONDS
            return False
        # Its calls are begun from wherever there is room, and yet belong to it.
        context = context_with_ids(batch=shard.batch_id, shard=shard.pk)
        traced = context.run(
            begin_span,
            "shard",
            parent=shard.traceparent,
            batch=shard.batch_id,
            shard=shard.pk,
            lines=len(shard.lines),
        )
        run = context.run(self._open, shard)
        task = asyncio.create_task(self._work_on(run, traced), context=context)
        self._runs[task] = run
        task.add_done_callback(self._forget)
        run.lane.queue.add(run)
        self.lanes.want()
        if self._runtime.draining.is_set():
            run.stop(self._settings.drain_seconds)
        return True

    def _open(self, shard: ClaimedShard) -> ShardRun:
        target = self._runtime.router.find(shard.endpoint, shard.model)
        if isinstance(target, LineError):
            lane = self.lanes.nowhere
        else:
            key = LaneKey(target.server_name, target.model or shard.model or "")
            lane = self.lanes.find(key, target.flow)
            lane.names.add(shard.model)
        # The same for all shards of a batch, whatever time each claim took.
        ends = [
            run.window_ends_at
            for run in self._runs.values()
            if run.shard.batch_pk == shard.batch_pk
        ]
        return ShardRun(
            self._runtime,
            shard,
            target,
            lane,
            window_ends_at=min([self._runtime.clock() + shard.seconds_left, *ends]),
            on_room=self.pump,
            on_ended=self._end_call,
        )

    async def _work_on(self, run: ShardRun, traced: TracedSpan) -> None:
        is_done = False
        try:
            is_done = await finish_shard(self._runtime, run)
        except Exception as error:  # noqa: BLE001  # the edge of the task
            log.error("shard %s: %s; the sweep will ring again", run.shard.pk, describe(error))  # noqa: TRY400
        finally:
            run.lane.queue.remove(run)
            traced.end()
            if not (is_done or self._runtime.draining.is_set()):
                # Not to be taken up again at once, lest a fault, or what it made room for, spin.
                self._resting[run.shard.batch_pk] = self._runtime.clock() + _REST_SECONDS

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._runs[task]
        self.wake()

    def _end_call(self, lane: Lane) -> None:
        was_full = self.slots.is_full
        self.slots.give_back(lane.key.server)
        # Whoever has the least in flight is asked first.
        for each in sorted(self.lanes, key=attrgetter("in_flight")) if was_full else (lane,):
            self.pump(each)

    def _enough(self, lane: Lane) -> int:
        """So many lines at hand are enough."""
        return max(lane.own.cap, int(lane.starts_a_second * _AHEAD_SECONDS), 1)

    def _batches_at_hand(self) -> list[int]:
        """Batches of which this process has lines enough, or that failed it just now."""
        now = self._runtime.clock()
        self._resting = {pk: until for pk, until in self._resting.items() if until > now}
        enough = {
            run.shard.batch_pk
            for run in self._runs.values()
            if run.unstarted and run.lane.unstarted >= self._enough(run.lane)
        }
        return list(enough | self._resting.keys())

    def _models_with_room(self, feeding: list[ShardRun]) -> ModelFilter:
        """All models but those whose lane is blocked, or has its part of this process's shards."""
        most = max(1, int(_MOST_OF_A_LANE * self._settings.shards_per_worker))
        counts: dict[LaneKey, int] = {}
        for run in feeding:
            counts[run.lane.key] = counts.get(run.lane.key, 0) + 1
        without = {
            name
            for lane in self.lanes
            if lane.is_blocked or counts.get(lane.key, 0) >= most
            for name in lane.names
            if name is not None
        }
        by_server = dict.fromkeys(self._upstreams.servers, 0)
        for key, count in counts.items():
            if key.server in by_server:
                by_server[key.server] += count
        is_shared = len(by_server) > 1
        busy = [name for name, count in by_server.items() if is_shared and count >= most]
        return self._upstreams.models_without(busy).without(without)


def dispatcher_of(runtime: Runtime) -> Dispatcher:
    """The runtime's dispatcher, made on first use."""
    if runtime.dispatcher is None:
        runtime.dispatcher = Dispatcher(runtime)
    return runtime.dispatcher


async def look_for_shards(runtime: Runtime) -> None:
    """Answer a bell; does not wait for what it starts."""
    if not runtime.draining.is_set():
        dispatcher_of(runtime).wake()
