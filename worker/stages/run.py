"""Stage 3: claim a shard, call its pending lines, record what comes back, close it.

Promises: a line that has a result row is never called again; a call is begun only while the lease is
held and the window is open; on shutdown no call is begun and those in flight get their time to end.
If the process dies here, the lease lapses, and the lines without a result are another worker's.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from models.faults import describe
from models.file import File
from models.ids import fallback_response_id, request_id
from models.lifecycle import BatchStatus
from models.lines import (
    Endpoint,
    InputLine,
    LineError,
    custom_id_of,
    decode_input_line,
    render_failure,
    render_response,
)
from models.storage import read_places
from worker.lease import (
    ClaimedShard,
    advance_if_all_done,
    close_shard,
    others_wait,
)
from worker.recorder import Recorder, Row
from worker.retry import Blame, backoff_seconds
from worker.runtime import Runtime
from worker.turns import claim_in_turn
from worker.upstream import Outcome, Upstream, Verdict
from worker.video import finish_video, is_unfinished

log = logging.getLogger(__name__)


async def run_shards(runtime: Runtime) -> None:
    """Answer a bell: work on the most urgent runnable shard, then on the next, until there is none.

    A bell wakes an idle slot; a slot that is at work needs none, and so goes on when the broker is
    away. (One bell a shard was tried: Celery hears of a free thread only when it next looks.)
    """
    passed_over = 0
    while not runtime.draining.is_set():
        shard, server = await claim_in_turn(runtime, passed_over=passed_over)
        if shard is None:
            return
        try:
            run = ShardRun(runtime, shard)
            is_done = await _finish(runtime, run)
        finally:
            if server:
                runtime.shard_slots.release(server)
        # A shard that ended undone is not taken up again at once, lest a fault spin: the sweep rings.
        if not is_done and not run.has_made_room:
            return
        passed_over = shard.batch_pk if run.has_made_room else 0


async def _finish(runtime: Runtime, run: "ShardRun") -> bool:
    """Work on a claimed shard, give it back and see to what follows; say whether it is done."""
    shard = run.shard
    try:
        await run.run()
    finally:
        is_done = await close_shard(runtime.database, shard)
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

    def __init__(self, runtime: Runtime, shard: ClaimedShard) -> None:
        self.shard = shard
        self.has_made_room = False
        self._runtime = runtime
        self._settings = runtime.run_settings
        self._neighbours = runtime.neighbours[shard.endpoint, shard.model]
        self._target = runtime.router.find(shard.endpoint, shard.model)
        # Whose slots the calls take.
        self._server = runtime.router.server_of(shard.endpoint, shard.model)
        self._feeder: asyncio.Task[None] | None = None
        self._lines: set[asyncio.Task[None]] = set()
        # Those of them that hold no slot: backing off, or waiting for a slot again.
        self._waiting: set[asyncio.Task[None]] = set()
        # Those whose last try failed through no fault of their own.
        self._failing: set[asyncio.Task[None]] = set()
        self._progress_at = runtime.clock()
        self._is_stopping = False
        self._timers: list[asyncio.TimerHandle] = []
        self._recorder = Recorder(
            runtime.database,
            shard,
            settings=self._settings,
            on_status=self._on_status,
            on_lost=self._abort,
            may_give_up=runtime.draining.is_set,
            on_paused=self._on_paused,
            in_flight=lambda: len(self._lines) - len(self._waiting),
        )

    async def run(self) -> None:
        """Call every pending line; return when nothing is in flight and all results are written."""
        self._later(self.shard.seconds_left, self._abort)
        watches = [
            asyncio.create_task(self._stop_when_draining()),
            asyncio.create_task(self._stop_when_stalled()),
        ]
        self._feeder = asyncio.create_task(self._feed())
        try:
            await asyncio.wait({self._feeder})
            while self._lines:
                await asyncio.wait(self._lines)
            await self._recorder.close()
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            for timer in self._timers:
                timer.cancel()
        if not self._feeder.cancelled():
            self._feeder.result()

    async def _feed(self) -> None:
        """Begin a call for each pending line, as slots become free."""
        async with self._runtime.database.begin() as session:
            file = await session.get_one(File, self.shard.input_file_pk)
        async for line_no, raw in read_places(self._runtime.database, file, self.shard.lines):
            while self._recorder.is_behind:  # noqa: ASYNC110  # it ends by the clock too
                await asyncio.sleep(self._settings.record_seconds)
            await self._runtime.limiter.acquire(self._server)
            task = asyncio.create_task(self._run_line(line_no, raw))
            self._lines.add(task)
            task.add_done_callback(self._end_line)

    def _end_line(self, task: asyncio.Task[None]) -> None:
        """Give back the line's slot. Not done in the task: one cancelled at its start never runs."""
        self._lines.discard(task)
        self._failing.discard(task)
        self._progress_at = self._runtime.clock()
        if task in self._waiting:
            self._waiting.discard(task)
        else:
            self._runtime.limiter.release(self._server)

    async def _run_line(self, line_no: int, raw: bytes) -> None:
        """Call one line until its outcome is final, and record it; begins with a slot taken."""
        key = request_id(self.shard.batch_id, line_no)
        try:
            line = decode_input_line(raw)
            outcome = await self._call(line_no, line, key)
            row = self._render(line_no, line.custom_id, key, outcome)
        except Exception as error:  # noqa: BLE001  # one line's fault must not be its shard's
            log.error(  # noqa: TRY400  # the traceback's words may hold a prompt
                "batch %s: line %s: %s", self.shard.batch_id, line_no, describe(error)
            )
            row = self._render(line_no, custom_id_of(raw), key, _INTERNAL_ERROR)
        self._recorder.add(row)

    async def _call(self, line_no: int, line: InputLine, key: str) -> Outcome:
        """Try until the outcome is final."""
        target = self._target
        if isinstance(target, LineError):
            # The file of model servers has changed since the batch was validated.
            return Outcome(Verdict.REFUSED, code=target.code, message=target.message)
        body = target.body_of(bytes(line.body))
        neighbours = self._neighbours
        failures = charged = 0
        while True:
            successes_before = neighbours.successes
            outcome = await self._send(target.upstream, body, key)
            now = self._runtime.clock()
            if outcome.verdict is not Verdict.TRANSIENT:
                neighbours.succeeded(now)
                return outcome
            failures += 1
            if failures == 1:
                neighbours.first_try_failed()
            is_own = neighbours.charge(outcome.blame, successes_before=successes_before, now=now)
            charged += is_own
            self._note_failure(outcome, is_own=is_own)
            if charged >= self._settings.line_max_tries:
                log.info("batch %s: line %s given up", self.shard.batch_id, line_no)
                return outcome
            await self._wait_for_next_try(failures, outcome)

    async def _send(self, upstream: Upstream, body: bytes, key: str) -> Outcome:
        """One try; for a video it ends when the video does, and holds its slot until then."""
        outcome = await upstream.send(self.shard.endpoint, body, idempotency_key=key)
        if self.shard.endpoint is Endpoint.VIDEOS and is_unfinished(outcome):
            # It is at work now, however its tries before this one ended.
            self._failing -= {asyncio.current_task()}
            seconds = self._settings.video_timeout_seconds
            outcome = await finish_video(upstream, outcome, timeout_seconds=seconds)
        return outcome

    def _note_failure(self, outcome: Outcome, *, is_own: bool) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # we are in one
        if is_own:
            self._failing.discard(task)
            return
        self._failing.add(task)
        if outcome.blame is not Blame.BUSY and self._neighbours.should_report(
            self._runtime.clock()
        ):
            log.warning(
                "the model server %s fails (%s): calls are tried again until the window closes",
                self._server,
                outcome.status_code or outcome.code,
            )

    async def _wait_for_next_try(self, failures: int, outcome: Outcome) -> None:
        """Back off without a slot, then take one again."""
        if self._is_stopping:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # we are in one
        seconds = backoff_seconds(
            failures,
            base_seconds=self._settings.retry_base_seconds,
            cap_seconds=self._settings.retry_cap_seconds,
            retry_after_seconds=outcome.retry_after_seconds,
        )
        self._waiting.add(task)
        self._runtime.limiter.release(self._server)
        await asyncio.sleep(seconds)
        await self._runtime.limiter.acquire(self._server)
        self._waiting.discard(task)
        self._recorder.retries += 1

    def _render(self, line_no: int, custom_id: str, key: str, outcome: Outcome) -> Row:
        if outcome.status_code is None:
            line = render_failure(
                request_id=key, custom_id=custom_id, code=outcome.code, message=outcome.message
            )
        else:
            line = render_response(
                request_id=key,
                custom_id=custom_id,
                status_code=outcome.status_code,
                response_id=outcome.response_id
                or fallback_response_id(self.shard.batch_id, line_no),
                body=outcome.body,
            )
        return Row(line_no, outcome.verdict is Verdict.SUCCEEDED, line, outcome.usage)

    def _on_status(self, status: BatchStatus) -> None:
        if status is BatchStatus.CANCELLING:
            self._stop(self._settings.cancel_grace_seconds)
        else:
            self._abort()

    def _on_paused(self) -> None:
        """Begin no call any more, and let those in flight end, however long they take."""
        self.has_made_room = True
        self._stop(None)

    async def _stop_when_draining(self) -> None:
        await self._runtime.draining.wait()
        self._stop(self._settings.drain_seconds)

    async def _stop_when_stalled(self) -> None:
        """Make room for other batches when every line fails through no fault of its own."""
        seconds = self._settings.stall_seconds
        while True:
            await asyncio.sleep(seconds / 4)
            is_stalled = (
                self._feeder is not None
                and self._feeder.done()
                and self._failing >= self._lines
                and self._runtime.clock() - self._progress_at > seconds
            )
            with contextlib.suppress(SQLAlchemyError, OSError):
                if is_stalled and await others_wait(self._runtime.database, self.shard.batch_pk):
                    log.info("batch %s: a shard makes room for other batches", self.shard.batch_id)
                    self.has_made_room = True
                    self._stop(self._settings.drain_seconds)
                    return

    def _stop(self, grace_seconds: float | None) -> None:
        """Begin no call any more; give up those in flight after the grace period, if there is one."""
        if not self._is_stopping:
            self._is_stopping = True
            if self._feeder is not None:
                self._feeder.cancel()
            for task in self._waiting:
                task.cancel()
        if grace_seconds is not None:
            self._later(grace_seconds, self._abort)

    def _abort(self) -> None:
        """Give up everything but what is already recorded or waits to be."""
        if not self._is_stopping:
            self._stop(0)
        for task in self._lines:
            task.cancel()

    def _later(self, seconds: float, callback: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(max(0.0, seconds), callback))


_INTERNAL_ERROR = Outcome(
    Verdict.REFUSED,
    code="internal_error",
    message="The batch engine failed to process this request.",
)
