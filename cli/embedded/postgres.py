"""The embedded Postgres: the truth.

Promises: it keeps its durable settings (fsync, synchronous commit); a first start that was
interrupted can simply be repeated; one that a killed predecessor left behind is stopped first.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg

from cli.console import CommandError
from cli.datafolder import let_pass
from cli.embedded.wheels import (
    LEFT_OVER_SECONDS,
    POLL_SECONDS,
    STAGE,
    plain_environment,
    until_ready,
)
from cli.program import Program, SystemUser
from cli.supervisor import Supervisor

_NAME = "overnight"

_SETTINGS = {
    # Unix sockets only: file permissions decide who may connect.
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    # This is the truth: what was answered is on the disk.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # For a small machine that writes in bulk.
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "wal_compression": "on",
    "jit": "off",
    # A failing row or a statement may hold a prompt; the program that asked reports the error.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
    "logging_collector": "off",
}


@dataclass(frozen=True)
class Postgres:
    """The embedded Postgres: its data, its socket's folder, its programs, whom it runs as."""

    data: Path
    sockets: Path
    binaries: Path
    user: SystemUser | None
    connections: int

    @property
    def url(self) -> str:
        """Where it will answer."""
        return self._url(_NAME)

    async def start(self, supervisor: Supervisor) -> None:
        """Start it on its data, making them when they are new, and wait until it answers."""
        await asyncio.to_thread(_stop_left_over, self.data)
        _remove_stale_locks(self.data, self.sockets)
        if not self.data.exists():
            await self._make_data(supervisor)
        settings = {
            **_SETTINGS,
            "max_connections": str(self.connections),
            "unix_socket_directories": str(self.sockets),
        }
        child = supervisor.start(
            Program(
                name="postgres",
                argv=(
                    str(self.binaries / "postgres"),
                    "-D",
                    str(self.data),
                    *(part for item in settings.items() for part in ("-c", "=".join(item))),
                ),
                env=plain_environment(),
                stage=STAGE,
                # Postgres' "fast" shutdown; its "immediate" one in a hurry (safe, too: the next
                # start recovers from the log).
                stop_signal=signal.SIGINT,
                hurry_signal=signal.SIGQUIT,
                stop_seconds=30,
                death_signal=signal.SIGINT,
                user=self.user,
            )
        )
        await until_ready(lambda: _is_ready(self.data, child.pid), "Postgres")
        await asyncio.to_thread(_make_database, self._url("postgres"))

    async def _make_data(self, supervisor: Supervisor) -> None:
        """Make Postgres' folder aside and move it: it is whole or not there."""
        part = self.data.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        if self.user is not None:
            os.chown(part, self.user.uid, self.user.gid)
            let_pass(part, self.user)
        await supervisor.run_to_end(
            Program(
                name="initdb",
                argv=(
                    str(self.binaries / "initdb"),
                    f"--pgdata={part}",
                    f"--username={_NAME}",
                    # Who may connect is decided by the socket's folder.
                    "--auth=trust",
                    "--encoding=UTF8",
                    # The same order of strings on every machine.
                    "--locale-provider=builtin",
                    "--locale=C.UTF-8",
                    "--no-instructions",
                ),
                env=plain_environment(),
                stage=STAGE,
                user=self.user,
            )
        )
        part.rename(self.data)

    def _url(self, database: str) -> str:
        return url_of(self.sockets, database)


def url_of(sockets: Path, database: str = _NAME) -> str:
    """Where a server with its socket in this folder answers."""
    return f"postgresql://{_NAME}@/{database}?host={quote(str(sockets))}"


def _make_database(url: str) -> None:
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        found = connection.execute("SELECT FROM pg_database WHERE datname = %s", (_NAME,))
        if found.fetchone() is None:
            connection.execute(f"CREATE DATABASE {_NAME}")


def _is_ready(data: Path, pid: int | None) -> bool:
    lines = _read_pid_file(data)
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _read_pid_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []


def _stop_left_over(data: Path) -> None:
    """Stop a server whose supervisor was killed. (The folder's lock says that it has none.)"""
    lines = _read_pid_file(data)
    if not lines or not lines[0].strip().isdigit():
        return
    pid = int(lines[0])
    # The number may by now belong to some other program.
    if not _runs_from(pid, data):
        return
    for number, seconds in ((signal.SIGINT, LEFT_OVER_SECONDS), (signal.SIGQUIT, 10.0)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not _runs_from(pid, data):
                return
            time.sleep(POLL_SECONDS)
    message = (
        f"A Postgres of an earlier run (process {pid}) does not stop: end it, then start again."
    )
    raise CommandError(message)


def _remove_stale_locks(data: Path, sockets: Path) -> None:
    """Remove the lock files of a server that was killed, once it is sure that it is gone.

    After a restart of the container, some other program may well have the number that they name,
    and Postgres would believe that to be its predecessor.
    """
    processes = Path("/proc").glob("[0-9]*")
    if not Path("/proc/self").exists() or any(
        _runs_from(int(each.name), data) for each in processes
    ):
        return
    for lock in (data / "postmaster.pid", sockets / ".s.PGSQL.5432.lock"):
        lock.unlink(missing_ok=True)


def _runs_from(pid: int, data: Path) -> bool:
    """Whether this process is alive and works in this folder; Postgres makes it its current one."""
    try:
        return Path(f"/proc/{pid}/cwd").samefile(data)
    except OSError:
        if Path("/proc/self").exists():
            return False
    listed = subprocess.run(  # noqa: S603  # fixed words and a number
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return str(data) in listed.stdout
