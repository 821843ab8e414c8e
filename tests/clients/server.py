"""`overnight up` for the clients: its own defaults, a temporary folder, a simulated model server."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cli.simulator.hosting import simulated_server

REPOSITORY = Path(__file__).resolve().parents[2]
KEY = "sk-clients-0123456789"
# A line with these words in it is refused by the model server.
REFUSED = "refuse this line"
# Long enough that a batch of a thousand lines can be cancelled before it ends.
_LATENCY_SECONDS = 0.1
_READY_SECONDS = 120
_STOP_SECONDS = 60


@dataclass(frozen=True)
class Running:
    """Where it is."""

    base_url: str
    log: Path


@contextmanager
def running_overnight() -> Iterator[Running]:
    """Overnight for as long as the block runs; nothing is left of it."""
    with (
        tempfile.TemporaryDirectory(prefix="overnight-clients-") as kept,
        simulated_server(latency=_LATENCY_SECONDS, bad_request_marker=REFUSED) as upstream,
    ):
        folder = Path(kept)
        ready, log = folder / "ready.json", folder / "up.log"
        command = [sys.executable, "-m", "cli.main", "up", "--port", "0"]
        command += ["--upstream", upstream.url, "--data-dir", str(folder / "data")]
        command += ["--ready-file", str(ready)]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("OVERNIGHT_")}
        own = {
            "OVERNIGHT_API_KEY": KEY,
            # Webhooks are delivered to a receiver that the client's program opens on this machine.
            "OVERNIGHT_WEBHOOK_ALLOW_PRIVATE": "true",
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=inherited | own, stdout=output, stderr=output
            )
        try:
            yield Running(_base_url(process, ready, log), log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _base_url(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    deadline = time.monotonic() + _READY_SECONDS
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            message = f"Overnight did not start:\n{log.read_text(errors='replace')}"
            raise RuntimeError(message)
        time.sleep(0.1)
    return str(json.loads(ready.read_text())["base_url"])
