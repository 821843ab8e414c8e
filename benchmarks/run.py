"""`make bench`: measure this machine, and write the table into docs/performance.md.

    python -m benchmarks.run [chat] [large] [start] [--lines N] [--repeat N] [--workers N] [--dry-run]

Promises: no process outlives it. Half a measurement is no measurement: the page is written only when
every scenario has been run, at its full size; otherwise the table is only printed.
"""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.scenarios import SCENARIOS, Measure, Plan, summarize

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
FULL_LINES = 50_000


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure Overnight on this machine.")
    parser.add_argument("scenarios", nargs="*", metavar="|".join(SCENARIOS), default=[])
    parser.add_argument("--lines", type=int, default=FULL_LINES, help="lines a file")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each; the median counts")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="run workers")
    parser.add_argument("--dry-run", action="store_true", help="print, but leave the page alone")
    chosen = parser.parse_args()
    names = list(dict.fromkeys(chosen.scenarios)) or list(SCENARIOS)
    if unknown := set(names) - set(SCENARIOS):
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}")

    # Python's own answer to SIGTERM is to die without leaving its blocks.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    measures: list[Measure] = []
    for name in names:
        runs = []
        for number in range(1, chosen.repeat + 1):
            print(f"{name}, run {number} of {chosen.repeat} …", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="overnight-bench-") as folder:
                plan = Plan(folder=Path(folder), lines=chosen.lines, workers=chosen.workers)
                runs.append(SCENARIOS[name](plan))
        measures += summarize(runs)

    section = render(measures, repeat=chosen.repeat, workers=chosen.workers)
    print(section)
    if chosen.dry_run or set(names) != set(SCENARIOS) or chosen.lines != FULL_LINES:
        print("Not written to the page: this was not the whole measurement.", file=sys.stderr)
    else:
        PAGE.write_text(replace_section(PAGE.read_text(encoding="utf-8"), section), "utf-8")


def render(measures: list[Measure], *, repeat: int, workers: int) -> str:
    """The table and what it was measured on, in Markdown."""
    rows = ["| measure | result | asked for |", "|---|---:|---:|"]
    for measure in measures:
        value = f"{measure.value:,.{measure.digits}f} {measure.unit}".strip()
        goal = f"{measure.goal} {measure.unit}".strip() if measure.goal else ""
        rows.append(f"| {measure.name} | {value} | {goal} |")
    times = "One run of each." if repeat == 1 else f"Median of {repeat} runs; memory: the largest."
    rows += ["", f"{times} Run workers: {workers}. {describe()}"]
    return "\n".join(rows)


def replace_section(page: str, section: str) -> str:
    """The page with the section between the two markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise RuntimeError(f"{PAGE} lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


if __name__ == "__main__":
    main()
