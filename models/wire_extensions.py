"""What extensions answer that is no object of OpenAI's: a batch's history and failures, a line, workers."""

from typing import Any, Literal, Self

from pydantic import BaseModel


class HistoryPoint(BaseModel):
    """One interval of a batch's life. Latencies are null where no call ended."""

    completed: int = 0
    failed: int = 0
    latency_p50: float | None = None
    latency_p95: float | None = None
    in_flight: float = 0.0


class SlowLine(BaseModel):
    """A line whose last call took long."""

    line: int
    seconds: float
    succeeded: bool


class BatchHistory(BaseModel):
    """How a batch went, from its first call on: an extension. Times are Unix seconds."""

    object: Literal["batch.history"] = "batch.history"
    batch_id: str
    begins_at: float | None = None
    interval_seconds: float = 1.0
    points: list[HistoryPoint] = []
    slowest: list[SlowLine] = []

    @classmethod
    def of(cls, batch_id: str, kept: dict[str, Any]) -> Self:
        """The history as `models.history` makes it; intervals without anything are filled in."""
        found = {no: HistoryPoint.model_validate(_named(values)) for no, *values in kept["points"]}
        count = max(found, default=-1) + 1
        return cls(
            batch_id=batch_id,
            begins_at=kept["begins_at"],
            interval_seconds=kept["interval_seconds"],
            points=[found.get(no, HistoryPoint()) for no in range(count)],
            slowest=[
                SlowLine(line=line, seconds=seconds, succeeded=succeeded)
                for line, seconds, succeeded in kept["slowest"]
            ],
        )


def _named(values: list[Any]) -> dict[str, Any]:
    return dict(zip(HistoryPoint.model_fields, values, strict=True))


class FailedLine(BaseModel):
    """One of the lines that failed alike."""

    line: int
    custom_id: str


class FailureGroup(BaseModel):
    """Lines that failed with the same code, and what was said of the first of them."""

    code: str
    status_code: int | None
    message: str
    count: int
    examples: list[FailedLine]


class BatchFailures(BaseModel):
    """The failed lines of a batch by their codes, most first: an extension."""

    object: Literal["batch.failures"] = "batch.failures"
    batch_id: str
    lines_read: int
    is_whole: bool
    data: list[FailureGroup]


class BatchLine(BaseModel):
    """One line of a batch, and its output or error line, as they were written: an extension."""

    object: Literal["batch.line"] = "batch.line"
    batch_id: str
    line: int
    request: str
    request_is_cut: bool
    answer: str | None
    answer_is_cut: bool
    succeeded: bool | None
    seconds: float | None


class Worker(BaseModel):
    """A process of a worker, as it told of itself in the last ten seconds."""

    name: str
    kind: str
    in_flight: int
    room: int
    """Calls that it may have in flight in all; zero if it makes none."""

    shards: int
    up_seconds: float
    is_draining: bool


class UpstreamStanding(BaseModel):
    """A model at a model server, as all workers together find it.

    `limit` is the number of calls in flight that was found to be right; null if nobody calls it now. Calls
    are counted since each worker began.
    """

    server: str
    model: str
    workers: int = 0
    in_flight: int = 0
    waiting: int = 0
    limit: int | None = None
    breaker: Literal["closed", "open"] = "closed"
    paused_seconds: float = 0.0
    succeeded: int = 0
    refused: int = 0
    failed: int = 0
    mean_latency_seconds: float | None = None


class WorkerList(BaseModel):
    """All workers that were heard of, and what they say of the model servers: an extension."""

    object: Literal["list"] = "list"
    data: list[Worker]
    upstreams: list[UpstreamStanding]
