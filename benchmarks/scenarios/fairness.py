"""Many batches at once: a small one behind a big one, and the same lines in 1, 10 and 100 batches."""

from pathlib import Path
from statistics import median

from benchmarks.batch import BatchClient, run_together
from benchmarks.inputs import write_input
from benchmarks.plan import Plan, Scenario
from benchmarks.processes import engine, upstream
from benchmarks.report import Measure, at_most
from benchmarks.scenarios.capacity import SERVER

BIG_LINES, SMALL_LINES = 50_000, 10
SMALL_BATCHES = 5
TOGETHER_LINES = 10_000
LINE_BYTES = 350


def small_behind_big(plan: Plan) -> list[Measure]:
    """On a server that is full, and on one that answers at once."""
    full = _small(plan, "full", *SERVER, big_lines=BIG_LINES)
    quick = _small(plan, "quick", big_lines=plan.lines(BIG_LINES, least=5_000))
    return [
        *_compared("64 slots of 200 ms, 429 above", *full),
        *_compared("no latency, all cores at work", *quick),
    ]


def _small(plan: Plan, name: str, *options: str, big_lines: int) -> tuple[float, float]:
    """Seconds that a small batch takes alone, and behind a big one that is running."""
    big, small = plan.folder / f"{name}-big.jsonl", plan.folder / f"{name}-small.jsonl"
    write_input(big, lines=big_lines, line_bytes=LINE_BYTES)
    write_input(small, lines=SMALL_LINES, line_bytes=LINE_BYTES, seed=2)
    with (
        upstream(*options) as server,
        engine(plan.folder / name, upstream_url=server.url, workers=plan.workers) as overnight,
        overnight.client() as client,
    ):
        # The first one finds processes that have not worked yet.
        _each_seconds(client, small, batches=1)
        alone = _each_seconds(client, small, batches=SMALL_BATCHES)
        batch = client.create(client.upload(big))
        client.wait_for_lines(batch, 1_000)
        behind: list[float] = []
        while len(behind) < SMALL_BATCHES:
            seconds = run_together(client, [small])
            client.look(batch)
            if batch.has_ended:
                break
            behind.append(seconds)
    if not behind:
        raise RuntimeError("The big batch was over before the first small one.")
    return alone, median(behind)


def _each_seconds(client: BatchClient, source: Path, *, batches: int) -> float:
    """The median over some batches, one after the other."""
    return median(run_together(client, [source]) for _ in range(batches))


def _compared(server: str, alone: float, behind: float) -> list[Measure]:
    return [
        Measure(f"{server}: alone", alone, "s", 2),
        Measure(f"{server}: behind", behind, "s", 2),
        Measure(f"{server}: times as long", behind / alone, "", 1, at_most(3)),
    ]


def at_once(plan: Plan) -> list[Measure]:
    """The same number of lines in 1, 10 and 100 batches."""
    lines = plan.lines(TOGETHER_LINES, least=1_000)
    measures = []
    with (
        upstream() as server,
        engine(plan.folder / "data", upstream_url=server.url, workers=plan.workers) as overnight,
        overnight.client() as client,
    ):
        for batches in (1, 10, 100):
            sources = []
            for number in range(batches):
                sources.append(plan.folder / f"{batches}-{number}.jsonl")
                write_input(sources[-1], lines=lines // batches, line_bytes=LINE_BYTES, seed=number)
            speed = lines / run_together(client, sources)
            name = f"{batches} batch{'es' if batches > 1 else ''} at once"
            measures.append(Measure(name, speed, "lines/s", 0))
    return measures


SCENARIOS = {
    "small": Scenario(
        "A small batch behind a big one",
        "Batches of 10 lines, one after the other, from create to completed: alone, and while a batch of"
        f" 50,000 lines is running. Medians of {SMALL_BATCHES}, or of as many as ended before the big one.",
        small_behind_big,
    ),
    "together": Scenario(
        "Many batches at once",
        "10,000 lines in all, against a model server that answers at once, from the first create to the"
        " last completed.",
        at_once,
    ),
}
