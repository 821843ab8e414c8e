"""What became of a batch: for people, for scripts, and as an exit status. Pure."""

import shlex
from itertools import groupby
from typing import Any

from cli.client.batchrun import BatchRun, first_error
from cli.client.pace import counts
from cli.console import ExitStatus

_STATUS_OF = {
    "failed": ExitStatus.BATCH_FAILED,
    "expired": ExitStatus.EXPIRED,
    "cancelled": ExitStatus.CANCELLED,
}
_ENDED = {"expired": "expired", "cancelled": "was cancelled"}
_MOST_ERRORS_SHOWN = 20


def exit_status(batch: dict[str, Any]) -> ExitStatus:
    """What the batch's end means for scripts."""
    status = str(batch["status"])
    if status in _STATUS_OF:
        return _STATUS_OF[status]
    total, completed, _ = counts(batch)
    return ExitStatus.OK if completed == total else ExitStatus.SOME_FAILED


def worst(statuses: list[ExitStatus]) -> ExitStatus:
    """The status of several: that a server failed before all, then the highest."""
    if ExitStatus.FAILED in statuses:
        return ExitStatus.FAILED
    return max(statuses, default=ExitStatus.OK)


def summary(job: BatchRun) -> str:
    """What became of a run, for people."""
    batch = job.batch
    lines = [end_of(batch, job.seconds, is_resumed=job.is_resumed)]
    if batch["status"] == "failed" and job.name not in {"", "stdin.jsonl"}:
        words = ["overnight", "validate", job.name]
        words += ["--endpoint", job.endpoint] if job.endpoint else []
        lines.append(f"What to do about each: {shlex.join(words)}")
    if batch.get("output_file_id"):
        lines.append(f"Results  {job.output}")
    if batch.get("error_file_id"):
        first = first_error(job.errors)
        lines.append(f"Errors   {job.errors}" + (f"\n         the first: {first}" if first else ""))
    return "\n".join(lines)


def end_of(batch: dict[str, Any], seconds: float = 0, *, is_resumed: bool = True) -> str:
    """How a batch ended, for people; `seconds` is how long it was followed."""
    if batch["status"] == "failed":
        return "\n".join(
            ["The batch failed its check; nothing was run.", *faults_of(batch, _MOST_ERRORS_SHOWN)]
        )
    total, completed, failed = counts(batch)
    status = str(batch["status"])
    how = f" The batch {_ENDED[status]}." if status in _ENDED else ""
    took = f", in {seconds:,.1f} s" if seconds else ""
    # Of a batch that was taken up half-way, the time says nothing.
    rate = f" ({total / seconds:,.0f}/s)" if seconds and not is_resumed else ""
    words = f"{completed:,} of {total:,} requests succeeded, {failed:,} failed{took}{rate}.{how}"
    usage = batch.get("usage") or {}
    if usage.get("total_tokens"):
        words += (
            f"\nTokens   {usage.get('input_tokens', 0):,} in, {usage.get('output_tokens', 0):,} out"
        )
    return words


def faults_of(batch: dict[str, Any], most: int) -> list[str]:
    """The faults for which a batch failed its check, a line for each run of the same; the first ones."""
    found = (batch.get("errors") or {}).get("data") or []
    runs = [list(run) for _, run in groupby(found, key=lambda each: each.get("message"))]
    lines = [f"  {_where(run)}{run[0].get('message')}" for run in runs[:most]]
    if left := sum(map(len, runs[most:])):
        lines.append(f"  … and {left:,} more.")
    return lines


def outcome(job: BatchRun) -> dict[str, Any]:
    """What became of a run, for scripts."""
    batch = job.batch
    return {
        "batch": batch,
        "output": str(job.output) if batch.get("output_file_id") and job.waits else None,
        "errors": str(job.errors) if batch.get("error_file_id") and job.waits else None,
        "seconds": round(job.seconds, 3),
    }


def _where(errors: list[dict[str, Any]]) -> str:
    first = errors[0].get("line")
    if not first:
        return ""
    more = f" and {len(errors) - 1:,} more after it" if len(errors) > 1 else ""
    return f"line {first:,}{more}: "
