"""Write `docs/reliability.md` from the records of `make chaos`: run it after a long run.

    python -m scripts.write_reliability build/chaos.jsonl

The sums of the records are kept in `docs/reliability.json`; a test compares the page with them, so
that no number on it is anybody's own.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.chaos.auditor import FINAL
from tests.chaos.scenarios import read_scenarios
from tests.chaos.system import LEASE_SECONDS

PATH = Path(__file__).parents[1] / "docs" / "reliability.md"
SUMS_PATH = PATH.with_suffix(".json")


@dataclass(frozen=True)
class Sums:
    """All runs of one scenario."""

    scenario: str
    runs: int
    late: int
    """Of them, how many's fault came when the batch had ended: audited, but they show little."""
    stages: dict[str, int]
    """How many hit the batch where."""
    lines: int
    violations: int
    lost: int
    doubled: int
    repeated: int
    """Most calls repeated in one run."""
    in_flight: int
    """Most calls in flight in one run when the fault hit."""
    median_seconds: float
    """To a dead worker's shards being somebody else's, where there is one; else of standstill."""
    max_seconds: float


_HEAD = """\
# Reliability

**Every input line has exactly one line in exactly one of the two files, whatever dies. Beyond deliberate
retries, a call to the model server is repeated only when the process that made it died, lost its lease, or
was stopped past its drain time, with the call in flight.** (A batch that is cancelled before it is
validated has no lines in either file: nothing was done of it.)

`make chaos` tries it: real processes, a fault at a random moment, and after each run an auditor that
compares the input, both files, the counters, `usage`, the rows of the database, and the list of calls
that a scripted model server keeps as a witness. A scenario's promise stands in
[`tests/chaos/scenarios.toml`](../tests/chaos/scenarios.toml) and may only be tightened; a part of it runs
with every `make test`. This page is written from the records by `scripts/write_reliability.py`.
"""

_TABLE = """\
## What survives what

{summary}

| what is done | runs, by where the batch stood | lost | doubled | most repeated | on after | longest |
|---|---|---|---|---|---|---|
{rows}

- **Repeated** calls are all that a line had beyond its first, whatever the first one's end. *In flight* are
  those that were begun and whose result was not yet in the database when the fault hit. A frozen worker
  may have begun calls that are made only when it wakes, so all of its 50 slots count beside the answers
  that it had not yet recorded; of one that was cut
  off, or whose leases were ended behind its back, what it began before it could know.
- **On after**, the median: from the fault's end until the last shard of a killed, frozen or cut-off run
  worker has another owner; elsewhere, the longest time in which nothing was recorded. (An expiring
  batch's calls take two seconds each.)
- Leases last {lease:g} seconds here, whatever the default is, and a sweep comes every half second; two run
  workers share two busy cores with everything else. A fast machine shows shorter times.
"""

_TAIL = """\
## How the runs were counted

Of the first 300 runs one broke its promise: of a frozen run worker 64 calls were repeated, where 56 had
been counted in flight. The count left out calls that such a worker had begun and not yet sent, where it
also held answers not yet recorded. The count was changed, and the runs of that scenario were made anew:
those are in the table, its earlier ones are not.

## What was not tried

- A step of a machine's clock as such: no library for it is at hand. Leases and windows go by the
  database's clock alone; that all of its leases are suddenly over is tried. If that clock steps *back*,
  the leases of a worker that dies then last longer by as much.
- A disk that loses what it has confirmed, or that changes it. Postgres' `fsync` stays on; checksums and
  copies are Postgres' business.
- Failing over to another Postgres. A standby that lost confirmed transactions loses what was in them.
- Old code on the new schema, by a program of the release before: tried is a database of the release before,
  in the middle of a batch, upgraded and gone on with.
- Several machines. A network between them is played by a proxy before Postgres that drops packets.
- Bodies of hundreds of megabytes: tried is one of four times the longest that is allowed.

## Backup and restore

Everything that matters is in Postgres; Redis needs no backup. `pg_dump` of a live system is a moment of it:

    pg_dump --format=custom --file=overnight.dump "$OVERNIGHT_DATABASE_URL"

Restored into an empty database, any Overnight of the same or a later version goes on from that moment:

    createdb overnight
    pg_restore --dbname="$OVERNIGHT_DATABASE_URL" overnight.dump
    overnight migrate

Batches that were running go on once the leases in the dump are over. Lines that were answered after the
dump are called again, for the database knows nothing of them. Make sure that the first system is
stopped, or both work on the same batches, each for itself. A
[test](../tests/chaos/test_chaos.py) does this in the middle of a batch and audits its end.
"""


