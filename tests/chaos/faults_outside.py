"""What can be done to what the engine stands on: Postgres, Redis, the network, the model server."""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
from alembic import command

from tests.chaos.proxy import Proxy
from tests.chaos.system import LEASE_SECONDS
from tests.chaos.trial import Trial
from tests.chaos.upstream import Manner
from tests.fixtures.database import migrations


def kill_postgres(trial: Trial, *, how: str) -> None:
    """End Postgres (`SIGKILL`, or its fast or immediate shutdown); `overnight up` starts it again."""
    trial.prepare()
    trial.reach()
    trial.hit()
    os.kill(_postmaster(trial).pid, getattr(signal, how))
    trial.heal()
    trial.connection.close()
    trial.connection = trial.reconnect()


def pause_postgres(trial: Trial, *, seconds: float) -> None:
    """Postgres stands still, and says nothing: SIGSTOP to all of its processes."""
    trial.prepare()
    trial.reach()
    trial.hit()
    postmaster = _postmaster(trial)
    family = [postmaster, *postmaster.children(recursive=True)]
    with _suspended(family):
        time.sleep(trial.rng.uniform(0.3, 1) * seconds)
    trial.heal()


def exhaust_connections(trial: Trial) -> None:
    """Somebody takes every connection that Postgres has, and the engine's own are ended."""
    trial.prepare()
    trial.reach()
    trial.hit()
    taken: list[psycopg.Connection[object]] = []
    try:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                taken.append(trial.system.connect())
        trial.connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'overnight-%'"
        )
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                taken.append(trial.system.connect())
        time.sleep(trial.rng.uniform(1, 3))
    finally:
        for each in taken:
            each.close()
    trial.heal()


def refuse_postgres(trial: Trial, *, seconds: float) -> None:
    """Nobody reaches Postgres for a while: connections are reset, and new ones refused."""
    proxy = _proxy(trial)
    trial.prepare()
    trial.reach()
    trial.hit()
    proxy.refuse()
    try:
        time.sleep(trial.rng.uniform(0.3, 1) * seconds)
    finally:
        proxy.accept()
    trial.heal()


def reset_connections(trial: Trial) -> None:
    """All connections to Postgres are reset, several times."""
    proxy = _proxy(trial)
    trial.prepare()
    trial.reach()
    trial.hit()
    for _ in range(trial.rng.randint(1, 5)):
        proxy.reset()
        time.sleep(trial.rng.uniform(0, 0.5))
    trial.heal()


def cut_silently(trial: Trial, *, process: str | None = None) -> None:
    """Connections to Postgres fall silent for ever, with no reset; new ones work.

    Whoever was cut off cannot know it at once: what it begins before it does counts as in flight.
    """
    proxy = _proxy(trial)
    trial.prepare()
    trial.reach()
    before = trial.hit()
    victim = trial.system.processes(process)[0] if process else None
    began = time.monotonic()
    proxy.cut(victim)
    trial.heal()
    trial.watch_in_flight(victim, seconds=LEASE_SECONDS)
    if victim is not None:
        trial.time_takeover(before, dead=victim.pid, since=began)


def upgrade(trial: Trial) -> None:
    """The engine comes to a database of the release before, in the middle of a batch, and upgrades it."""
    trial.prepare()
    trial.reach()
    trial.hit()
    system = trial.system
    system.stop()
    with _quiet_migrations():
        command.downgrade(migrations(system.database_url()), "-1")
    trial.heal()
    system.start()


@contextmanager
def _quiet_migrations() -> Iterator[None]:
    """Alembic tells each step in the log; here nobody asks."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def fill_disk(trial: Trial) -> None:
    """The disk under Postgres is full for a while. The data folder is a small one of its own."""
    trial.prepare()
    trial.reach()
    trial.hit()
    filler = trial.system.engine.data_folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 65_536)
        time.sleep(trial.rng.uniform(1, 4))
    finally:
        filler.unlink()
    trial.heal()
    trial.connection.close()
    trial.connection = trial.reconnect()


def kill_redis(trial: Trial) -> None:
    """SIGKILL; it comes back empty, for it keeps nothing."""
    _to_redis(trial, _valkey(trial).kill)


def stop_redis(trial: Trial) -> None:
    """SIGTERM; it comes back empty."""
    _to_redis(trial, _valkey(trial).terminate)


def flush_redis(trial: Trial) -> None:
    """All that is in it is gone, connections stay."""

    def flush() -> None:
        with trial.system.redis() as redis:
            redis.flushall()

    _to_redis(trial, flush)


def pause_redis(trial: Trial, *, seconds: float) -> None:
    """It stands still, and says nothing."""

    def pause() -> None:
        with _suspended(trial.system.processes("valkey")):
            time.sleep(seconds)

    _to_redis(trial, pause)


def redis_away_from_the_start(trial: Trial, *, seconds: float) -> None:
    """It is out of reach when the batch is created, and for a while after."""
    with _out_of_reach(trial.system.redis_socket, trial):
        trial.prepare()
        trial.hit()
        time.sleep(trial.rng.uniform(0.3, 1) * seconds)
    trial.heal()


def upset_upstream(
    trial: Trial, *, manner: str, share: tuple[float, float] = (0.3, 1.0), seconds: float = 3
) -> None:
    """The model server answers some or all calls in a bad manner, for a while."""
    upstream = trial.system.upstream
    trial.prepare()
    trial.reach()
    trial.hit()
    upstream.share = trial.rng.uniform(*share)
    upstream.manner = Manner(manner)
    time.sleep(trial.rng.uniform(0.3, 1) * seconds)
    upstream.be_well()
    trial.heal()


def stop_upstream(trial: Trial, *, seconds: float = 3) -> None:
    """The model server is gone for a while: connections are cut, and new ones refused."""
    upstream = trial.system.upstream
    trial.prepare()
    trial.reach()
    trial.hit()
    upstream.stop()
    try:
        time.sleep(trial.rng.uniform(0.3, 1) * seconds)
    finally:
        upstream.start()
    trial.heal()


def _to_redis(trial: Trial, act: Callable[[], None]) -> None:
    trial.prepare()
    trial.reach()
    trial.hit()
    act()
    trial.heal()


@contextmanager
def _out_of_reach(socket_path: Path, trial: Trial) -> Iterator[None]:
    """Nobody can connect, and all that were connected are cut off."""
    aside = socket_path.with_suffix(".aside")
    with trial.system.redis() as redis:
        # While there is a way in.
        redis.ping()
        socket_path.rename(aside)
        try:
            redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            yield
        finally:
            aside.rename(socket_path)


@contextmanager
def _suspended(processes: list[psutil.Process]) -> Iterator[None]:
    try:
        for each in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.suspend()
        yield
    finally:
        for each in reversed(processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.resume()


def _postmaster(trial: Trial) -> psutil.Process:
    return trial.system.processes("postgres")[0]


def _valkey(trial: Trial) -> psutil.Process:
    return trial.system.processes("valkey")[0]


def _proxy(trial: Trial) -> Proxy:
    assert trial.system.proxy is not None
    return trial.system.proxy
