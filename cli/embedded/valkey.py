"""The embedded Valkey: only the doorbell.

Promises: it keeps nothing on disk, and refuses rather than forgets while it runs.
"""

import asyncio
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from cli.embedded.wheels import (
    LEFT_OVER_SECONDS,
    POLL_SECONDS,
    STAGE,
    plain_environment,
    until_ready,
)
from cli.program import Program
from cli.supervisor import Supervisor


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
        await asyncio.to_thread(_stop_left_over, self._socket)
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
                env=plain_environment(),
                stage=STAGE,
                # It warns about kernel settings that matter only to those who keep data in it.
                shows_warnings=False,
            )
        )
        await until_ready(lambda: _answers(self._socket), "Valkey")

    @property
    def _socket(self) -> Path:
        return self.sockets / "valkey.sock"


def _answers(path: Path, command: bytes = b"PING\r\n") -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        try:
            connection.connect(str(path))
            connection.sendall(command)
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _stop_left_over(path: Path) -> None:
    deadline = time.monotonic() + LEFT_OVER_SECONDS
    while _answers(path) and time.monotonic() < deadline:
        _answers(path, b"SHUTDOWN NOSAVE\r\n")
        time.sleep(POLL_SECONDS)
    path.unlink(missing_ok=True)
