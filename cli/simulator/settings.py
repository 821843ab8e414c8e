"""How the simulated server behaves: one flat object, every value checked.

Checks run on every assignment, not only at the start, because tests turn these knobs while the
server runs; the server reads them anew for each call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Over = Literal["refuse", "queue"]
DownMode = Literal["503", "close"]
Metrics = Literal["vllm", "sglang", "llamacpp"]

SERVED_BY_DEFAULT = (
    "gpt-4o-mini",
    "gpt-3.5-turbo-instruct",
    "omni-moderation-latest",
    "text-embedding-3-small",
    "gpt-image-1",
    "sora-2",
)


@dataclass(kw_only=True)
class SimulatorSettings:
    """Everything one can ask of the simulated server.

    Host, port, seed, log and remember are read once, all else anew for each call.

    Rates are probabilities a call. Of the faults, cutting is drawn first, then hanging, then the
    error.
    """

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free port; a server that is stopped and started again keeps the one it had."""

    models: tuple[str, ...] = ()
    """Served model names. Empty: any name is served, and the list shows one for each endpoint."""
    api_key: str | None = None

    latency: float = 0.0
    """Median seconds a call takes."""
    latency_sigma: float = 0.0
    """Spread of a log-normal distribution around the median."""
    token_latency: float = 0.0
    """Further seconds for each token of the answer."""
    load_latency: float = 0.0
    """Share of all these seconds that a call takes more for each other call in service as it begins."""

    capacity: int | None = None
    """Most calls in service at once. None: no limit."""
    over: Over = "refuse"
    """What happens to a call above the capacity: 429, or a place in a first-in-first-out queue."""
    retry_after: float | None = 1.0
    """Seconds named in the headers of a 429 from a full server. None: no 429 has such headers."""
    requests_per_minute: int | None = None
    """Calls let in a minute, from a bucket that begins full; 429 above. None: no limit."""
    tokens_per_minute: int | None = None
    """The same for the tokens of prompts and answers together."""

    prefix_cache: int = 0
    """How many prompt prefixes are kept, the latest used. 0: there is no cache."""
    prefix_miss_latency: float = 0.0
    """Further seconds for a call whose prefix is not in the cache."""

    metrics: Metrics | None = None
    """Whose names /metrics gives the calls in service and the queue. None: 404."""
    control: bool = False
    """Whether anybody may change how the server behaves, by `POST /control`. For testing only."""

    outage: bool = False
    """Be down to everything but /stats and /control, as `down_mode` says."""
    down_mode: DownMode = "503"
    """Answer 503, or close the connection without a word."""
    error_rate: float = 0.0
    error_status: int = 500
    drop_rate: float = 0.0
    """How often an answer is cut off in the middle of its body."""
    hang_rate: float = 0.0
    """How often a call is never answered."""
    fail_marker: str | None = None
    """A call whose body contains these bytes always gets `fail_status`."""
    fail_status: int = 500
    bad_request_marker: str | None = None
    """A call whose body contains these bytes always gets 400."""

    video_seconds: float = 1.0
    """Seconds from the call for a video to its completion; it is queued first, then in progress."""
    video_fail_marker: str | None = None
    """A call for a video whose body contains these bytes is answered, and the video ends `failed`."""
    poll_error_rate: float = 0.0
    """How often a question for a video gets `error_status`."""

    reply_bytes: int | None = None
    """Exact size of the reply text in UTF-8. None: a short sentence."""
    seed: int | None = None
    log: Path | None = None
    """A line a call is appended here: Unix time of arrival, `idempotency-key` or `-`, status.

    Separated by tabs. Status 0: the server cut the connection. 499: the client left first.
    """
    remember: int = 0
    """How many of the latest calls to keep whole, headers and body, for a test to look at."""

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse a value outside its bounds, naming the field."""
        claim = _CLAIMS.get(name)
        if claim is not None:
            wording, holds = claim
            if not holds(value):
                message = f"{name} must be {wording}, not {value!r}"
                raise ValueError(message)
        super().__setattr__(name, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_duration(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 86_400


def _is_probability(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_error_status(value: Any) -> bool:
    return isinstance(value, int) and 400 <= value <= 599


def _is_limit(value: Any) -> bool:
    return value is None or (_is_number(value) and isinstance(value, int) and value >= 1)


def _is_marker(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value != "")


def _one_of(*allowed: str | None) -> tuple[str, Callable[[Any], bool]]:
    wording = " or ".join("nothing" if one is None else repr(one) for one in allowed)
    # Not a set: what comes from /control need not be hashable.
    return wording, lambda value: value in allowed


_DURATION = ("a number of seconds from 0 to 86400", _is_duration)
_PROBABILITY = ("a probability from 0 to 1", _is_probability)
_ERROR_STATUS = ("an HTTP status from 400 to 599", _is_error_status)
_MARKER = ("a text that is not empty", _is_marker)
_SWITCH = ("true or false", lambda v: isinstance(v, bool))
_LIMIT = ("at least 1", _is_limit)

_CLAIMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "port": ("a port from 0 to 65535", lambda v: isinstance(v, int) and 0 <= v <= 65_535),
    "latency": _DURATION,
    "latency_sigma": ("a number from 0 to 3", lambda v: _is_number(v) and 0 <= v <= 3),
    "token_latency": _DURATION,
    "load_latency": ("a number from 0 to 100", lambda v: _is_number(v) and 0 <= v <= 100),
    "capacity": _LIMIT,
    "over": _one_of("refuse", "queue"),
    "retry_after": (_DURATION[0], lambda v: v is None or _is_duration(v)),
    "requests_per_minute": _LIMIT,
    "tokens_per_minute": _LIMIT,
    "prefix_cache": ("0 or more", lambda v: isinstance(v, int) and v >= 0),
    "prefix_miss_latency": _DURATION,
    "metrics": _one_of(None, "vllm", "sglang", "llamacpp"),
    "outage": _SWITCH,
    "down_mode": _one_of("503", "close"),
    "error_rate": _PROBABILITY,
    "error_status": _ERROR_STATUS,
    "drop_rate": _PROBABILITY,
    "hang_rate": _PROBABILITY,
    "fail_marker": _MARKER,
    "fail_status": _ERROR_STATUS,
    "bad_request_marker": _MARKER,
    "video_seconds": _DURATION,
    "video_fail_marker": _MARKER,
    "poll_error_rate": _PROBABILITY,
    "reply_bytes": (
        "from 0 to 16777216",
        lambda v: v is None or (isinstance(v, int) and 0 <= v <= 16_777_216),
    ),
    "remember": ("0 or more", lambda v: isinstance(v, int) and v >= 0),
}
