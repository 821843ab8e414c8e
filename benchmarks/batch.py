"""One batch through Overnight's HTTP API, with a stopwatch: upload, create, poll, download.

Plain HTTP and no SDK, so that the client costs the machine as little as it can. Timestamps of the API
are whole seconds; times are therefore taken here, by polling, most finely where phases are short.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.processes import Engine

FINE_SECONDS = 0.02
COARSE_SECONDS = 0.2
STALL_SECONDS = 120
_ENDS = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds that each phase of a batch took, and how much went through it."""

    lines: int
    input_bytes: int
    output_bytes: int
    created_at: float
    """Unix time at which the create call was sent."""
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


def run_batch(engine: Engine, source: Path) -> Timing:
    """Take a chat input through the whole life of a batch; anything but full success raises."""
    headers = {"authorization": f"Bearer {engine.api_key}"}
    timeout = httpx.Timeout(60, read=300)
    with httpx.Client(base_url=engine.base_url, headers=headers, timeout=timeout) as client:
        began = time.perf_counter()
        file_id = _upload(client, source)
        uploaded = time.perf_counter()

        created_at, created = time.time(), time.perf_counter()
        answer = client.post(
            "/batches",
            json={
                "input_file_id": file_id,
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            },
        )
        seen, batch = _watch(client, answer.raise_for_status().json())
        counts = batch["request_counts"]
        if batch["status"] != "completed" or counts["completed"] != counts["total"]:
            raise RuntimeError(f"The batch did not succeed: {batch}")

        asked = time.perf_counter()
        output_bytes, output_lines = _download(client, batch["output_file_id"])
        downloaded = time.perf_counter()
    if output_lines != counts["total"]:
        raise RuntimeError(f"{output_lines} lines came back of {counts['total']}")
    return Timing(
        lines=counts["total"],
        input_bytes=source.stat().st_size,
        output_bytes=output_bytes,
        created_at=created_at,
        upload_seconds=uploaded - began,
        validate_seconds=seen["in_progress"] - created,
        finalize_seconds=seen["completed"] - seen["finalizing"],
        total_seconds=seen["completed"] - created,
        download_seconds=downloaded - asked,
    )


def _upload(client: httpx.Client, source: Path) -> str:
    with source.open("rb") as file:
        answer = client.post(
            "/files",
            data={"purpose": "batch"},
            files={"file": (source.name, file, "application/jsonl")},
        )
    file_id: str = answer.raise_for_status().json()["id"]
    return file_id


def _watch(client: httpx.Client, batch: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Poll until the end; when each phase was first seen, or passed over between two looks."""
    seen: dict[str, float] = {}
    progress, moved_at = (batch["status"], 0), time.perf_counter()
    phases = ("in_progress", "finalizing", "completed")
    while True:
        now = time.perf_counter()
        status = batch["status"]
        if status in phases:
            for phase in phases[: phases.index(status) + 1]:
                seen.setdefault(phase, now)
        if status in _ENDS:
            return seen, batch
        counts = batch["request_counts"]
        done = counts["completed"] + counts["failed"]
        if progress != (progress := (status, done)):
            moved_at = now
        elif now - moved_at > STALL_SECONDS:
            raise RuntimeError(f"Nothing has moved for {STALL_SECONDS} s: {status}, {counts}")
        # In the long middle, looking often would take time from the work itself.
        is_long = status == "in_progress" and done < 0.97 * counts["total"]
        time.sleep(COARSE_SECONDS if is_long else FINE_SECONDS)
        batch = client.get(f"/batches/{batch['id']}").raise_for_status().json()


def _download(client: httpx.Client, file_id: str) -> tuple[int, int]:
    size = lines = 0
    with client.stream("GET", f"/files/{file_id}/content") as answer:
        answer.raise_for_status()
        pieces: Iterator[bytes] = answer.iter_raw()
        for piece in pieces:
            size += len(piece)
            lines += piece.count(b"\n")
    return size, lines
