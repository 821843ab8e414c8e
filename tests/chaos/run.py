"""`make chaos`: random faults at random moments of a running engine, each run audited.

    python -m tests.chaos.run --runs 300 --lines 2000 --seed 7 --only kill_run_worker --processes 2

One line a run is printed, and one JSON record a run kept in build/chaos.jsonl. A violation ends with
status 1 and with the words that repeat its run.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from tests.chaos import ledger
from tests.chaos.auditor import audit
from tests.chaos.scenarios import Scenario, read_scenarios
from tests.chaos.system import System, running_system
from tests.chaos.trial import Trial

RECORD = Path("build/chaos.jsonl")
_DISK_BYTES = 400 * 1024 * 1024


@dataclass
class Record:
    """What a run showed."""

    scenario: str
    seed: int
    lines: int
    stage: str
    stage_hit: str = ""
    lost: int = 0
    doubled: int = 0
    duplicates: int = 0
    in_flight: int = 0
    takeover_seconds: float | None = None
    standstill_seconds: float = 0.0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


def run_trial(
    system: System, scenario: Scenario, *, seed: int, lines: int, stage: str | None = None
) -> Record:
    """One run of a scenario. Whatever goes wrong in it is a violation of the record."""
    rng = random.Random(f"{scenario.name} {seed}")
    stage = stage or rng.choice(scenario.stages)
    record = Record(scenario.name, seed, lines, stage)
    began = time.monotonic()
    trial: Trial | None = None
    try:
        system.settle()
        began = time.monotonic()
        system.upstream.forget()
        system.complaints.clear()
        trial = Trial(system, rng, lines, stage, system.connect())
        scenario.act(trial, **scenario.options)
        record.violations += ledger.count_disagreements(trial.connection, trial.batch_id)
        _finish(trial, scenario, record)
    # pytest's own failure is no Exception, and `wait_for` of the engine raises it.
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001  # it goes into the record
        record.violations.append(f"{type(error).__name__}: {error}"[:1000])
    finally:
        system.upstream.be_well()
        if trial is not None:
            record.stage_hit, record.takeover_seconds = trial.stage_hit, trial.takeover_seconds
            record.standstill_seconds = trial.standstill_seconds
            record.in_flight = trial.in_flight
            trial.connection.close()
    record.seconds = time.monotonic() - began
    return record


def _finish(trial: Trial, scenario: Scenario, record: Record) -> None:
    try:
        trial.wait_for_end(seconds=scenario.seconds)
    finally:
        findings = audit(trial.evidence(), scenario.promise(record.stage))
        record.lost, record.doubled = findings.lost, findings.doubled
        record.duplicates = findings.duplicates
        record.violations += [f"{each.kind}: {each.text}" for each in findings.violations]


class Systems:
    """Running engines, one of a kind, started when they are first needed and after they broke."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._folder = folder
        self._workers = workers
        self._running: dict[str, tuple[System, ExitStack]] = {}
        self._started = 0

    def get(self, kind: str) -> System:
        """A running engine of this kind; no other runs meanwhile, for they would starve each other."""
        for other in set(self._running) - {kind}:
            self.drop(other)
        if kind not in self._running:
            self._started += 1
            stack = ExitStack()
            folder = self._folder / f"{kind}-{self._started}"
            folder.mkdir(parents=True)
            if kind == "small_disk":
                stack.enter_context(small_disk(folder))
            system = stack.enter_context(running_system(kind, folder, workers=self._workers))
            self._running[kind] = system, stack
        return self._running[kind][0]

    def drop(self, kind: str) -> None:
        """Stop it."""
        system, stack = self._running.pop(kind)
        stack.close()
        shutil.rmtree(system.folder, ignore_errors=True)

    def close(self) -> None:
        """Stop them all."""
        for kind in list(self._running):
            self.drop(kind)


