"""What can be done to the engine's own processes, and to their messages.

Each fault is a function of a trial: it creates the batch, brings it to its stage, does its worst,
and leaves nothing switched off. `tests/chaos/scenarios.toml` names them, with their options.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.chaos.system import LEASE_SECONDS, MAX_IN_FLIGHT, until
from tests.chaos.trial import Trial
from worker.queue import Doorbell

Fault = Callable[..., None]

# Longer than a process takes from SIGCONT to having called and written whatever it will.
_WAKING_SECONDS = 2.0


def kill(trial: Trial, *, process: str) -> None:
    """SIGKILL, at any moment of the stage."""
    trial.prepare()
    trial.reach()
    victim = trial.system.processes(process)[0]
    if process == "run":
        before = trial.kill_counting(victim)
        trial.heal()
        trial.time_takeover(before, dead=victim.pid)
        return
    trial.hit()
    if process == "control" and trial.rng.random() < 0.5:
        # One of its pool, which Celery replaces, instead of the whole.
        children = victim.children()
        victim = trial.rng.choice(children) if children else victim
    victim.kill()
    trial.heal()


def kill_again_and_again(trial: Trial, *, times: int) -> None:
    """SIGKILL of run workers, one after the other, some while they are still taking over."""
    trial.prepare()
    trial.reach()
    for _ in range(times):
        if trial.standing().has_ended:
            break
        victim, there = trial.system.processes("run")[0], _pids(trial, "run")
        before = trial.kill_counting(victim)
        trial.heal()
        if trial.rng.random() < 0.5:
            trial.time_takeover(before, dead=victim.pid)
        _await_replacement(trial, "run", there)


def terminate(trial: Trial, *, process: str) -> None:
    """SIGTERM, as a rolling restart sends it."""
    trial.prepare()
    trial.reach()
    trial.hit()
    trial.system.processes(process)[0].terminate()
    trial.heal()


def freeze(trial: Trial, *, process: str) -> None:
    """SIGSTOP for longer than a lease lasts, then SIGCONT: it wakes with results that came too late."""
    trial.prepare()
    trial.reach()
    victim = trial.system.processes(process)[0]
    family = [victim, *victim.children(recursive=True)]
    for each in family:
        each.suspend()
    try:
        time.sleep(0.05)
        before = trial.hit()
        if process == "run":
            trial.in_flight += trial.count_in_flight(victim, slots=MAX_IN_FLIGHT)
            trial.time_takeover(before, dead=victim.pid)
        time.sleep(LEASE_SECONDS + trial.rng.uniform(0.5, 1.5))
    finally:
        for each in family:
            each.resume()
    # What it does once awake belongs to this run, although others may have ended the batch by now.
    time.sleep(_WAKING_SECONDS)


def restart_all(trial: Trial) -> None:
    """SIGTERM to every process of the engine, one after the other, under load."""
    trial.prepare()
    trial.reach()
    trial.hit()
    system = trial.system
    for name in ("run", "run", "control", "beat", "api"):
        before = _pids(trial, name)
        system.processes(name)[0].terminate()
        _await_replacement(trial, name, before)
    trial.heal()


def _pids(trial: Trial, name: str) -> set[int]:
    return {each.pid for each in trial.system.processes(name)}


def _await_replacement(trial: Trial, name: str, before: set[int]) -> None:
    """Wait until there are as many processes of a name as there were, and one of them is new."""

    def is_replaced() -> bool:
        now = _pids(trial, name)
        return len(now) >= len(before) and bool(now - before)

    until(f"a new {name}", is_replaced, seconds=60)


def two_beats(trial: Trial) -> None:
    """A second beat beside the first."""
    environment = trial.system.environment()
    argv = [sys.executable, "-m", "cli.main", "beat"]
    beat = subprocess.Popen(
        argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        trial.prepare()
        trial.reach()
        trial.hit()
        trial.heal()
        trial.wait_for_end(seconds=60)
    finally:
        beat.send_signal(signal.SIGTERM)
        beat.wait(30)


def repeat_messages(trial: Trial) -> None:
    """Every message again and again, in any order and at every stage: they carry no more than a number."""
    trial.prepare()
    pk = trial.standing().pk
    with _ringing(trial, pk):
        trial.reach()
        trial.hit()
        trial.heal()
        trial.wait_for_end(seconds=60)


@contextmanager
def _ringing(trial: Trial, pk: int) -> Iterator[None]:
    bell = Doorbell(trial.system.environment()["OVERNIGHT_REDIS_URL"])
    is_over = threading.Event()
    rng = trial.rng
    rings: list[Callable[[], None]] = [
        lambda: bell.ring_validate(pk),
        lambda: bell.ring_finalize(pk),
        lambda: bell.ring_run(3),
        lambda: bell.ring_sweep(expires_seconds=60),
        bell.ring_notify,
    ]

    def ring() -> None:
        while not is_over.wait(rng.uniform(0, 0.03)):
            rng.choice(rings)()

    ringer = threading.Thread(target=ring)
    ringer.start()
    try:
        yield
    finally:
        is_over.set()
        ringer.join()
        bell.close()


def steal_messages(trial: Trial) -> None:
    """Most messages vanish from the queues before anybody reads them."""
    is_over = threading.Event()

    def steal() -> None:
        with trial.system.redis() as redis:
            while not is_over.is_set():
                if redis.rpop("control") is None and redis.rpop("run") is None:
                    is_over.wait(0.002)

    thieves = [threading.Thread(target=steal) for _ in range(2)]
    for thief in thieves:
        thief.start()
    try:
        trial.prepare()
        trial.hit()
        time.sleep(trial.rng.uniform(1, 3))
    finally:
        is_over.set()
        for thief in thieves:
            thief.join()
    trial.heal()


def step_database_clock(trial: Trial) -> None:
    """All leases of the batch lie an hour back at once, as after a step of the database's clock.

    A worker hears of it with its next write: what it begins before that counts as in flight.
    """
    trial.prepare()
    trial.reach()
    standing = trial.hit()
    statement = (
        "UPDATE {} SET lease_until = lease_until - interval '1 hour'"
        " WHERE {} = %s AND lease_until IS NOT NULL"
    )
    for table, column in (("shards", "batch_pk"), ("batches", "pk")):
        trial.connection.execute(statement.format(table, column).encode(), [standing.pk])
    trial.heal()
    trial.watch_in_flight(seconds=1)


def stop_and_start(trial: Trial) -> None:
    """Ctrl-C to the whole engine in the middle of the batch, and a new start."""
    trial.prepare()
    trial.reach()
    trial.hit()
    trial.system.stop()
    trial.connection.close()
    trial.heal()
    trial.system.start()
    trial.connection = trial.reconnect()


def kill_everything(trial: Trial) -> None:
    """SIGKILL to the supervisor, and with it to all, as when the machine loses power; a new start."""
    trial.prepare()
    trial.reach()
    trial.hit()
    workers = trial.system.processes("run")
    for each in workers:
        each.suspend()
    time.sleep(0.05)
    trial.in_flight += trial.count_in_flight()
    process = trial.system.engine.process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for each in workers:
        each.kill()
    trial.connection.close()
    trial.heal()
    trial.system.start()
    trial.connection = trial.reconnect()
