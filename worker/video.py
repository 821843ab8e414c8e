"""Staying with a call for a video until the video has ended: its first answer is only a beginning.

Promises: what is recorded for a video is its object once it has ended, `completed` or `failed`; a poll
that fails is made again and begins no second video. A second one is begun only if the server no longer
knows the first, or if it was failing when the time for the video was over. No text of the server becomes
another path: an id that is no plain word is refused.
"""

import asyncio
import re
from dataclasses import replace

from worker.answer import read_job
from worker.retry import Blame, backoff_seconds
from worker.upstream import Outcome, Upstream, Verdict

# OpenAI's two, and the words of other servers for the same. As in OpenAI's clients, any other status is
# an end, and so is none.
_UNFINISHED = frozenset({"queued", "in_progress", "pending", "processing", "running"})
# What ids are made of; such a one can be neither `.` nor `..`, nor hold `/`, `%`, `?` or `#`.
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._~:=@+-]{0,999}")

_FIRST_POLL_SECONDS = 1.0
_POLL_CAP_SECONDS = 10.0
_SHORTEST_POLL_SECONDS = 0.1

_WITHOUT_ID = Outcome(
    Verdict.REFUSED,
    code="upstream_broken_answer",
    message="The model server began a video without an id by which it can be asked for.",
)
_UNFINISHED_IN_TIME = Outcome(
    Verdict.REFUSED,
    code="upstream_timeout",
    message="The model server did not finish the video in time.",
)


def is_unfinished(outcome: Outcome) -> bool:
    """Whether a call for a video has only begun it."""
    return outcome.verdict is Verdict.SUCCEEDED and read_job(outcome.body).status in _UNFINISHED


async def finish_video(upstream: Upstream, begun: Outcome, *, timeout_seconds: float) -> Outcome:
    """Wait until the server has finished the video that a call has begun, for so long at most.

    Cancelled, it asks for nothing any more.
    """
    video_id = read_job(begun.body).id
    if _ID.fullmatch(video_id) is None:
        # To begin another would cost another video, for no better answer.
        return _WITHOUT_ID
    end = await _poll_to_end(upstream, video_id, begun.retry_after_seconds, timeout_seconds)
    # The request by which the server knows the line is the one that began the video.
    return replace(end, response_id=begun.response_id or end.response_id)


async def _poll_to_end(
    upstream: Upstream, video_id: str, asked_seconds: float | None, timeout_seconds: float
) -> Outcome:
    now = asyncio.get_running_loop().time
    deadline = now() + timeout_seconds
    polls = 0
    while True:
        polls += 1
        wait_seconds = _wait_seconds(polls, asked_seconds)
        await asyncio.sleep(min(wait_seconds, max(deadline - now(), 0)))
        outcome = await upstream.retrieve_video(video_id)
        if outcome.status_code == 404:
            # The server has forgotten the video, and is well enough to say so.
            return replace(outcome, verdict=Verdict.TRANSIENT, blame=Blame.OWN)
        if outcome.verdict is not Verdict.TRANSIENT and not is_unfinished(outcome):
            return outcome
        if now() >= deadline:
            # If it fails, whether the line or an outage is to blame is judged as for any other call.
            return outcome if outcome.verdict is Verdict.TRANSIENT else _UNFINISHED_IN_TIME
        asked_seconds = outcome.retry_after_seconds


def _wait_seconds(polls: int, asked_seconds: float | None) -> float:
    seconds = backoff_seconds(
        polls,
        base_seconds=_FIRST_POLL_SECONDS,
        cap_seconds=_POLL_CAP_SECONDS,
        retry_after_seconds=asked_seconds,
    )
    # However soon the server wishes to be asked.
    return max(seconds, _SHORTEST_POLL_SECONDS)