class small_disk:  # noqa: N801  # used as a word
    """A file system of a few hundred megabytes at a folder's `data`, which takes a privilege."""

    def __init__(self, folder: Path) -> None:
        self._place = folder / "data"

    def __enter__(self) -> None:
        """Mount it."""
        self._place.mkdir(mode=0o700)
        size = f"size={_DISK_BYTES}"
        argv = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self._place)]
        subprocess.run(argv, check=True, capture_output=True)

    def __exit__(self, *_: object) -> None:
        """Take it away."""
        subprocess.run(["umount", "-l", str(self._place)], check=False, capture_output=True)


def can_mount() -> bool:
    """Whether a disk of one's own can be had."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder)):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def deal(scenarios: list[Scenario], *, runs: int, seed: int) -> Iterator[tuple[Scenario, int]]:
    """Scenarios in random order, none much oftener than another; those of one system together."""
    rng = random.Random(seed)
    dealt = 0
    while dealt < runs:
        deck = [*scenarios]
        rng.shuffle(deck)
        # An engine takes long to start: one of a kind serves all of its scenarios of this deck.
        deck = deck[: runs - dealt]
        deck.sort(key=lambda each: each.system)
        for scenario in deck:
            dealt += 1
            yield scenario, seed + dealt - 1


def main() -> None:
    """Run, print, record."""
    options = _options()
    # As Ctrl-C: or the engine, which has a session of its own, would outlive this.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A shell may have what it starts in the background ignore Ctrl-C, and the engine would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Settings of whoever runs this are not the engine's.
    for name in [name for name in os.environ if name.startswith("OVERNIGHT_")]:
        del os.environ[name]
    chosen = [
        each
        for each in read_scenarios().values()
        if options.only is None or each.name in options.only.split(",")
    ]
    if not can_mount():
        print("(no privilege to mount a small disk: disk_full is left out)")
        chosen = [each for each in chosen if each.system != "small_disk"]
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    print(f"seed {seed}", flush=True)
    options.record.parent.mkdir(parents=True, exist_ok=True)
    broken = 0
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    systems = Systems(folder, options.processes)
    try:
        with options.record.open("a" if options.append else "w") as kept:
            for number, (scenario, own_seed) in enumerate(
                deal(chosen, runs=options.runs, seed=seed), start=1
            ):
                system = systems.get(scenario.system)
                record = run_trial(system, scenario, seed=own_seed, lines=options.lines)
                kept.write(json.dumps(asdict(record)) + "\n")
                kept.flush()
                print(f"{number:4d} {shown(record)}", flush=True)
                if record.violations:
                    broken += 1
                    _keep_logs(system, record)
                    systems.drop(scenario.system)
    finally:
        systems.close()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{options.runs} runs, {broken} with a violation")
    sys.exit(1 if broken else 0)


def shown(record: Record) -> str:
    """A record as a line; a violation, as more."""
    takeover = "-" if record.takeover_seconds is None else f"{record.takeover_seconds:.1f} s"
    text = (
        f"{record.scenario:26s} {record.stage_hit or record.stage:12s} lost {record.lost}"
        f" doubled {record.doubled} repeated {record.duplicates} (in flight {record.in_flight})"
        f" takeover {takeover}, standstill {record.standstill_seconds:.1f} s, {record.seconds:.1f} s"
    )
    for violation in record.violations:
        text += f"\n     VIOLATION {violation}"
    if record.violations:
        text += (
            f"\n     again: make chaos ONLY={record.scenario} RUNS=1 SEED={record.seed}"
            f" LINES={record.lines}"
        )
    return text


def _keep_logs(system: System, record: Record) -> None:
    """What the processes said, for whoever looks into it."""
    kept = RECORD.parent / "chaos-logs" / f"{record.scenario}-{record.seed}"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(system.engine.data_folder / "logs", kept, ignore_dangling_symlinks=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--only", help="names of scenarios, with commas")
    parser.add_argument("--processes", type=int, default=2, help="run workers")
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument(
        "--append", action="store_true", help="add to the records of an earlier run"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
