"""`overnight api`: the HTTP API, in one process.

Promises: SIGTERM lets the answers that were begun end (within ten seconds) and exits with 0.
"""

import signal
import socket
from typing import Annotated, Any

import typer
import uvicorn

from api.app import create_app
from api.protocol import HttpProtocol
from cli.processes.start import HandedDown, read_settings, start_logging, wait_at_gate

_GRACE_SECONDS = 10


class ApiServer(uvicorn.Server):
    """uvicorn, which would wait in vain for answers that have no end."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let streams of events end first."""
        app: Any = self.config.app
        app.state.watches.close()
        await super().shutdown(sockets)


def api(
    host: Annotated[
        str, typer.Option(envvar="OVERNIGHT_HOST", help="The address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="OVERNIGHT_PORT", min=0, max=65535, help="The port to listen on.")
    ] = 8080,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Log a line for every request.")
    ] = False,
    listen_fd: HandedDown = None,
    gate_fd: HandedDown = None,
) -> None:
    """Serve the HTTP API (one process; put several behind a load balancer as you like)."""
    level = start_logging()
    config = uvicorn.Config(
        read_settings(create_app),
        host=host,
        port=port,
        loop="uvloop",
        http=HttpProtocol,
        log_config=None,
        log_level=level,
        access_log=access_log,
        server_header=False,
        # X-Forwarded-* is believed only from FORWARDED_ALLOW_IPS (127.0.0.1 unless set).
        proxy_headers=True,
        # Longer than load balancers usually keep their side of an idle connection (60 s).
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = ApiServer(config)
    wait_at_gate(gate_fd)
    # `up` binds the port itself and hands it down: while the API restarts, callers wait in the
    # socket's queue and nobody is refused.
    sockets = None if listen_fd is None else [socket.socket(fileno=listen_fd)]
    # uvicorn ends by raising the signal again that stopped it; a stop that was asked for is no
    # failure, so the second one falls on deaf ears.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server.run(sockets=sockets)
    if not server.started:
        raise typer.Exit(1)
