"""Each failpoint stands at one place in the code, is walked by a test, and is off in what people run."""

import ast
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from models import failpoints
from models.failpoints import Failpoint, after_passing

REPOSITORY = Path(__file__).resolve().parents[2]


def passed_in(path: Path) -> Iterator[str]:
    """The names in `pass_failpoint(Failpoint.NAME)`; a call of another form is given as it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or "pass_failpoint" not in ast.unparse(node.func):
            continue
        said = ast.unparse(node.args[0])
        yield said.removeprefix("Failpoint.")


def test_every_failpoint_is_passed_at_one_place() -> None:
    found = Counter(
        name
        for package in ("api", "cli", "migrations", "models", "worker")
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        for name in passed_in(path)
    )
    assert found == Counter(Failpoint.__members__.keys())


def test_none_is_armed_here() -> None:
    assert failpoints._armed is None


def start(wish: str) -> subprocess.CompletedProcess[str]:
    """A process that was started with this wish and passes `claim.leased` twice."""
    program = (
        "from models.failpoints import Failpoint, pass_failpoint\n"
        "for number in 1, 2:\n"
        "    pass_failpoint(Failpoint.CLAIM_LEASED)\n"
        "    print(number, flush=True)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=os.environ | {"OVERNIGHT_FAILPOINT": wish},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_environment_arms_one() -> None:
    died = start("claim.leased:2")
    assert (died.returncode, died.stdout) == (-9, "1\n")
    assert died.stderr == "failpoint claim.leased: killed\n"


def test_what_is_no_failpoint_is_refused_at_the_start() -> None:
    refused = start("claim.lost")
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "'claim.lost' is not a valid Failpoint" in refused.stderr


def test_a_file_arms_one_death_after_the_other(tmp_path: Path) -> None:
    file = tmp_path / "failpoint"
    file.write_text("claim.leased:2\nclaim.leased\n")
    wish = f"@{file}"
    assert [start(wish).stdout for _ in range(3)] == ["1\n", "", "1\n2\n"]
    assert file.read_text() == ""


@pytest.mark.parametrize(
    ("wishes", "left", "is_last"),
    [
        ("", "", False),
        ("claim.leased", "", True),
        ("claim.leased:1", "", True),
        ("claim.leased:3", "claim.leased:2\n", False),
        ("claim.leased\nrun.answered", "run.answered", True),
        ("run.answered\nclaim.leased", "run.answered\nclaim.leased", False),
        ("claim.leasing", "claim.leasing", False),
    ],
)
def test_what_is_left_after_passing(wishes: str, left: str, *, is_last: bool) -> None:
    assert after_passing(wishes, Failpoint.CLAIM_LEASED) == (left, is_last)
