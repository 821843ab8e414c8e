"""The arrows between packages, as pyproject.toml draws them, and proof that they bite."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "cli", "migrations", "models", "worker")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of the packages in this folder."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_every_contract_is_kept() -> None:
    checked = lint_imports(REPOSITORY)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("worker/stray.py", "import api.app", "cli stands on api and worker"),
        ("api/stray.py", "import worker.app", "cli stands on api and worker"),
        ("models/stray.py", "import worker.queue", "cli stands on api and worker"),
        ("worker/stray.py", "import cli.main", "cli stands on api and worker"),
        ("models/lifecycle.py", "import sqlalchemy", "the lifecycle is pure"),
        ("models/stray.py", "import fastapi", "models know neither the web nor the queue"),
        ("worker/stray.py", "import fastapi", "the worker knows no web framework"),
        ("cli/stray.py", "import openai", "what runs needs nothing that is only here to test"),
    ],
)
def test_a_wrong_import_is_refused(tmp_path: Path, file: str, line: str, contract: str) -> None:
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=ignored)
    with (tmp_path / file).open("a", encoding="utf-8") as stray:
        stray.write(f"\n{line}\n")

    checked = lint_imports(tmp_path)

    assert checked.returncode != 0
    broken = [said for said in checked.stdout.splitlines() if "BROKEN" in said]
    assert any(said.startswith(contract) for said in broken), checked.stdout + checked.stderr


def test_nothing_is_imported_by_a_computed_name() -> None:
    """The contracts see only import statements. (The cli may import anything, so it may do it so.)"""
    hidden = [
        f"{path.relative_to(REPOSITORY)}: {line.strip()}"
        for package in PACKAGES
        if package != "cli"
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if "import_module(" in line or "__import__(" in line
    ]
    assert hidden == []
