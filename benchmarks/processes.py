"""What the benchmarks start: the simulated model server, the bare loop, and the whole of Overnight.

Promises: a started process is stopped when its block ends, however it ends; what does not stop in
time is killed with everything it has started, so nothing is left to spoil the next measurement.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 90
STOP_SECONDS = 60
_OVERNIGHT = (sys.executable, "-m", "cli.main")


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """The running model server."""

    url: str
    process: psutil.Process

    def stats(self) -> dict[str, Any]:
        """Its own counts."""
        answer: dict[str, Any] = httpx.get(f"{self.url.removesuffix('/v1')}/stats").json()
        return answer


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A running Overnight."""

    base_url: str
    api_key: str
    process: psutil.Process
    ready_seconds: float
    """From the start of the command until `/readyz` said so."""


@contextmanager
def upstream(*options: str) -> Iterator[Upstream]:
    """`overnight simulate` on a free port."""
    argv = (*_OVERNIGHT, "simulate", "--port", "0", *options)
    with subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            url = process.stdout.readline().strip() if process.stdout else ""
            if not url:
                raise RuntimeError("The simulated model server did not start.")
            yield Upstream(url=url, process=psutil.Process(process.pid))
        finally:
            _stop(process)


@contextmanager
def engine(data_folder: Path, *, upstream_url: str, workers: int) -> Iterator[Engine]:
    """`overnight up` on a free port, ready."""
    key = f"sk-bench-{secrets.token_hex(8)}"
    ready_file = data_folder.with_suffix(".ready.json")
    ready_file.unlink(missing_ok=True)
    argv = [*_OVERNIGHT, "up", "--port", "0", "--data-dir", str(data_folder)]
    argv += ["--upstream", upstream_url, "--workers", str(workers), "--ready-file", str(ready_file)]
    log = data_folder.with_suffix(".log")
    with log.open("ab") as output:
        began = time.perf_counter()
        with subprocess.Popen(
            argv,
            cwd=ROOT,
            env=os.environ | {"OVERNIGHT_API_KEY": key},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                base_url = _until_ready(process, ready_file, log)
                yield Engine(
                    base_url=base_url,
                    api_key=key,
                    process=psutil.Process(process.pid),
                    ready_seconds=time.perf_counter() - began,
                )
            finally:
                _stop(process)


def bare_loop(source: Path, base_url: str, target: Path, *, in_flight: int) -> dict[str, float]:
    """Run the yardstick in a process of its own and return what it measured."""
    argv = [sys.executable, "-m", "benchmarks.bare_loop", str(source), base_url, str(target)]
    argv += ["--in-flight", str(in_flight)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _until_ready(process: "subprocess.Popen[bytes]", ready_file: Path, log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if ready_file.exists():
            base_url: str = json.loads(ready_file.read_text())["base_url"]
            answer = httpx.get(f"{base_url.removesuffix('/v1')}/readyz", timeout=5)
            if answer.status_code == httpx.codes.OK:
                return base_url
        time.sleep(0.02)
    raise RuntimeError(f"Overnight did not start:\n{log.read_text()[-4_000:]}")


def _stop(process: "subprocess.Popen[Any]") -> None:
    """Ask, wait, and make sure of the whole family."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
    _, left = psutil.wait_procs(family, timeout=5)
    for child in left:
        child.kill()
