"""A model server with a prefix cache: what order the lines come in."""

import random

from benchmarks.inputs import write_input
from benchmarks.overnight import Observed, observe
from benchmarks.plan import Plan, Scenario
from benchmarks.report import Measure, at_least
from cli.simulator.words import invent_text

PROMPTS, KEPT = 50, 8
LINES = 10_000
PROMPT_BYTES, LINE_BYTES = 1_000, 1_400
SERVER = (
    *("--capacity", "64", "--over", "queue", "--latency", "0.05"),
    *("--prefix-cache", str(KEPT), "--prefix-miss-latency", "0.2"),
)


def prefix_cache(plan: Plan) -> list[Measure]:
    """Lines with many system prompts in turn, ordered and in file order."""
    rng = random.Random(1)
    prompts = [invent_text(rng, PROMPT_BYTES) for _ in range(PROMPTS)]
    source = plan.folder / "input.jsonl"
    lines = plan.lines(LINES, least=1_000)
    write_input(source, lines=lines, line_bytes=LINE_BYTES, instructions=prompts)

    def run(is_ordered: bool) -> Observed:
        name = "ordered" if is_ordered else "file-order"
        return observe(
            plan.folder / name,
            source,
            *SERVER,
            workers=plan.workers,
            OVERNIGHT_PREFIX_ORDER=str(is_ordered).lower(),
        )

    in_order, ordered = run(is_ordered=False), run(is_ordered=True)
    misses, fewer = in_order.stats["prefix_misses"], ordered.stats["prefix_misses"]
    return [
        Measure("cache misses, file order", misses, "", 0),
        Measure("cache misses, Overnight's order", fewer, "", 0),
        Measure("times fewer", misses / max(1, fewer), "", 1, at_least(5)),
        Measure("file order", in_order.timing.lines_per_second, "lines/s", 0),
        Measure("Overnight's order", ordered.timing.lines_per_second, "lines/s", 0),
    ]


SCENARIOS = {
    "prefix": Scenario(
        "A prefix cache",
        f"10,000 lines with {PROMPTS} system prompts in turn, against a model server that keeps the last"
        f" {KEPT} prefixes; a call takes 50 ms, a miss 200 ms more. With Overnight's order and with"
        " `OVERNIGHT_PREFIX_ORDER=false`.",
        prefix_cache,
    ),
}
