"""A TCP proxy before Postgres that can lose connections the way networks do: without a word.

A silent cut attaches a filter to the proxy's own socket that drops every packet before the kernel
acknowledges it. The other side sees neither data nor acknowledgement nor reset, as if a cable had
been pulled; no privilege is needed for that.
"""

import asyncio
import contextlib
import ctypes
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

_JOIN_SECONDS = 10
_SO_ATTACH_FILTER = 26
_BPF_RETURN = 0x06
_PIECE_BYTES = 65_536


@dataclass(eq=False)
class _Line:
    """One connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    is_cut: bool = False

    @property
    def port(self) -> int:
        """The client's own port, by which its process is known."""
        return int(self.client.get_extra_info("peername")[1])


class Proxy:
    """Forwards a TCP port to Postgres' socket, until it is told otherwise."""

    def __init__(self, target: Path) -> None:
        """Listen at once, on a free port."""
        self._target = target
        self._lines: set[_Line] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self.port = 0
        self._do(self._open())

    def refuse(self) -> None:
        """Reset every connection and refuse new ones, until `accept`."""
        self._do(self._close())
        self.reset()

    def accept(self) -> None:
        """Listen again, on the same port."""
        self._do(self._open())

    def reset(self) -> None:
        """Reset every connection."""
        self._do(self._each(_reset, None))

    def cut(self, process: psutil.Process | None = None) -> int:
        """Let every connection, or every one of a process, fall silent for ever; how many they were.

        New connections work.
        """
        ports = (
            None
            if process is None
            else {each.laddr.port for each in process.net_connections("tcp4")}
        )
        return self._do(self._each(_cut, ports))

    def close(self) -> None:
        """End it."""
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_JOIN_SECONDS)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, int]) -> int:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_JOIN_SECONDS)

    async def _open(self) -> int:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    async def _close(self) -> int:
        if self._server is not None:
            self._server.close()
            self._server = None
        return 0

    async def _each(self, act: Any, ports: set[int] | None) -> int:
        chosen = [line for line in self._lines if ports is None or line.port in ports]
        for line in chosen:
            act(line)
        return len(chosen)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_unix_connection(self._target)
        except OSError:
            writer.transport.abort()
            return
        line = _Line(writer, to_server)
        self._lines.add(line)
        line.tasks = [
            asyncio.create_task(_forward(reader, to_server)),
            asyncio.create_task(_forward(from_server, writer)),
        ]
        await asyncio.wait(line.tasks, return_when=asyncio.FIRST_COMPLETED)
        if not line.is_cut:
            _reset(line)
        self._lines.discard(line)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()


def _reset(line: _Line) -> None:
    for writer in (line.client, line.server):
        writer.transport.abort()
    for task in line.tasks:
        task.cancel()


def _cut(line: _Line) -> None:
    """Neither side hears of it: the client's packets are dropped, the server's session stays."""
    line.is_cut = True
    for task in line.tasks:
        task.cancel()
    # A program of one instruction: return 0, which is how many bytes of each packet to keep.
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(instruction))
    held: socket.socket = line.client.get_extra_info("socket")
    held.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
