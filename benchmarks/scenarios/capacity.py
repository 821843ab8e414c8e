"""A model server with K slots: how full it is kept, and how politely."""

import time

from benchmarks.batch import Batch
from benchmarks.inputs import write_input
from benchmarks.overnight import observe
from benchmarks.plan import Plan, Scenario
from benchmarks.processes import Upstream
from benchmarks.report import Measure, at_least, at_most, below

SLOTS, LATENCY_SECONDS = 64, 0.2
LINES, PUBLISHED_LINES = 50_000, 10_000
LINE_BYTES = 350
SETTLED_SECONDS = 10
SERVER = ("--capacity", str(SLOTS), "--latency", str(LATENCY_SECONDS))
LINES_PER_SECOND = SLOTS / LATENCY_SECONDS
"""All that such a server can do."""


def refusing(plan: Plan) -> list[Measure]:
    """Above its capacity the server answers 429."""
    source = plan.folder / "input.jsonl"
    write_input(source, lines=plan.lines(LINES, least=640), line_bytes=LINE_BYTES)
    run = observe(
        plan.folder / "refusing", source, *SERVER, "--over", "refuse", workers=plan.workers
    )
    share = run.timing.lines_per_second / LINES_PER_SECOND
    refused = run.stats["refused"] / run.stats["calls"]
    return [
        Measure(
            "share of the server's capacity, create to completed", 100 * share, "%", 1, at_least(95)
        ),
        Measure("calls refused", 100 * refused, "%", 2, below(2)),
        Measure("create to first call", run.first_call_seconds, "s", 2),
        Measure("last answer to completed", run.last_call_seconds - LATENCY_SECONDS, "s", 2),
    ]


def queueing(plan: Plan) -> list[Measure]:
    """Above its capacity the server queues, and says nothing."""
    return _queue(plan, LINES)


def queueing_in_public(plan: Plan) -> list[Measure]:
    """Above its capacity the server queues, and publishes the length of its queue."""
    return _queue(plan, PUBLISHED_LINES, "--metrics", "vllm")


def _queue(plan: Plan, lines: int, *options: str) -> list[Measure]:
    source = plan.folder / "input.jsonl"
    write_input(source, lines=plan.lines(lines, least=640), line_bytes=LINE_BYTES)

    def count_anew_once_settled(server: Upstream, _: Batch) -> None:
        time.sleep(SETTLED_SECONDS * min(1, plan.scale))
        server.reset_stats()

    run = observe(
        plan.folder / "queueing",
        source,
        *SERVER,
        *("--over", "queue", "--control"),
        *options,
        workers=plan.workers,
        during=count_anew_once_settled,
    )
    share = run.timing.lines_per_second / LINES_PER_SECOND
    return [
        Measure(
            "share of the server's capacity, create to completed", 100 * share, "%", 1, at_least(95)
        ),
        Measure(
            "most calls at the server, once settled",
            run.stats["peak_in_system"],
            "",
            0,
            at_most(2 * SLOTS),
            is_worst=True,
        ),
    ]


SCENARIOS = {
    "refusing": Scenario(
        "A server that refuses",
        f"{LINES:,} lines against a model server with {SLOTS} slots of 200 ms each"
        f" ({LINES_PER_SECOND:.0f} calls a second) that answers 429 above. Nothing is tuned, and nothing"
        " known of the server at the start.",
        refusing,
    ),
    "queueing": Scenario(
        "A server that queues",
        "The same, but above its capacity the server queues and never refuses: only the rising latency"
        f" tells. Settled: {SETTLED_SECONDS} s after the batch was created.",
        queueing,
    ),
    "metrics": Scenario(
        "A server that publishes its queue",
        "The same with 10,000 lines, and the server has a `/metrics` page as vLLM has.",
        queueing_in_public,
    ),
}
