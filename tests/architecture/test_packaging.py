"""The wheel: what is in it, and that it works where nothing else of the repository is.

Its top-level names are general ones, so it must carry exactly those five and no tests.
"""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without asking any index."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    build = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stdout + build.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel in it.

    The wheel's requirements come from this test's own environment, by a .pth line, so that nothing
    is downloaded; what is in the new environment comes first.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "installer", wheel], check=True, capture_output=True)
    return folder / "bin"


def test_the_wheel_holds_the_five_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    version = wheel.name.split("-")[1]
    packages = {"api", "cli", "migrations", "models", "worker"}
    assert tops == packages | {f"overnight-{version}.dist-info"}


def test_the_wheel_carries_what_is_not_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "cli/examples/chat-1000.jsonl" in names
    assert "migrations/script.py.mako" in names
    assert "worker/flow/exchange.lua" in names
    page = REPOSITORY / "api" / "dashboard" / "static"
    parts = [path for path in page.rglob("*") if path.is_file()]
    assert len(parts) > 10
    for part in parts:
        assert str(part.relative_to(REPOSITORY)) in names
    for revision in (REPOSITORY / "migrations" / "versions").glob("*.py"):
        assert f"migrations/versions/{revision.name}" in names


def test_the_installed_command_runs_from_anywhere(installed: Path) -> None:
    shown = subprocess.run(
        [installed / "overnight", "--help"],
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    for command in ("up", "demo", "run", "simulate", "api", "worker", "beat", "migrate", "check"):
        assert command in shown.stdout


def test_the_installed_packages_are_the_wheels_own(installed: Path) -> None:
    program = "import api, cli, migrations, models, worker; print(cli.__file__, models.__file__)"
    shown = subprocess.run(
        [installed / "python", "-c", program], cwd="/", capture_output=True, text=True, check=True
    )
    for file in shown.stdout.split():
        assert Path(file).is_relative_to(installed.parent)
