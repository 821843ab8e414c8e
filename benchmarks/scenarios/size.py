"""Whether size matters: cost a line from 1,000 to 200,000 lines, and a file at the limit of size."""

from pathlib import Path

from benchmarks.batch import run_together
from benchmarks.inputs import write_input
from benchmarks.machine import Watch
from benchmarks.overnight import observe
from benchmarks.plan import Plan, Scenario
from benchmarks.processes import engine, upstream
from benchmarks.report import Measure, at_least, at_most, below

LINE_BYTES = 350
BATCH_LINES = 50_000
SIZES = ((1_000, 10), (10_000, 3), (50_000, 1), (200_000, 1))
"""Lines in all, and how many times: a short run alone would be told in too few ticks of the clock."""
LOOK_SECONDS = 0.1
"""Each look at a short batch costs the API as much as several lines do."""
LARGE_LINES, LARGE_LINE_BYTES, LARGE_REPLY_BYTES = 50_000, 4_000, 1_000


def flat_cost(plan: Plan) -> list[Measure]:
    """One engine takes ever more lines."""
    measures, costs = [], []
    with (
        upstream() as server,
        engine(plan.folder / "data", upstream_url=server.url, workers=plan.workers) as overnight,
        overnight.client() as client,
    ):
        # Processes that have worked before.
        run_together(client, _write(plan, 1_000))
        for full, times in SIZES:
            sources = _write(plan, full)
            lines = plan.lines(min(full, BATCH_LINES)) * len(sources)
            with Watch(overnight.process) as watch:
                seconds = sum(
                    run_together(client, sources, look_seconds=LOOK_SECONDS) for _ in range(times)
                )
            costs.append(1000 * sum(watch.cpu_seconds().values()) / lines / times)
            name = f"{full:,} lines"
            measures += [
                Measure(name, lines * times / seconds, "", 0, column="lines/s"),
                Measure(name, costs[-1], "", 3, column="CPU ms a line"),
            ]
            measures += [
                Measure(name, 1000 * spent / lines / times, "", 3, column=role)
                for role, spent in sorted(watch.cpu_seconds().items())
                if role not in ("up", "beat")
            ]
    spread = max(costs) / min(costs) - 1
    return [
        Measure("dearest line above the cheapest", 100 * spread, "%", 0, at_most(15)),
        *measures,
    ]


def _write(plan: Plan, lines: int) -> list[Path]:
    """As many inputs as it takes; no batch has more than 50,000 lines."""
    sources = []
    for number in range(max(1, lines // BATCH_LINES)):
        sources.append(plan.folder / f"{lines}-{number}.jsonl")
        write_input(
            sources[-1],
            lines=plan.lines(min(lines, BATCH_LINES)),
            line_bytes=LINE_BYTES,
            seed=number,
        )
    return sources


def large(plan: Plan) -> list[Measure]:
    """A file at the limit of size: throughput of each phase, and memory."""
    source = plan.folder / "large.jsonl"
    write_input(source, lines=plan.lines(LARGE_LINES), line_bytes=LARGE_LINE_BYTES)
    run = observe(
        plan.folder / "large",
        source,
        *("--reply-bytes", str(LARGE_REPLY_BYTES)),
        workers=plan.workers,
    )
    timing = run.timing
    megabytes = timing.input_bytes / 1e6
    download = timing.output_bytes / 1e6 / timing.download_seconds
    return [
        Measure("upload", megabytes / timing.upload_seconds, "MB/s", 0),
        Measure("validation", megabytes / timing.validate_seconds, "MB/s", 0, at_least(50)),
        Measure("create to first call", run.first_call_seconds, "s", 2, below(3)),
        Measure("create to completed", timing.lines_per_second, "lines/s", 0),
        Measure("finalizing", timing.finalize_seconds, "s", 2, below(3)),
        Measure("download", download, "MB/s", 0),
        Measure("written by the database, a line", run.written_bytes / timing.lines, "bytes", 0),
        *run.by_process(below(200)),
    ]


SCENARIOS = {
    "flat": Scenario(
        "Cost a line from 1,000 to 200,000 lines",
        "Against a model server that answers at once, in one engine, one size after the other; 200,000 are"
        " four batches of 50,000 at once. CPU is that of all processes of Overnight, then by process.",
        flat_cost,
    ),
    "large": Scenario(
        "200 MB",
        "50,000 lines of 4,000 bytes, answered at once with 1,000 bytes of text each.",
        large,
    ),
}
