"""An environment of its own for each client, under `.cache/clients`, made once and used again.

It is made anew when what it was made from has changed: the client's pinned version, the Python, the
place. Made with uv where it works, else with venv and pip; for Node with npm. Nothing is built from
a lock file, for such a file would name the addresses that one machine installs from.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.clients.catalogue import Client

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "clients"
_INSTALL_SECONDS = 900
_MADE_FROM = "made-from"


class NotAvailable(Exception):
    """This machine lacks what a client needs; the message says what."""


class InstallFailed(Exception):
    """A client could not be installed; the message is what the installer said."""


def prepared(client: Client) -> list[str]:
    """Make the client's environment, unless it is there, and return the command that runs it."""
    return _node(client) if client.is_node else _python(client)


def _python(client: Client) -> list[str]:
    base = _python_at_least(client.python)
    home = CACHE / client.name
    python = home / "bin" / "python"
    made_from = f"{base}\n{home}\n{client.requirements.read_text(encoding='utf-8')}"
    if not _is_made(home, made_from):
        shutil.rmtree(home, ignore_errors=True)
        requirements = str(client.requirements)
        if shutil.which("uv") and _succeeds("uv", "--version"):
            _run("uv", "venv", "--quiet", "--python", base, str(home))
            _run("uv", "pip", "install", "--quiet", "--python", str(python), "-r", requirements)
        else:
            _run(base, "-m", "venv", str(home))
            _run(str(python), "-m", "pip", "install", "--quiet", "-r", requirements)
        _note_made(home, made_from)
    return [str(python), str(client.program)]


def _node(client: Client) -> list[str]:
    for command in ("node", "npm"):
        if not (shutil.which(command) and _succeeds(command, "--version")):
            message = f"no {command}"
            raise NotAvailable(message)
    home = CACHE / client.name
    made_from = f"{home}\n{client.requirements.read_text(encoding='utf-8')}"
    if not _is_made(home, made_from):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        shutil.copy(client.requirements, home)
        _run("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", cwd=home)
        _note_made(home, made_from)
    # Node looks for packages from where a program stands.
    return ["node", str(shutil.copy(client.program, home / client.program.name))]


def _is_made(home: Path, made_from: str) -> bool:
    note = home / _MADE_FROM
    return note.exists() and note.read_text(encoding="utf-8") == made_from


def _note_made(home: Path, made_from: str) -> None:
    (home / _MADE_FROM).write_text(made_from, encoding="utf-8")


def _python_at_least(oldest: tuple[int, int]) -> str:
    for candidate in _pythons():
        check = f"import sys; raise SystemExit(sys.version_info < {oldest!r})"
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


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        # uv may use any interpreter that is there; it must not fetch one.
        env=os.environ | {"UV_PYTHON_DOWNLOADS": "never"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=_INSTALL_SECONDS,
    )
    if done.returncode:
        raise InstallFailed(done.stdout.strip())
