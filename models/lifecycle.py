"""The life of a batch and of a shard, as data. Imports nothing but the standard library.

    validating ──a──▶ in_progress ──c──▶ finalizing ──e──▶ completed
        │                  │                 └───────f──▶ expired
        b                  d
        ▼                  ▼
      failed          cancelling ──h──▶ cancelled
                           ▲
        validating ──g─────┘

Promises: `ALLOWED` is the only statement of which moves exist; a final status has none; each status
but the first names the one timestamp that is set on entering it.
"""

from enum import StrEnum
from types import MappingProxyType


class BatchStatus(StrEnum):
    """The eight words that OpenAI's clients know (contract: no other word is ever shown)."""

    VALIDATING = "validating"
    """Accepted; its input has not been checked yet. A control worker moves it on."""

    FAILED = "failed"
    """Final: the input was refused and nothing ran."""

    IN_PROGRESS = "in_progress"
    """Cut into shards, whose lines are being called."""

    FINALIZING = "finalizing"
    """Every line has its answer, or the window has closed: the files are being written."""

    COMPLETED = "completed"
    """Final: every line has its answer."""

    EXPIRED = "expired"
    """Final: the window closed first; what had finished is kept."""

    CANCELLING = "cancelling"
    """The caller asked to stop; calls in flight may still end."""

    CANCELLED = "cancelled"
    """Final: stopped by the caller; what had finished is kept."""


class ShardState(StrEnum):
    """Where a shard stands. A lapsed lease makes a running shard claimable again."""

    QUEUED = "queued"
    """Has lines without an answer and nobody working on them."""

    RUNNING = "running"
    """A worker holds its lease."""

    DONE = "done"
    """Every line of it has a result row."""


ALLOWED: MappingProxyType[BatchStatus, frozenset[BatchStatus]] = MappingProxyType(
    {
        BatchStatus.VALIDATING: frozenset(
            {BatchStatus.IN_PROGRESS, BatchStatus.FAILED, BatchStatus.CANCELLING}
        ),
        BatchStatus.IN_PROGRESS: frozenset({BatchStatus.FINALIZING, BatchStatus.CANCELLING}),
        BatchStatus.FINALIZING: frozenset({BatchStatus.COMPLETED, BatchStatus.EXPIRED}),
        BatchStatus.CANCELLING: frozenset({BatchStatus.CANCELLED}),
        BatchStatus.FAILED: frozenset(),
        BatchStatus.COMPLETED: frozenset(),
        BatchStatus.EXPIRED: frozenset(),
        BatchStatus.CANCELLED: frozenset(),
    }
)

FINAL: frozenset[BatchStatus] = frozenset(
    status for status, onward in ALLOWED.items() if not onward
)


def sources_of(status: BatchStatus) -> frozenset[BatchStatus]:
    """The statuses from which a batch may enter `status`."""
    return frozenset(source for source, onward in ALLOWED.items() if status in onward)


def timestamp_for(status: BatchStatus) -> str:
    """The name of the timestamp set on entering `status`: `created_at` for the first one."""
    return "created_at" if status is BatchStatus.VALIDATING else f"{status.value}_at"
