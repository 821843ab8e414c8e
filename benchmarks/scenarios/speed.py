"""How fast lines go through, beside loops that keep nothing and engines that do the same work."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from benchmarks.batch import BatchFailed
from benchmarks.inputs import write_input
from benchmarks.overnight import observe
from benchmarks.plan import Plan, Scenario
from benchmarks.processes import upstream
from benchmarks.report import Measure, at_least
from benchmarks.yardsticks.engines import aibrix, ogx, run_engine
from benchmarks.yardsticks.environments import NotAvailable
from benchmarks.yardsticks.loops import bare_loop, openai_loop
from benchmarks.yardsticks.outcome import Outcome

LINES, SLOW_LINES = 50_000, 1_000
"""For Overnight and the bare loop; for what does some 100 lines a second."""
LATENCY_LINES, LATENCY_SLOW_LINES = 20_000, 500
"""The same where calls take time."""
LINE_BYTES = 350
LATENCY = ("--latency", "0.2")
HEAVY_TAIL = (*LATENCY, "--latency-sigma", "1", "--seed", "1")


def no_latency(plan: Plan) -> list[Measure]:
    """Everything against a model server that answers at once."""
    source = _write(plan, "input.jsonl", LINES)
    bare = _loop(lambda url: bare_loop(source, url, in_flight=64))
    runs = {
        count: observe(plan.folder / f"workers-{count}", source, workers=count) for count in (1, 2)
    }
    ours = {
        count: run.outcome(f"Overnight, {count} run worker{'s' if count > 1 else ''}")
        for count, run in runs.items()
    }
    others, missing = _others(plan, (), SLOW_LINES, openai_in_flight=16)
    best = max(each.lines_per_second for each in ours.values())
    measures = [
        Measure(
            "Overnight beside the bare loop",
            best / bare.lines_per_second,
            "",
            2,
            at_least(0.5),
        ),
        *(_beside(each.name, best / each.lines_per_second) for each in others),
        Measure("create to first call", runs[2].first_call_seconds, "s", 2),
        Measure("last answer to completed", runs[2].last_call_seconds, "s", 2),
        Measure(
            "written by the database, a line",
            runs[2].written_bytes / runs[2].timing.lines,
            "bytes",
            0,
        ),
        *missing,
    ]
    for outcome in (bare, *ours.values(), *others):
        measures += outcome.measures()
    return measures + runs[2].by_process()


def latency(plan: Plan) -> list[Measure]:
    """Every call takes 200 ms, and any number of them at a time."""
    others, missing = _others(plan, LATENCY, LATENCY_SLOW_LINES, openai_in_flight=128)
    measures = _with_latency(plan, LATENCY, others)
    return [*(each._replace(target=None) for each in missing), *measures]


def heavy_tail(plan: Plan) -> list[Measure]:
    """Calls take 200 ms at the median, and one in a hundred 2 s and more."""
    return _with_latency(plan, HEAVY_TAIL)


def _with_latency(
    plan: Plan, options: tuple[str, ...], others: Sequence[Outcome] = ()
) -> list[Measure]:
    source = _write(plan, "input.jsonl", LATENCY_LINES)
    bare = _loop(lambda url: bare_loop(source, url, in_flight=512), *options)
    run = observe(plan.folder / "overnight", source, *options, workers=plan.workers)
    ours = run.outcome("Overnight")
    measures = [
        Measure(
            "Overnight beside the bare loop", ours.lines_per_second / bare.lines_per_second, "", 2
        ),
        Measure("most calls in flight that Overnight had", run.stats["peak_in_flight"], "", 0),
    ]
    for outcome in (bare, ours, *others):
        measures += outcome.measures()
    return measures


def _others(
    plan: Plan, options: tuple[str, ...], full_lines: int, *, openai_in_flight: int
) -> tuple[list[Outcome], list[Measure]]:
    """What the loops of the official client and the other engines take; and what had to be left out."""
    lines = plan.lines(full_lines, least=100)
    source = _write(plan, "slow.jsonl", full_lines)
    runs: list[tuple[str, Callable[[str], Outcome]]] = [
        (
            "AsyncOpenAI",
            lambda url: openai_loop(source, url, in_flight=openai_in_flight),
        ),
        (
            "AsyncOpenAI on aiohttp",
            lambda url: openai_loop(source, url, in_flight=128, use_aiohttp=True),
        ),
    ]
    for number, engine in enumerate((ogx(10), ogx(128), aibrix())):
        folder = plan.folder / f"engine-{number}"
        runs.append(
            (engine.name, lambda url, e=engine, f=folder: run_engine(e, f, url, lines=lines))  # type: ignore[misc]
        )
    outcomes, missing = [], []
    for name, run in runs:
        began = time.monotonic()
        try:
            outcomes.append(_loop(run, *options))
            print(f"  {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        except (NotAvailable, BatchFailed, RuntimeError, httpx.HTTPError) as reason:
            print(f"{name}: {reason}", file=sys.stderr)
            first_line = str(reason).partition("\n")[0]
            missing.append(_beside(name, None, first_line[:200]))
    return outcomes, missing


def _beside(name: str, times: float | None, reason: str = "") -> Measure:
    """How many times as fast as something else; of the other engines, much is asked."""
    target = at_least(30) if name.startswith(("OGX", "AIBrix")) else None
    return Measure(f"Overnight beside {name}", times, "times", 0, target, reason=reason)


def _loop(run: Callable[[str], Outcome], *options: str) -> Outcome:
    with upstream(*options) as server:
        return run(server.url)


def _write(plan: Plan, name: str, lines: int) -> Path:
    source = plan.folder / name
    write_input(source, lines=plan.lines(lines, least=100), line_bytes=LINE_BYTES)
    return source


SCENARIOS = {
    "zero": Scenario(
        "Lines a second",
        "50,000 chat lines of 350 bytes against a model server that answers at once, on the cores that the"
        " server shares: what the engine itself costs. Overnight's figures are from create to completed,"
        " with every result safe in Postgres; a loop's are from start to end, with nothing safe. What is"
        " slow is given 1,000 lines. The other engines execute the batch that their own batch API was"
        " given; the sizes of their pools are their defaults, or what the row names.",
        no_latency,
    ),
    "latency": Scenario(
        "Calls that take 200 ms",
        "20,000 lines (500 for what is slow) against a model server where each call takes 200 ms and that"
        " takes any number of them at a time. Overnight finds out itself how many to keep in flight, and"
        " begins with few; the bare loop has 512 from the start.",
        latency,
    ),
    "tail": Scenario(
        "Calls with a heavy tail",
        "20,000 lines against a model server whose calls take 200 ms at the median and vary by a log-normal"
        " distribution with sigma 1: one in a hundred takes 2 s and more.",
        heavy_tail,
    ),
}
