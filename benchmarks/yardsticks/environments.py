"""An environment of its own for each yardstick, under `.cache/bench`, made once and used again.

It is made anew when what it was made from has changed: the pinned versions, the Python, the place.
Made with uv where it works, else with venv and pip.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "bench"
_INSTALL_SECONDS = 900
_MADE_FROM = "made-from"


class NotAvailable(Exception):
    """This machine lacks what a yardstick needs, or it could not be installed; the message says why."""


def environment(name: str, *requirements: str, oldest: tuple[int, int] = (3, 11)) -> Path:
    """Make the environment, unless it is there, and return its folder of programs."""
    base = _python_at_least(oldest)
    home = CACHE / name
    note = home / _MADE_FROM
    made_from = "\n".join([base, str(home), *requirements])
    if not (note.exists() and note.read_text(encoding="utf-8") == made_from):
        print(f"  making {home} …", file=sys.stderr, flush=True)
        shutil.rmtree(home, ignore_errors=True)
        python = str(home / "bin" / "python")
        if shutil.which("uv") and _succeeds("uv", "--version"):
            _run("uv", "venv", "--quiet", "--python", base, str(home))
            _run("uv", "pip", "install", "--quiet", "--python", python, *requirements)
        else:
            _run(base, "-m", "venv", str(home))
            _run(python, "-m", "pip", "install", "--quiet", *requirements)
        note.write_text(made_from, encoding="utf-8")
    return home / "bin"


def _python_at_least(oldest: tuple[int, int]) -> str:
    check = f"import sys; raise SystemExit(sys.version_info < {oldest!r})"
    for candidate in _pythons():
        if _succeeds(candidate, "-c", check):
            return candidate
    message = f"no Python {oldest[0]}.{oldest[1]} or newer"
    raise NotAvailable(message)


def _pythons() -> Iterator[str]:
    """Interpreters that may be there, the one that runs this first."""
    yield sys.executable
    for name in ("python3.12", "python3.13", "python3.14"):
        if found := shutil.which(name):
            yield found
    # pyenv has versions that its shims do not offer until they are switched on.
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from (str(python) for python in sorted(pyenv.glob("versions/3.1*/bin/python3")))


def _succeeds(*command: str) -> bool:
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    return done.returncode == 0


def _run(*command: str) -> None:
    done = subprocess.run(
        command,
        # uv may use any interpreter that is there; it must not fetch one.
        env=os.environ | {"UV_PYTHON_DOWNLOADS": "never"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=_INSTALL_SECONDS,
    )
    if done.returncode:
        raise NotAvailable(f"it could not be installed: {done.stdout.strip()[-300:]}")
