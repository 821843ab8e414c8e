"""Everything of Overnight on one machine, supervised: what `up` and `demo` stand on.

Promises: inside the block the API answers and work moves; after it everything is stopped, in order
(API, workers, beat, then Postgres and Valkey), and no process is left. The data folder is locked
and the port is taken before anything is started.
"""

import asyncio
import errno
import http.client
import importlib
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

from cli.console import CommandError, Terminal, UsageError
from cli.datafolder import DataFolder
from cli.embedded.plan import plan_servers
from cli.embedded.postgres import Postgres
from cli.embedded.valkey import Valkey
from cli.processes.workers import Only, worker_program
from cli.program import Program, child_environment, overnight
from cli.revision import current_revision, newest_revision
from cli.stopping import StopSignals
from cli.supervisor import Supervisor

_READY_SECONDS = 60.0
_POLL_SECONDS = 0.05
# Longer than the API's own grace period; a test keeps it so.
_API_STOP_SECONDS = 15.0
# Stopped in this order; the servers' own stage is the last.
_API_STAGE, _WORKER_STAGE, _BEAT_STAGE = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What to start, and where."""

    host: str
    port: int
    data_folder: Path
    #: The one model server; none if there is a file of them.
    upstream_url: str | None
    #: The file of model servers; it wins.
    config: Path | None = None
    workers: int = 1
    database_url: str | None = None
    redis_url: str | None = None
    #: Called once the data folder is this process's own.
    on_locked: Callable[[], None] = lambda: None
    #: Said once nothing stands in the way of a start.
    greeting: str = "Starting Overnight …"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A running Overnight."""

    base_url: str
    api_key: str
    #: Where the key is kept; none when OVERNIGHT_API_KEY gave it.
    key_file: Path | None
    data_folder: Path
    logs: Path


@asynccontextmanager
async def running_engine(
    options: EngineOptions, *, terminal: Terminal, signals: StopSignals
) -> AsyncGenerator[Engine]:
    """Start everything, wait until it is ready, run the block, stop everything."""
    with closing(DataFolder.open(options.data_folder)) as folder:
        options.on_locked()
        postgres, valkey = plan_servers(
            folder,
            database_url=options.database_url,
            redis_url=options.redis_url,
            workers=options.workers,
        )
        async with Supervisor(terminal=terminal, logs=folder.logs) as supervisor:
            signals.hurries(supervisor.hurry)
            # Closed first when the block ends: callers are then refused and not kept waiting.
            with closing(_listen(options.host, options.port)) as listener, ExitStack() as gate:
                terminal.say(options.greeting)
                given_key = os.environ.get("OVERNIGHT_API_KEY", "").strip()
                api_key = given_key or folder.api_key()
                database_url = options.database_url or (postgres.url if postgres else "")
                environment = child_environment(
                    OVERNIGHT_DATABASE_URL=database_url,
                    OVERNIGHT_REDIS_URL=options.redis_url or (valkey.url if valkey else ""),
                    OVERNIGHT_API_KEY=api_key,
                    # An empty one counts as not set.
                    OVERNIGHT_UPSTREAM_URL=options.upstream_url or "",
                    OVERNIGHT_CONFIG=str(options.config or ""),
                    # The API tells what all of them count.
                    OVERNIGHT_METRICS_FOLDER=str(folder.empty_metrics()),
                    OVERNIGHT_METRICS_PORT="",
                )
                gate_fd, gate_held = os.pipe()
                gate.callback(os.close, gate_fd)
                holding = gate.enter_context(closing(os.fdopen(gate_held, "wb")))
                _start_processes(supervisor, options, environment, listener.fileno(), gate_fd)
                await _prepare(supervisor, postgres, valkey, database_url)
                holding.close()
                address = listener.getsockname()
                await _until_ready(address[0], address[1], folder.logs)
                # Last, because a start is short of processor time, and the sweep that beat rings
                # finds nothing to do before something was begun and missed.
                supervisor.start(
                    Program(name="beat", argv=overnight("beat"), env=environment, stage=_BEAT_STAGE)
                )
                yield Engine(
                    base_url=f"http://{_shown(address[0])}:{address[1]}/v1",
                    api_key=api_key.split(",")[0].strip(),
                    key_file=None if given_key else folder.key_file,
                    data_folder=folder.path,
                    logs=folder.logs,
                )


