"""Stage 3: call the pending lines of a claimed shard, record what comes back, close it.

Promises: a line that has a result row is never called again; a call is begun only while the lease is
held and the window is open; on shutdown no call is begun and those in flight get their time to end.
If the process dies here, the lease lapses, and the lines without a result are another worker's. Of a shard
that workers died of again and again, one line is called alone at first, then twice as many each time.

When a line's turn comes is the dispatcher's to say (`worker.dispatch`); what a call's end means is told in
`worker.attempts`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context

from models.failpoints import Failpoint, pass_failpoint
from models.file import File
from models.lifecycle import BatchStatus
from models.lines import LineError
from models.storage import read_places
from worker.attempts import Attempts, Line, render_lost, render_nowhere
from worker.claim import ClaimedShard
from worker.flow.lane import Lane
from worker.lease import advance_if_all_done, close_shard
from worker.recorder import Recorder, Row
from worker.router import Target
from worker.runtime import Runtime
from worker.upstream import Outcome

log = logging.getLogger(__name__)

_READ_AHEAD_LINES = 256
_READ_AHEAD_BYTES = 1024 * 1024


async def finish_shard(runtime: Runtime, run: "ShardRun") -> bool:
    """Work on a claimed shard, give it back and see to what follows; say whether it is done."""
    shard = run.shard
    try:
        await run.run()
    finally:
        pass_failpoint(Failpoint.CLOSE_BEFORE)
        is_done = await close_shard(runtime.database, shard)
        pass_failpoint(Failpoint.CLOSE_CLOSED)
    if not is_done:
        # It may have been the last at work on a batch that was cancelled or has expired.
        await runtime.ring(runtime.doorbell.ring_finalize, shard.batch_pk)
        if runtime.draining.is_set():
            await runtime.ring(runtime.doorbell.ring_run)
    elif await advance_if_all_done(runtime.database, shard.batch_pk):
        log.info("batch %s: every line has its answer", shard.batch_id)
        await runtime.ring(runtime.doorbell.ring_finalize, shard.batch_pk)
    return is_done


class ShardRun:
    """The work on one claimed shard, from the first line to the joined recorder.

    It ends in one of three ways: every line answered; *stopped*, when no call is begun any more and
    those in flight get a grace period; *aborted*, when those in flight are given up too.
    """

    def __init__(
        self,
        runtime: Runtime,
        shard: ClaimedShard,
        target: Target | LineError,
        lane: Lane,
        *,
        window_ends_at: float,
        on_room: Callable[[Lane], None],
        on_ended: Callable[[Lane], None],
    ) -> None:
        """`on_room` is called when a line is ready to go, `on_ended` when a call has ended.

        Made in the context that its calls are to have, wherever they are begun.
        """
        self.window_ends_at = window_ends_at
        self.shard = shard
        self.lane = lane
        self.has_made_room = False
        self._runtime = runtime
        self._context = copy_context()
        self._settings = runtime.run_settings
        self._target = target
        self._attempts = (
            Attempts(runtime, shard, target, lane) if isinstance(target, Target) else None
        )
        self._on_room = on_room
        self._on_ended = on_ended
        self._unread = len(shard.lines)
        self._begun = self._recorded = 0
        self._ready: deque[Line] = deque()
        self._ready_bytes = 0
        # Those that were tried before go first, for it is they that the end of the shard waits for.
        self._again: deque[Line] = deque()
        self._resting: dict[Line, asyncio.TimerHandle] = {}
        self._in_flight: dict[asyncio.Task[Outcome], Line] = {}
        self._reading: asyncio.Task[None] | None = None
        self._may_read = asyncio.Event()
        self._has_ended = asyncio.Event()
        self._is_stopping = False
        self._timers: list[asyncio.TimerHandle] = []
        self._recorder = Recorder(
            runtime.database,
            shard,
            settings=self._settings,
            on_status=self._on_status,
            on_lost=self._abort,
            may_give_up=runtime.draining.is_set,
            on_paused=self.make_room,
            in_flight=lambda: len(self._in_flight),
        )
        self._recorder.on_recorded = self._count_recorded

    @property
    def unstarted(self) -> int:
        """Lines that no call was begun for, and may be."""
        count = self._unread + len(self._ready)
        return min(count, self._trust) if self.shard.is_suspect else count

    @property
    def _trust(self) -> int:
        """So many lines of a suspect shard may be begun now: at first one, then twice as many each time."""
        return 2 * self._recorded + 1 - self._begun

    @property
    def _may_begin(self) -> bool:
        return bool(self._ready) and (not self.shard.is_suspect or self._trust > 0)

    @property
    def waiting(self) -> int:
        """Lines that would be called if there were room."""
        return self.unstarted + len(self._again)

    @property
    def is_ready(self) -> bool:
        """Whether `start_next` has something to start."""
        return (
            (bool(self._again) or self._may_begin)
            and not self._recorder.is_behind
            and self._runtime.clock() < self.window_ends_at
        )

    async def run(self) -> None:
        """See every pending line to its end; return when all results are written.

        Raises:
            InputUnreadable: after what could be read was called and recorded.
        """
        if self.shard.is_suspect:
            log.warning(
                "batch %s: workers died of shard %s: its lines are tried alone, from line %s",
                self.shard.batch_id,
                self.shard.pk,
                next((place[0] for place in self.shard.lines), None),
            )
        self._later(self.window_ends_at - self._runtime.clock(), self._abort)
        reading = self._reading = asyncio.create_task(self._read())
        reading.add_done_callback(lambda _: self._look_for_end())
        if self._is_stopping:
            reading.cancel()
        try:
            await self._has_ended.wait()
            await self._recorder.close()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            for timer in self._timers:
                timer.cancel()
        if not reading.cancelled():
            reading.result()

    @property
    def has_fresh(self) -> bool:
        """Whether a line is ready that was never tried."""
        return self._may_begin and self.is_ready

    def start_next(self, *, fresh_first: bool = False) -> None:
        """Begin a call; whoever calls this has seen that there is room for it.

        Of a line that was tried before, if there is one, unless fresh ones are to go first.
        """
        attempts = self._attempts
        assert attempts is not None  # noqa: S101  # else there is never a line ready
        is_fresh = self._may_begin and (fresh_first or not self._again)
        line = self._next_ready() if is_fresh else self._again.popleft()
        self._recorder.retries += line.failures > 0
        try:
            attempts.begin(line)
        except Exception as error:  # noqa: BLE001  # that line's alone, and its slot is given back
            self._recorder.add(attempts.judge_fault(line, error))
            asyncio.get_running_loop().call_soon(self._give_slot_back)
            return
        # Of its own, for a trace has a span for each call.
        task = asyncio.create_task(attempts.call(line), context=self._context.copy())
        self._in_flight[task] = line
        task.add_done_callback(self._end_call, context=self._context)

    def give_up_hung(self, hang_seconds: float) -> None:
        """Stop the calls that last longer than any should; their lines are tried again."""
        for task, line in self._in_flight.items():
            if self._attempts is not None and self._attempts.hangs(line, hang_seconds):
                line.has_hung = True
                task.cancel()

    def make_room(self) -> None:
        """Begin no call any more, and let those in flight end, however long they take."""
        self.has_made_room = True
        self.stop(None)

    def stop(self, grace_seconds: float | None) -> None:
        """Begin no call any more; give up those in flight after the grace period, if there is one."""
        if not self._is_stopping:
            self._is_stopping = True
            self._unread = 0
            self._ready.clear()
            self._again.clear()
            for timer in self._resting.values():
                timer.cancel()
            self._resting.clear()
            if self._reading is not None:
                self._reading.cancel()
            self._look_for_end()
        if grace_seconds is not None:
            self._later(grace_seconds, self._abort)

    async def _read(self) -> None:
        """Keep some lines at hand."""
        async with self._runtime.database.begin() as session:
            file = await session.get_one(File, self.shard.input_file_pk)
        async for line_no, raw in read_places(
            self._runtime.database, file, self.shard.lines, self._runtime.chunk_cache
        ):
            self._unread -= 1
            if self.shard.is_first_line_lost and line_no == self.shard.lines[0][0]:
                log.error("batch %s: line %s fails: its workers died", self.shard.batch_id, line_no)
                self._begun += 1
                self._recorder.add(render_lost(self.shard, line_no, raw))
                continue
            if isinstance(self._target, LineError):
                self._recorder.add(render_nowhere(self.shard, line_no, raw, self._target))
                continue
            self._ready.append(Line(line_no, raw))
            self._ready_bytes += len(raw)
            if len(self._ready) == 1:
                self._on_room(self.lane)
            if len(self._ready) >= _READ_AHEAD_LINES or self._ready_bytes >= _READ_AHEAD_BYTES:
                self._may_read.clear()
                await self._may_read.wait()

    def _next_ready(self) -> Line:
        line = self._ready.popleft()
        self._begun += 1
        self._ready_bytes -= len(line.raw)
        if 2 * len(self._ready) <= _READ_AHEAD_LINES and 2 * self._ready_bytes <= _READ_AHEAD_BYTES:
            self._may_read.set()
        return line

    def _end_call(self, task: asyncio.Task[Outcome]) -> None:
        """Record a final answer, or see to the next try."""
        pass_failpoint(Failpoint.RUN_ANSWERED)
        line, attempts = self._in_flight.pop(task), self._attempts
        assert attempts is not None  # noqa: S101  # it has begun the call
        try:
            if task.cancelled():
                if line.has_hung and not self._is_stopping:
                    self._go_on(line, attempts.judge_hung(line))
                else:
                    attempts.drop(line)
            elif (error := task.exception()) is not None:
                self._recorder.add(attempts.judge_fault(line, error))
            else:
                self._go_on(line, attempts.judge(line, task.result()))
        except Exception as fault:  # noqa: BLE001  # that line's alone: nobody else would hear of it
            self._recorder.add(attempts.judge_fault(line, fault))
        finally:
            self._give_slot_back()

    def _give_slot_back(self) -> None:
        self._on_ended(self.lane)
        self._look_for_end()

    def _go_on(self, line: Line, verdict: Row | float) -> None:
        if isinstance(verdict, Row):
            self._recorder.add(verdict)
        elif self._is_stopping:
            # Left to whoever takes up the shard.
            return
        elif verdict > 0:
            loop = asyncio.get_running_loop()
            self._resting[line] = loop.call_later(verdict, self._try_again, line)
        else:
            self._again.append(line)

    def _try_again(self, line: Line) -> None:
        del self._resting[line]
        self._again.append(line)
        self._on_room(self.lane)

    def _look_for_end(self) -> None:
        has_lines = self._ready or self._again or self._resting or self._in_flight
        if self._reading is not None and self._reading.done() and not has_lines:
            self._has_ended.set()

    def _count_recorded(self, rows: Sequence[Row]) -> None:
        self._recorded += len(rows)
        self.lane.tally.recorded(rows)
        if self.shard.is_suspect and not self._is_stopping:
            self._on_room(self.lane)

    def _on_status(self, status: BatchStatus) -> None:
        if status is BatchStatus.CANCELLING:
            self.stop(self._settings.cancel_grace_seconds)
        else:
            self._abort()

    def _abort(self) -> None:
        """Give up everything but what is already recorded or waits to be."""
        self.stop(None)
        for task in self._in_flight:
            task.cancel()

    def _later(self, seconds: float, callback: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(max(0.0, seconds), callback))
