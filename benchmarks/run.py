"""`make bench`: measure this machine, and write the tables into docs/performance.md.

    python -m benchmarks.run [NAME ...] [--repeat N] [--workers N] [--scale F] [--dry-run] [--resume]

Promises: no process outlives it. Half a measurement is no measurement: the page is written only when
every scenario has been run at its full size; otherwise the tables are only printed. What was measured is
kept in build/bench.json after each scenario; `--resume` goes on from there.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.plan import Plan, Scenario
from benchmarks.report import Measure, Result, render_score, render_subject, summarize
from benchmarks.scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
KEPT = ROOT / "build" / "bench.json"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure Overnight on this machine.")
    parser.add_argument("scenarios", nargs="*", metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--repeat", type=int, default=1, help="runs of each; the median counts")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="run workers")
    parser.add_argument("--scale", type=float, default=1, help="size of all, to try things out")
    parser.add_argument("--dry-run", action="store_true", help="print, but leave the page alone")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier run measured")
    chosen = parser.parse_args()
    names = list(dict.fromkeys(chosen.scenarios)) or list(SCENARIOS)
    if unknown := set(names) - set(SCENARIOS):
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}")

    # Python's own answer to SIGTERM is to die without leaving its blocks.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    setting = {"repeat": chosen.repeat, "workers": chosen.workers, "scale": chosen.scale}
    kept = _read_kept(setting) if chosen.resume else {}
    for name in names:
        if name not in kept and (results := _measure(name, SCENARIOS[name], **setting)):
            kept[name] = results
            _keep(setting, kept)

    measured = {name: kept[name] for name in SCENARIOS if name in kept}
    section = render(measured, repeat=chosen.repeat, workers=chosen.workers)
    print(section)
    if failed := [name for name in names if name not in measured]:
        print(f"Failed: {', '.join(failed)}.", file=sys.stderr)
    if chosen.dry_run or set(measured) != set(SCENARIOS) or chosen.scale != 1:
        print("Not written to the page: this was not the whole measurement.", file=sys.stderr)
    else:
        PAGE.write_text(replace_section(PAGE.read_text(encoding="utf-8"), section), "utf-8")
    sys.exit(1 if failed else 0)


def _measure(
    name: str, scenario: Scenario, *, repeat: int, workers: int, scale: float
) -> list[Result]:
    """Its results; empty if no run of it went through."""
    runs: list[list[Measure]] = []
    for number in range(1, repeat + 1):
        print(f"{name}, run {number} of {repeat} …", file=sys.stderr, flush=True)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="overnight-bench-") as folder:
            try:
                runs.append(
                    scenario.measure(Plan(folder=Path(folder), scale=scale, workers=workers))
                )
            except Exception:  # noqa: BLE001 - one that fails must not cost the hour before it
                traceback.print_exc()
        print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return summarize(runs)


def render(
    measured: dict[str, list[Result]], *, repeat: int, workers: int, machine: str | None = None
) -> str:
    """The section of the page, in Markdown."""
    times = "One run of each." if repeat == 1 else f"Medians of {repeat} runs; memory: the largest."
    subjects = [(SCENARIOS[name], results) for name, results in measured.items()]
    return "\n\n".join(
        [
            f"{times} Run workers: {workers}, where nothing else is said. {machine or describe()}",
            render_score((scenario.title, results) for scenario, results in subjects),
            *(
                render_subject(scenario.title, scenario.about, results)
                for scenario, results in subjects
            ),
        ]
    )


def replace_section(page: str, section: str) -> str:
    """The page with the section between the two markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise RuntimeError(f"{PAGE} lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def _keep(setting: dict[str, Any], kept: dict[str, list[Result]]) -> None:
    KEPT.parent.mkdir(exist_ok=True)
    results = {name: [each.as_json() for each in some] for name, some in kept.items()}
    KEPT.write_text(json.dumps({"setting": setting, "results": results}, indent=1), "utf-8")


def _read_kept(setting: dict[str, Any]) -> dict[str, list[Result]]:
    if not KEPT.exists():
        return {}
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    if kept["setting"] != setting:
        sys.exit(f"{KEPT} was measured with {kept['setting']}")
    return {
        name: [Result.from_json(each) for each in some]
        for name, some in kept["results"].items()
        if name in SCENARIOS
    }


if __name__ == "__main__":
    main()
