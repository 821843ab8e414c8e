"""A program to supervise, and how its process is born.

Promises: on Linux no process outlives its supervisor, however that ends: the kernel sends
`death_signal` when the supervisor's main thread is gone. Each process leads a session of its own,
so that a terminal's Ctrl-C reaches only the supervisor, who orders the stop.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBRARY_FOLDERS = frozenset({"site-packages", "dist-packages"})
# Loaded before any fork: a child between fork and exec must not load libraries.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class SystemUser:
    """A user of the operating system that a program runs as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class Program:
    """What to run, and how it wants to be stopped. Secrets belong in `env`, never in `argv`."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    #: Lower stages are stopped, and gone, before higher ones are asked.
    stage: int = 0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10
    #: Sent instead when the person is in a hurry, or when `stop_seconds` are over.
    hurry_signal: signal.Signals = signal.SIGKILL
    #: Sent by the kernel when the supervisor itself dies.
    death_signal: signal.Signals = signal.SIGKILL
    user: SystemUser | None = None
    pass_fds: tuple[int, ...] = ()
    shows_warnings: bool = True


def spawn(program: Program) -> "subprocess.Popen[bytes]":
    """Start the program's process; its output comes through one pipe.

    Call it from the main thread only: the death signal is tied to the thread that forks.
    """
    user = program.user
    return subprocess.Popen(  # noqa: S603  # our own programs, no shell
        program.argv,
        env=dict(program.env),
        # Any folder that exists and says nothing: the person's own may hold a `models` or an `api`
        # that Python would find first, and must stay free to be removed.
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=program.pass_fds,
        user=None if user is None else user.uid,
        group=None if user is None else user.gid,
        extra_groups=None if user is None else [],
        # Runs after the change of user, which would clear the death signal.
        preexec_fn=_die_with_parent(program.death_signal, os.getpid()),  # noqa: PLW1509  # async-signal-safe: one system call
    )


def bind_to_parent(death_signal: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send this process `death_signal` when its parent dies (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)


def _die_with_parent(death_signal: signal.Signals, parent: int) -> Callable[[], None] | None:
    if _LIBC is None:
        return None

    def bind() -> None:
        bind_to_parent(death_signal)
        if os.getppid() != parent:
            # The supervisor died between the fork and the call above.
            os.kill(os.getpid(), signal.SIGKILL)

    return bind


def overnight(*arguments: str) -> tuple[str, ...]:
    """The argv that runs this very `overnight` with these arguments."""
    # -P: never look for packages in the current folder.
    return (sys.executable, "-P", "-m", "cli.main", *arguments)


def child_environment(**changes: str) -> dict[str, str]:
    """This process's environment with changes, such that a child finds the same code."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **changes}
    source = Path(__file__).resolve().parent.parent
    if source.name not in _LIBRARY_FOLDERS:
        # A clone that is not installed. (An installed package needs no help, and must not be put
        # before the standard library.)
        inherited = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{source}{os.pathsep}{inherited}" if inherited else str(source)
    return environment
