"""Interactive users of the model server, with a batch beside them and without."""

import time

from benchmarks.inputs import write_input
from benchmarks.plan import Plan, Scenario
from benchmarks.processes import engine, traffic, upstream
from benchmarks.report import Measure, at_least, at_most
from benchmarks.scenarios.capacity import LINES_PER_SECOND, SERVER

LINES = 20_000
LINE_BYTES = 350
INTERACTIVE_SHARE = 0.3
SETTLE_SECONDS, MEASURE_SECONDS = 15, 25


def silent(plan: Plan) -> list[Measure]:
    """The server says nothing of its queue."""
    return _beside(plan)


def published(plan: Plan) -> list[Measure]:
    """The server publishes its queue."""
    return _beside(plan, "--metrics", "vllm")


def _beside(plan: Plan, *options: str) -> list[Measure]:
    source = plan.folder / "input.jsonl"
    write_input(source, lines=LINES, line_bytes=LINE_BYTES)
    settle, seconds = plan.seconds(SETTLE_SECONDS), plan.seconds(MEASURE_SECONDS)
    rate = INTERACTIVE_SHARE * LINES_PER_SECOND
    users = ("--interactive", "--rate", str(rate), "--connections", "1000")
    with (
        upstream(*SERVER, "--over", "queue", "--control", *options) as server,
        engine(plan.folder / "data", upstream_url=server.url, workers=plan.workers) as overnight,
        overnight.client() as client,
    ):
        url = f"{server.url}/chat/completions"
        with traffic(url, *users, "--warm-up", "2", "--seconds", str(seconds)) as calls:
            time.sleep(2 + seconds)
            alone = calls.finish()

        batch = client.create(client.upload(source))
        times = ("--warm-up", str(settle), "--seconds", str(seconds + 5))
        with traffic(url, *users, *times) as calls:
            time.sleep(settle + 1)
            server.reset_stats()
            began = time.monotonic()
            time.sleep(seconds)
            stats, lasted = server.stats(), time.monotonic() - began
            beside = calls.finish()
        client.look(batch)
        if batch.has_ended:
            raise RuntimeError("The batch was over before the measurement was.")
    left = lasted * LINES_PER_SECOND - stats["interactive"]["answered"]
    return [
        Measure("users' p99 latency, no batch", 1000 * alone["p99_seconds"], "ms", 0),
        Measure("users' p99 latency, beside the batch", 1000 * beside["p99_seconds"], "ms", 0),
        Measure(
            "ratio of the two", beside["p99_seconds"] / alone["p99_seconds"], "", 2, at_most(1.5)
        ),
        Measure(
            "share of what is left that the batch uses",
            100 * stats["other"]["answered"] / left,
            "%",
            0,
            at_least(80),
        ),
        Measure("most calls at the server", stats["peak_in_system"], "", 0, is_worst=True),
    ]


_ABOUT = (
    "Users' calls come at random moments, at 30 % of the capacity of a model server with 64 slots of"
    " 200 ms each that queues above, for 25 s without a batch and 25 s beside one that has run for 15 s."
    " Latency is what the users see; the server knows nothing of priorities."
)
SCENARIOS = {
    "users": Scenario(
        "Interactive users of the same server", f"{_ABOUT} Only latency tells of the queue.", silent
    ),
    "users-metrics": Scenario(
        "Interactive users of a server that publishes its queue",
        f"{_ABOUT} Its `/metrics` page is as vLLM's.",
        published,
    ),
}
