"""A line's tries: what is sent, what its end says of the server and the line, and what is recorded at last.

Promises: a body is sent as it was written; a line gets its final answer at the first try that is no
transient failure, or after `line_max_tries` failures that were its own; one line's fault is never its
shard's.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from models.faults import describe
from models.ids import fallback_response_id, request_id
from models.lines import (
    Endpoint,
    LineError,
    custom_id_of,
    decode_input_line,
    render_failure,
    render_response,
)
from models.tracing import current_traceparent, is_tracing, span
from worker.claim import ClaimedShard
from worker.flow.lane import Lane
from worker.recorder import Row
from worker.retry import Blame, backoff_seconds
from worker.router import Target
from worker.runtime import Runtime
from worker.upstream import Outcome, Verdict
from worker.video import finish_video, is_unfinished

log = logging.getLogger(__name__)

_UNAVAILABLE = 503

_PATIENCE = 4
"""A try that follows one that hung may last so many times as long."""

INTERNAL_ERROR = Outcome(
    Verdict.REFUSED,
    code="internal_error",
    message="The batch engine failed to process this request.",
)
_WORKER_LOST = Outcome(
    Verdict.REFUSED,
    code="worker_lost",
    message="Every worker that made this request came to a sudden end. It was not tried again.",
)
_HUNG = Outcome(
    Verdict.TRANSIENT,
    blame=Blame.UNCLEAR,
    code="upstream_timeout",
    message="The model server did not answer in time.",
)


@dataclass(slots=True, eq=False)
class Line:
    """A line without a final answer, and how its tries have gone."""

    line_no: int
    raw: bytes
    custom_id: str | None = None
    body: bytes = b""
    failures: int = 0
    charged: int = 0
    refusals: int = 0
    hangs: int = 0
    has_hung: bool = False
    tokens: int = 0
    """What its present call is thought to use."""

    is_probe: bool = False
    """Whether its present call only asks whether the server is back."""

    is_counted: bool = False
    """Whether its lane counts a call of it as in flight."""

    began_at: float = 0.0
    successes_before: int = 0


class Attempts:
    """The tries of one shard's lines."""

    def __init__(self, runtime: Runtime, shard: ClaimedShard, target: Target, lane: Lane) -> None:
        self._shard = shard
        self._settings = runtime.run_settings
        self._neighbours = runtime.neighbours[shard.endpoint, shard.model]
        self._clock: Callable[[], float] = runtime.clock
        self._target = target
        self._lane = lane

    def begin(self, line: Line) -> None:
        """A try is about to be made: count it."""
        line.tokens = self._lane.tokens_of(len(line.raw))
        line.began_at = self._clock()
        line.successes_before = self._neighbours.successes
        line.has_hung = False
        line.is_probe = self._lane.breaker.is_open
        self._lane.started(line.tokens)
        line.is_counted = True
        self._lane.tally.retries += line.failures > 0

    async def call(self, line: Line) -> Outcome:
        """One try; for a video it ends when the video does."""
        if line.custom_id is None:
            read = decode_input_line(line.raw)
            line.body = self._target.body_of(bytes(read.body))
            line.custom_id = read.custom_id
        return await (self._traced(line) if is_tracing() else self._send(line))

    async def _traced(self, line: Line) -> Outcome:
        """The same, as a span of its own, which the server is told of."""
        shard = self._shard
        with span(
            f"POST {shard.endpoint}",
            kind="client",
            upstream=self._target.server_name,
            batch=shard.batch_id,
            line=line.line_no,
            retries=line.failures,
        ) as call:
            outcome = await self._send(line, traceparent=current_traceparent())
            call.tell_answer(
                outcome.status_code,
                outcome.code or ("" if outcome.verdict is Verdict.SUCCEEDED else "refused"),
            )
        return outcome

    def _send(self, line: Line, *, traceparent: str | None = None) -> Awaitable[Outcome]:
        # No coroutine around the only one that there mostly is: each costs, at every line.
        endpoint = self._shard.endpoint
        key = request_id(self._shard.batch_id, line.line_no)
        sending = self._target.upstream.send(
            endpoint, line.body, idempotency_key=key, traceparent=traceparent
        )
        return self._see_video_to_its_end(sending) if endpoint is Endpoint.VIDEOS else sending

    async def _see_video_to_its_end(self, sending: Awaitable[Outcome]) -> Outcome:
        outcome = await sending
        if is_unfinished(outcome):
            # It is at work now, however its tries before this one ended.
            seconds = self._settings.video_timeout_seconds
            outcome = await finish_video(self._target.upstream, outcome, timeout_seconds=seconds)
        return outcome

    def hangs(self, line: Line, hang_seconds: float) -> bool:
        """Whether a call lasts longer than any should; a line's next one gets more time."""
        return (
            self._shard.endpoint is not Endpoint.VIDEOS
            and self._clock() - line.began_at > hang_seconds * _PATIENCE**line.hangs
        )

    def judge(self, line: Line, outcome: Outcome) -> Row | float:
        """What follows a try: the row to record, or the seconds to wait before the next one."""
        now = self._clock()
        # The lane forgets the call first of all, whatever comes of the rest.
        line.is_counted = False
        tally = self._lane.tally
        tally.ended(outcome.status_code or outcome.code)
        if outcome.verdict is Verdict.SUCCEEDED:
            tally.took(now - line.began_at)
        if outcome.verdict is not Verdict.TRANSIENT:
            self._neighbours.succeeded(now)
            self._lane.answered(
                now - line.began_at,
                is_success=outcome.verdict is Verdict.SUCCEEDED,
                tokens=line.tokens,
                used=outcome.usage.total_tokens,
                answer_tokens=outcome.usage.output_tokens,
                hint=outcome.rate_hint,
            )
            return self._render(line, outcome)
        line.failures += 1
        if outcome.blame is Blame.BUSY:
            line.refusals += 1
            self._lane.refused(
                outcome.retry_after_seconds,
                seconds=now - line.began_at,
                is_of_server=outcome.status_code == _UNAVAILABLE,
                tokens=line.tokens,
                hint=outcome.rate_hint,
            )
        else:
            reason = str(outcome.status_code or outcome.code)
            is_first = line.failures == 1
            self._lane.failed(outcome.blame, reason, tokens=line.tokens, is_first_try=is_first)
        if self._is_given_up(line, outcome, now):
            log.info("batch %s: line %s given up", self._shard.batch_id, line.line_no)
            return self._render(line, outcome)
        return self._seconds_to_wait(line, outcome)

    def judge_hung(self, line: Line) -> Row | float:
        """What follows a try that was stopped because it hung."""
        line.hangs += 1
        return self.judge(line, _HUNG)

    def judge_fault(self, line: Line, error: BaseException) -> Row:
        """What follows a fault of ours. (The traceback's words may hold a prompt.)"""
        log.error("batch %s: line %s: %s", self._shard.batch_id, line.line_no, describe(error))
        self.drop(line)
        if line.custom_id is None:
            line.custom_id = custom_id_of(line.raw)
        return self._render(line, INTERNAL_ERROR)

    def drop(self, line: Line) -> None:
        """A try was stopped from here: another worker will make it again."""
        if line.is_counted:
            line.is_counted = False
            self._lane.dropped(tokens=line.tokens)

    def _is_given_up(self, line: Line, outcome: Outcome, now: float) -> bool:
        if line.failures == 1:
            self._neighbours.first_try_failed()
        # A line that asks after a server in an outage is not to blame for what it hears.
        line.charged += not line.is_probe and self._neighbours.charge(
            outcome.blame, successes_before=line.successes_before, now=now
        )
        return line.charged >= self._settings.line_max_tries

    def _seconds_to_wait(self, line: Line, outcome: Outcome) -> float:
        """Nothing where the lane does the waiting for all its lines.

        A line that is refused again may be one that always is: it must not be first each time.
        """
        asked = outcome.retry_after_seconds
        is_busy = outcome.blame is Blame.BUSY
        if asked is None and (self._lane.breaker.is_open or (is_busy and line.refusals == 1)):
            return 0.0
        return backoff_seconds(
            line.refusals if is_busy else line.failures,
            base_seconds=self._settings.retry_base_seconds,
            cap_seconds=self._settings.retry_cap_seconds,
            retry_after_seconds=asked,
        )

    def _render(self, line: Line, outcome: Outcome) -> Row:
        row = render_row(self._shard, line.line_no, line.custom_id or "", outcome)
        return row._replace(seconds=self._clock() - line.began_at)


def render_row(shard: ClaimedShard, line_no: int, custom_id: str, outcome: Outcome) -> Row:
    """A final outcome as it is recorded."""
    key = request_id(shard.batch_id, line_no)
    if outcome.status_code is None:
        line = render_failure(
            request_id=key, custom_id=custom_id, code=outcome.code, message=outcome.message
        )
    else:
        line = render_response(
            request_id=key,
            custom_id=custom_id,
            status_code=outcome.status_code,
            response_id=outcome.response_id or fallback_response_id(shard.batch_id, line_no),
            body=outcome.body,
        )
    return Row(line_no, outcome.verdict is Verdict.SUCCEEDED, line, outcome.usage)


def render_lost(shard: ClaimedShard, line_no: int, raw: bytes) -> Row:
    """The row of a line that each worker died of which called it."""
    return render_row(shard, line_no, custom_id_of(raw), _WORKER_LOST)


def render_nowhere(shard: ClaimedShard, line_no: int, raw: bytes, error: LineError) -> Row:
    """The row of a line that no model server may get: their file has changed since it was validated."""
    outcome = Outcome(Verdict.REFUSED, code=error.code, message=error.message)
    return render_row(shard, line_no, custom_id_of(raw), outcome)
