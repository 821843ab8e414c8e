"""How fast a batch goes and what that means for its end, from what is seen of it now and then. Pure."""

from collections import deque
from dataclasses import dataclass
from typing import Any

_WINDOW_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """A batch as it was seen at one moment. What a server does not tell is null."""

    status: str
    is_paused: bool = False
    total: int = 0
    completed: int = 0
    failed: int = 0
    retries: int | None = None
    lines_per_second: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None

    @property
    def done(self) -> int:
        """Lines that have ended, whichever way."""
        return self.completed + self.failed


class Pace:
    """Means over the last seconds; the server's own, where it tells one, goes before."""

    def __init__(self, *, window_seconds: float = _WINDOW_SECONDS) -> None:
        self._window_seconds = window_seconds
        self._seen: deque[tuple[float, int, int]] = deque()

    def see(self, batch: dict[str, Any], progress: dict[str, Any] | None, *, now: float) -> Sight:
        """Take in what the server said at this moment, by any steady clock."""
        told = progress or {}
        total, completed, failed = counts(told if told.get("request_counts") else batch)
        status = str(batch["status"])
        lines_per_second = tokens_per_second = seconds_left = None
        if status == "in_progress":
            done = completed + failed
            lines, tokens = self._rates(now, done, _tokens(told) or _tokens(batch))
            # Before the first line has ended, nobody knows.
            lines_per_second = told.get("lines_per_second") or lines
            tokens_per_second = tokens
            # The first few say nothing about the rest.
            if lines_per_second and done * 50 >= total and not told.get("paused"):
                seconds_left = (total - done) / lines_per_second
        return Sight(
            status=status,
            is_paused=bool(told.get("paused")),
            total=total,
            completed=completed,
            failed=failed,
            retries=told.get("retries"),
            lines_per_second=lines_per_second,
            tokens_per_second=tokens_per_second,
            seconds_left=seconds_left,
        )

    def _rates(self, now: float, done: int, tokens: int) -> tuple[float | None, float | None]:
        self._seen.append((now, done, tokens))
        while len(self._seen) > 2 and self._seen[1][0] <= now - self._window_seconds:
            self._seen.popleft()
        then, done_then, tokens_then = self._seen[0]
        if now <= then:
            return None, None
        seconds = now - then
        return (done - done_then) / seconds or None, (tokens - tokens_then) / seconds or None


def counts(batch: dict[str, Any]) -> tuple[int, int, int]:
    """Total, completed and failed; a server may leave any of them out."""
    found = batch.get("request_counts") or {}
    return (
        int(found.get("total") or 0),
        int(found.get("completed") or 0),
        int(found.get("failed") or 0),
    )


def _tokens(found: dict[str, Any]) -> int:
    return int((found.get("usage") or {}).get("total_tokens") or 0)
