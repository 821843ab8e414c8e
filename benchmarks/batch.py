"""Batches through an HTTP API, with a stopwatch: upload, create, poll, download.

Plain HTTP and no SDK, so that the client costs the machine as little as it can. Timestamps of the API
are whole seconds; times are therefore taken here, by polling, most finely where phases are short. The
engines that Overnight is measured against are asked in the same way.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

FINE_SECONDS = 0.02
COARSE_SECONDS = 0.2
STALL_SECONDS = 120
_ENDS = frozenset({"completed", "failed", "expired", "cancelled"})
_PHASES = ("in_progress", "finalizing", "completed")


class BatchFailed(Exception):
    """A batch ended otherwise than in full success, or did not move any more."""


@dataclass(kw_only=True)
class Batch:
    """A batch that was created, and what has been seen of it."""

    id: str
    created_at: float
    """Unix time at which the create call was sent."""
    created: float
    """The same moment on the stopwatch."""
    body: dict[str, Any]
    seen: dict[str, float] = field(default_factory=dict)
    """When each phase was first seen, or passed over between two looks."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.body["status"] in _ENDS

    @property
    def done(self) -> int:
        """Lines that have ended."""
        counts = self.body.get("request_counts") or {}
        return int(counts.get("completed", 0)) + int(counts.get("failed", 0))

    @property
    def total(self) -> int:
        """Lines in all; 0 as long as nobody has counted them."""
        return int((self.body.get("request_counts") or {}).get("total", 0))

    @property
    def seconds(self) -> float:
        """From sending the create call until `completed` was seen."""
        return self.seen["completed"] - self.created


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds that each phase of a batch took, and how much went through it."""

    lines: int
    input_bytes: int
    output_bytes: int
    created_at: float
    completed_at: float
    """Unix times, of the create call and of seeing `completed`."""
    upload_seconds: float
    validate_seconds: float
    """From sending the create call until `in_progress` (or beyond) was seen."""
    finalize_seconds: float
    total_seconds: float
    """From sending the create call until `completed` was seen."""
    download_seconds: float

    @property
    def lines_per_second(self) -> float:
        """From create to completed."""
        return self.lines / self.total_seconds


class BatchClient:
    """The batch API of one server."""

    def __init__(self, base_url: str, api_key: str = "none") -> None:
        self._http = httpx.Client(
            base_url=base_url,
            headers={"authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(60, read=300),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def upload(self, source: Path) -> str:
        """Upload an input and return its id."""
        with source.open("rb") as file:
            answer = self._http.post(
                "/files",
                data={"purpose": "batch"},
                files={"file": (source.name, file, "application/jsonl")},
            )
        file_id: str = answer.raise_for_status().json()["id"]
        return file_id

    def create(self, file_id: str) -> Batch:
        """Create a batch of chat completions."""
        created_at, created = time.time(), time.perf_counter()
        answer = self._http.post(
            "/batches",
            json={
                "input_file_id": file_id,
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            },
        )
        body = answer.raise_for_status().json()
        return Batch(id=body["id"], created_at=created_at, created=created, body=body)

    def look(self, batch: Batch) -> None:
        """See how it is now."""
        batch.body = self._http.get(f"/batches/{batch.id}").raise_for_status().json()
        now, status = time.perf_counter(), batch.body["status"]
        if status in _PHASES:
            for phase in _PHASES[: _PHASES.index(status) + 1]:
                batch.seen.setdefault(phase, now)

    def wait_for_lines(self, batch: Batch, lines: int) -> None:
        """Until so many have ended."""
        deadline = time.monotonic() + STALL_SECONDS
        while batch.done < lines:
            if batch.has_ended or time.monotonic() > deadline:
                raise BatchFailed(f"Only {batch.done} of {lines} lines: {batch.body}")
            time.sleep(COARSE_SECONDS)
            self.look(batch)

    def wait(self, *batches: Batch, look_seconds: float = FINE_SECONDS) -> None:
        """Until all have completed, each line with success; anything else raises `BatchFailed`."""
        progress, moved_at = -1, time.monotonic()
        while open_ones := [batch for batch in batches if not batch.has_ended]:
            done, total = sum(b.done for b in batches), sum(b.total for b in batches)
            if progress != (progress := done + sum(len(b.seen) for b in batches)):
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at > STALL_SECONDS:
                raise BatchFailed(f"Nothing has moved for {STALL_SECONDS} s at {done} of {total}")
            # In the long middle, looking often would take time from the work itself.
            is_long = (
                total and done < 0.97 * total and all("in_progress" in b.seen for b in batches)
            )
            time.sleep(COARSE_SECONDS if is_long else look_seconds)
            for batch in open_ones:
                self.look(batch)
        for batch in batches:
            counts = batch.body["request_counts"]
            if batch.body["status"] != "completed" or counts["completed"] != counts["total"]:
                raise BatchFailed(f"The batch did not succeed: {str(batch.body)[:500]}")

    def download(self, batch: Batch) -> tuple[int, int]:
        """Read its output through: bytes, lines."""
        size = lines = 0
        last = b"\n"
        with self._http.stream("GET", f"/files/{batch.body['output_file_id']}/content") as answer:
            answer.raise_for_status()
            pieces: Iterator[bytes] = answer.iter_raw()
            for piece in pieces:
                size += len(piece)
                lines += piece.count(b"\n")
                last = piece[-1:]
        return size, lines + (last != b"\n")


def run_batch(
    client: BatchClient, source: Path, during: Callable[[Batch], None] | None = None
) -> Timing:
    """Take a chat input through the whole life of a batch; anything but full success raises.

    What is to be done `during` the batch must be over before it is.
    """
    began = time.perf_counter()
    file_id = client.upload(source)
    uploaded = time.perf_counter()
    batch = client.create(file_id)
    if during is not None:
        during(batch)
    client.wait(batch)
    asked = time.perf_counter()
    completed_at = time.time() - (asked - batch.seen["completed"])
    output_bytes, output_lines = client.download(batch)
    downloaded = time.perf_counter()
    if output_lines != batch.total:
        raise BatchFailed(f"{output_lines} lines came back of {batch.total}")
    return Timing(
        lines=batch.total,
        input_bytes=source.stat().st_size,
        output_bytes=output_bytes,
        created_at=batch.created_at,
        completed_at=completed_at,
        upload_seconds=uploaded - began,
        validate_seconds=batch.seen["in_progress"] - batch.created,
        finalize_seconds=batch.seen["completed"] - batch.seen["finalizing"],
        total_seconds=batch.seconds,
        download_seconds=downloaded - asked,
    )


def run_together(
    client: BatchClient, sources: Sequence[Path], *, look_seconds: float = FINE_SECONDS
) -> float:
    """Create a batch of each source at once; the seconds until the last has completed."""
    file_ids = [client.upload(source) for source in sources]
    batches = [client.create(file_id) for file_id in file_ids]
    client.wait(*batches, look_seconds=look_seconds)
    return max(batch.seen["completed"] for batch in batches) - batches[0].created
