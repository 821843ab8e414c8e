"""What is measured: each scenario starts from nothing, measures, and leaves nothing behind."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import processes
from benchmarks.batch import run_batch
from benchmarks.inputs import write_input
from benchmarks.machine import MemoryWatch

SMALL_LINE_BYTES = 350
LARGE_LINE_BYTES = 4_000
LARGE_REPLY_BYTES = 1_000
IN_FLIGHT = 128
"""Calls in flight a worker, which is its default; the bare loop gets as many as all workers."""


class Measure(NamedTuple):
    """One figure, how to show it, and what is asked of it."""

    name: str
    value: float
    unit: str
    digits: int = 1
    goal: str = ""
    is_worst: bool = False
    """Whether of several runs the largest value counts and not the median."""


class Plan(NamedTuple):
    """What a scenario is run with."""

    folder: Path
    lines: int
    workers: int


def chat(plan: Plan) -> list[Measure]:
    """Small chat lines against an upstream with no latency, beside the bare loop."""
    source = plan.folder / "small.jsonl"
    write_input(source, lines=plan.lines, line_bytes=SMALL_LINE_BYTES)
    with processes.upstream() as upstream:
        bare = processes.bare_loop(
            source,
            upstream.url,
            plan.folder / "bare.jsonl",
            in_flight=IN_FLIGHT * plan.workers,
        )["lines_per_second"]
    with processes.upstream() as upstream:
        data = plan.folder / "chat"
        with processes.engine(data, upstream_url=upstream.url, workers=plan.workers) as engine:
            timing = run_batch(engine, source)
        stats = upstream.stats()
    if stats["distinct_lines"] != plan.lines or stats["duplicates"]:
        raise RuntimeError(f"The model server saw something else than each line once: {stats}")
    speed = timing.lines_per_second
    size = f"{plan.lines:,} chat lines"
    return [
        Measure(f"{size}, create to completed", speed, "lines/s", 0, "≥ 1,500"),
        Measure(f"{size}, the bare loop", bare, "lines/s", 0),
        Measure(f"{size}, ratio to the bare loop", speed / bare, "", 2),
    ]


def large(plan: Plan) -> list[Measure]:
    """A file at the limit of size: throughput of each phase, and memory."""
    source, log = plan.folder / "large.jsonl", plan.folder / "calls.log"
    log.unlink(missing_ok=True)
    write_input(source, lines=plan.lines, line_bytes=LARGE_LINE_BYTES)
    options = ("--reply-bytes", str(LARGE_REPLY_BYTES), "--log", str(log))
    with processes.upstream(*options) as upstream:
        data = plan.folder / "large"
        with (
            processes.engine(data, upstream_url=upstream.url, workers=plan.workers) as engine,
            MemoryWatch(engine.process) as memory,
        ):
            timing = run_batch(engine, source)
    megabytes = timing.input_bytes / 1e6
    size = f"{megabytes:,.0f} MB, {plan.lines:,} lines"
    first_call = _first_call(log) - timing.created_at
    measures = [
        Measure(f"{size}: upload", megabytes / timing.upload_seconds, "MB/s", 0),
        Measure(f"{size}: validation", megabytes / timing.validate_seconds, "MB/s", 0, "≥ 50"),
        Measure(f"{size}: create to first call", first_call, "s", 2, "< 3"),
        Measure(f"{size}: create to completed", timing.lines_per_second, "lines/s", 0),
        Measure(f"{size}: finalizing", timing.finalize_seconds, "s", 2, "< 3"),
        Measure(
            f"{size}: download", timing.output_bytes / 1e6 / timing.download_seconds, "MB/s", 0
        ),
    ]
    peaks = memory.peaks_mb()
    for role in ("api", "run worker", "control worker", "beat"):
        goal = "" if role == "beat" else "< 200"
        for peak in peaks.get(role, [])[:1]:
            name = f"{size}: peak memory, {role}"
            measures.append(Measure(name, peak, "MB", 0, goal, is_worst=True))
    return measures


def start(plan: Plan) -> list[Measure]:
    """`overnight up` from an empty folder, and again on the same data."""
    data = plan.folder / f"start-{time.monotonic_ns()}"
    with processes.upstream() as upstream:
        seconds = []
        for _ in range(2):
            with processes.engine(data, upstream_url=upstream.url, workers=plan.workers) as engine:
                seconds.append(engine.ready_seconds)
    return [
        Measure("overnight up: empty folder to ready", seconds[0], "s", 2, "< 10"),
        Measure("overnight up: warm start to ready", seconds[1], "s", 2, "< 5"),
    ]


SCENARIOS: dict[str, Callable[[Plan], list[Measure]]] = {
    "start": start,
    "chat": chat,
    "large": large,
}


def summarize(runs: list[list[Measure]]) -> list[Measure]:
    """One list out of several runs of a scenario: medians, or the worst where that counts."""
    return [
        same[0]._replace(
            value=(max if same[0].is_worst else median)(measure.value for measure in same)
        )
        for same in zip(*runs, strict=True)
    ]


def _first_call(log: Path) -> float:
    """Unix time of the earliest call in the model server's log."""
    with log.open(encoding="utf-8") as lines:
        return min(float(line.partition("\t")[0]) for line in lines)