async def _prepare(
    supervisor: Supervisor, postgres: Postgres | None, valkey: Valkey | None, database_url: str
) -> None:
    """Start the servers and bring the database to this version's schema."""
    try:
        async with asyncio.TaskGroup() as starts:
            servers = [
                starts.create_task(each.start(supervisor)) for each in (postgres, valkey) if each
            ]
            starts.create_task(_migrate(database_url, after=servers[:1] if postgres else []))
    except ExceptionGroup as group:
        first: Exception = group
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from None


async def _migrate(database_url: str, *, after: "list[asyncio.Task[None]]") -> None:
    needed = asyncio.create_task(asyncio.to_thread(newest_revision))
    await asyncio.gather(*after)
    if await asyncio.to_thread(current_revision, database_url) == await needed:
        return
    # Imported only when there is something to do: Alembic and SQLAlchemy take a second or two.
    module = await asyncio.to_thread(importlib.import_module, "cli.migrate")
    await asyncio.to_thread(module.upgrade, database_url)


def _start_processes(
    supervisor: Supervisor,
    options: EngineOptions,
    environment: Mapping[str, str],
    listen_fd: int,
    gate_fd: int,
) -> None:
    """Start API and workers; each waits at the gate when it has read its code."""
    gate = ("--gate-fd", str(gate_fd))
    supervisor.start(
        Program(
            name="api",
            argv=overnight("api", "--listen-fd", str(listen_fd), *gate),
            env=environment,
            stage=_API_STAGE,
            stop_seconds=_API_STOP_SECONDS,
            pass_fds=(listen_fd, gate_fd),
        )
    )
    names = ["run"] if options.workers == 1 else [f"run-{n + 1}" for n in range(options.workers)]
    for name, only in [*((name, Only.RUN) for name in names), ("control", Only.CONTROL)]:
        supervisor.start(
            worker_program(only, name=name, env=environment, stage=_WORKER_STAGE, gate_fd=gate_fd)
        )


def _listen(host: str, port: int) -> socket.socket:
    """Take the port; say clearly when somebody else has it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(
            f"There is no address {host} to listen on: try --host 127.0.0.1."
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            message = (
                f"Port {port} of {host} is taken, perhaps by another Overnight (llama.cpp's server"
                f" likes 8080, too): try --port {port + 1}, or --port 0 for any free one."
            )
            raise CommandError(message) from error
        message = (
            f"Cannot listen on {host} port {port} ({error.strerror}): try another --host or --port."
        )
        raise UsageError(message) from error
    return listener


async def _until_ready(host: str, port: int, logs: Path) -> None:
    """Wait until `/readyz` says that database, broker and a worker answer."""
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        status, words = await asyncio.to_thread(_ask_readyz, _shown(host), port)
        if status == http.HTTPStatus.OK:
            return
        if time.monotonic() > deadline:
            message = f"Not ready after {_READY_SECONDS:.0f} s ({words}). The logs say more: {logs}"
            raise CommandError(message)
        await asyncio.sleep(_POLL_SECONDS)


def _ask_readyz(host: str, port: int) -> tuple[int, str]:
    # The standard library's client: importing httpx would cost more than the whole wait.
    connection = http.client.HTTPConnection(host.strip("[]"), port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status, answer.read(500).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return 0, f"the API does not answer: {error!r}"
    finally:
        connection.close()


def _shown(host: str) -> str:
    """The host as a client on this machine writes it."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"[{here}]" if ":" in here else here