def sum_up(records: Iterable[dict[str, Any]]) -> list[Sums]:
    """The records by scenario, in the order of the file of scenarios."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        runs.setdefault(record["scenario"], []).append(record)
    return [_sum(name, runs[name]) for name in read_scenarios() if name in runs]


def _sum(name: str, runs: list[dict[str, Any]]) -> Sums:
    seconds = [_seconds(each) for each in runs]
    stages = Counter(str(each["stage_hit"]) for each in runs)
    return Sums(
        scenario=name,
        runs=len(runs),
        late=sum(count for stage, count in stages.items() if stage in FINAL),
        stages={stage: stages[stage] for stage in sorted(stages)},
        lines=max(each["lines"] for each in runs),
        violations=sum(bool(each["violations"]) for each in runs),
        lost=sum(each["lost"] for each in runs),
        doubled=sum(each["doubled"] for each in runs),
        repeated=max(each["duplicates"] for each in runs),
        in_flight=max(each["in_flight"] for each in runs),
        median_seconds=round(median(seconds), 1),
        max_seconds=round(max(seconds), 1),
    )


def _seconds(record: dict[str, Any]) -> float:
    takeover = record["takeover_seconds"]
    return float(record["standstill_seconds"] if takeover is None else takeover)


def render(sums: list[Sums]) -> str:
    """The whole page."""
    runs, broken = sum(each.runs for each in sums), sum(each.violations for each in sums)
    lines = max(each.lines for each in sums)
    whose = "; ".join(read_scenarios()[each.scenario].does for each in sums if each.violations)
    found = (
        f"Runs that broke their promise: {broken} ({whose})."
        if broken
        else "No run broke its promise."
    )
    summary = (
        f"{runs} runs of {lines:,} lines, {len(sums)} scenarios: {sum(each.lost for each in sums)}"
        f" lines lost, {sum(each.doubled for each in sums)} doubled. {found}"
        f" In {sum(each.late for each in sums)} runs the batch had ended before the fault."
    )
    rows = "\n".join(_row(each) for each in sums)
    return "\n".join([_HEAD, _TABLE.format(summary=summary, rows=rows, lease=LEASE_SECONDS), _TAIL])


def _row(sums: Sums) -> str:
    scenario = read_scenarios()[sums.scenario]
    repeated = {
        "none": str(sums.repeated),
        "in flight": f"{sums.repeated} (up to {sums.in_flight} in flight)",
        "retries": f"{sums.repeated} deliberate retries",
    }[scenario.duplicates]
    return (
        f"| {scenario.does} | {_stood(sums)} | {sums.lost} | {sums.doubled} | {repeated} |"
        f" {sums.median_seconds:.1f} s | {sums.max_seconds:.1f} s |"
    )


def _stood(sums: Sums) -> str:
    return ", ".join(f"{stage.replace('_', ' ')} {count}" for stage, count in sums.stages.items())


def read_sums() -> list[Sums]:
    """What the page was written from."""
    return [Sums(**each) for each in json.loads(SUMS_PATH.read_text())]


def main() -> None:
    """Read records, write both files."""
    records = [
        json.loads(line) for path in sys.argv[1:] for line in Path(path).read_text().splitlines()
    ]
    SUMS_PATH.write_text(json.dumps([asdict(each) for each in sum_up(records)], indent=1) + "\n")
    PATH.write_text(render(read_sums()))


if __name__ == "__main__":
    main()
