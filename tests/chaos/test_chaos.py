"""A few scenarios of the suite, on one engine; `make chaos` runs them all, again and again."""

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import connect

from cli.embedded.wheels import postgres_binaries
from tests.chaos.auditor import Promise, audit
from tests.chaos.ledger import standing_of
from tests.chaos.run import run_trial, shown
from tests.chaos.scenarios import read_scenarios
from tests.chaos.system import System, running_system
from tests.chaos.trial import Trial

pytestmark = pytest.mark.timeout(240)

_LINES = 400
_SCENARIOS = read_scenarios()
_QUICK = [(name, stage) for name, each in _SCENARIOS.items() for stage in each.quick]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One engine for all of them: it is meant to outlive what they do to it."""
    with running_system("plain", tmp_path_factory.mktemp("chaos")) as running:
        yield running


@pytest.mark.parametrize(("name", "stage"), _QUICK)
def test_the_promise_holds(system: System, name: str, stage: str) -> None:
    record = run_trial(system, _SCENARIOS[name], seed=1, lines=_LINES, stage=stage)

    print(shown(record))
    assert record.violations == []


def test_a_backup_of_a_live_system_goes_on(system: System, tmp_path: Path) -> None:
    """`pg_dump` in the middle of a batch; restored elsewhere, another engine brings it to its end."""
    system.settle()
    system.upstream.forget()
    connection = system.connect()
    trial = Trial(system, random.Random(1), _LINES, "running", connection)
    trial.prepare()
    trial.reach_lines(0.2)
    dump = tmp_path / "overnight.dump"
    _run("pg_dump", "--format=custom", f"--file={dump}", f"--dbname={system.database_url()}")
    connection.execute("CREATE DATABASE restored")
    restored = system.database_url().replace("/overnight?", "/restored?")
    _run("pg_restore", f"--dbname={restored}", str(dump))
    trial.wait_for_end(seconds=60)
    connection.close()

    with connect(restored) as copied:
        assert 0 < standing_of(copied, trial.batch_id).recorded < _LINES
    with running_system(
        "plain", tmp_path, workers=1, upstream=system.upstream, database_url=restored
    ) as other:
        trial.system, trial.connection = other, other.connect()
        trial.wait_for_end(seconds=60)
        evidence = trial.evidence()
        trial.connection.close()

    # What the first engine called after the dump, the second could not know.
    assert audit(evidence, Promise(duplicates="retries")).violations == ()


def _run(program: str, *arguments: str) -> None:
    subprocess.run([str(postgres_binaries() / program), *arguments], check=True, timeout=60)
