"""Videos: begun by a call, asked for by others, done after a while.

The one endpoint with a memory. It keeps the latest `MOST_VIDEOS`, through a stop and a start of the
server too; whatever else is asked for is unknown.
"""

import itertools
import time
from dataclasses import dataclass
from typing import Any

import orjson

from cli.simulator import refusal
from cli.simulator.answer import Answer
from cli.simulator.body import required_text
from cli.simulator.refusal import Refusal
from cli.simulator.settings import SimulatorSettings
from cli.simulator.text import digest

MOST_VIDEOS = 100_000
DEFAULT_MODEL = "sora-2"
_LENGTHS = ("4", "8", "12")
_SIZES = ("720x1280", "1280x720", "1024x1792", "1792x1024")
_KEPT_SECONDS = 24 * 3600
_MOST_POLLS_ASKED_FOR = 4
# The first box of an MP4, and no more: enough to tell what it is.
_CONTENT = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom"


@dataclass(frozen=True, kw_only=True)
class _Video:
    id: str
    model: str
    prompt: str
    length: str
    size: str
    begun: float
    takes_seconds: float
    is_doomed: bool


class Videos:
    """What has been begun."""

    def __init__(self) -> None:
        """Nothing has."""
        self._videos: dict[str, _Video] = {}
        self._numbers = itertools.count(1)

    def begin(
        self, body: dict[str, Any], settings: SimulatorSettings, *, is_doomed: bool
    ) -> Answer:
        """Begin a video; a doomed one ends as `failed`."""
        prompt = required_text(body, "prompt")
        video = _Video(
            id=f"video_{digest(prompt)}{next(self._numbers):08x}",
            model=body.get("model") or DEFAULT_MODEL,
            prompt=prompt,
            length=_one_of(_LENGTHS, body, "seconds"),
            size=_one_of(_SIZES, body, "size"),
            begun=time.time(),
            takes_seconds=settings.video_seconds,
            is_doomed=is_doomed,
        )
        self._videos[video.id] = video
        if len(self._videos) > MOST_VIDEOS:
            del self._videos[next(iter(self._videos))]
        return _written(video, share=0.0)

    def retrieve(self, video_id: str) -> Answer:
        """How far a video is by now."""
        video = self._find(video_id)
        return _written(video, share=_share_done(video))

    def content(self, video_id: str) -> Answer:
        """The file of a video that is completed."""
        video = self._find(video_id)
        if video.is_doomed or _share_done(video) < 1:
            raise Refusal(
                404, "Video is not ready yet, use GET /v1/videos/{id} to check its status."
            )
        return Answer(_CONTENT, headers=b"content-type: video/mp4\r\n")

    def _find(self, video_id: str) -> _Video:
        try:
            return self._videos[video_id]
        except KeyError:
            raise refusal.unknown_video(video_id) from None


def _one_of(allowed: tuple[str, ...], body: dict[str, Any], param: str) -> str:
    value = body.get(param)
    if value is None:
        return allowed[0]
    if value not in allowed:
        supported = ", ".join(f"'{one}'" for one in allowed)
        raise Refusal(
            400,
            f"Invalid value: '{value}'. Supported values are: {supported}.",
            code="invalid_value",
            param=param,
        )
    return str(value)


def _share_done(video: _Video) -> float:
    """From 0 to 1."""
    age = time.time() - video.begun
    return 1.0 if age >= video.takes_seconds else max(age, 0.0) / video.takes_seconds


def _written(video: _Video, *, share: float) -> Answer:
    is_over = share >= 1
    status = "queued" if share < 0.25 else "in_progress"
    if is_over:
        status = "failed" if video.is_doomed else "completed"
    ended = int(video.begun + video.takes_seconds)
    is_completed = status == "completed"
    error = {"code": "simulated_failure", "message": "The simulated server was told to fail."}
    said = {
        "id": video.id,
        "object": "video",
        "created_at": int(video.begun),
        "completed_at": ended if is_completed else None,
        "expires_at": ended + _KEPT_SECONDS if is_completed else None,
        "model": video.model,
        "prompt": video.prompt,
        "progress": int(100 * share),
        "remixed_from_video_id": None,
        "seconds": video.length,
        "size": video.size,
        "status": status,
        "error": error if status == "failed" else None,
    }
    if is_over:
        return Answer(orjson.dumps(said))
    # OpenAI's clients take this for the time to wait before they ask again.
    milliseconds = max(1, int(video.takes_seconds * 1000 / _MOST_POLLS_ASKED_FOR))
    return Answer(orjson.dumps(said), headers=b"openai-poll-after-ms: %d\r\n" % milliseconds)
