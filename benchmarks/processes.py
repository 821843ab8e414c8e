"""What the benchmarks start: the simulated model server, the whole of Overnight, and other servers.

Promises: a started process is stopped when its block ends, however it ends; what does not stop in
time is killed with everything it has started, so nothing is left to spoil the next measurement.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from benchmarks.batch import BatchClient
from benchmarks.machine import SAMPLE_SECONDS, Watch
from cli.embedded.postgres import url_of

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
        answer: dict[str, Any] = httpx.get(f"{self._root}/stats").json()
        return answer

    def reset_stats(self) -> None:
        """Let it count anew from here (it must have been started with `--control`)."""
        httpx.post(f"{self._root}/stats/reset").raise_for_status()

    @property
    def _root(self) -> str:
        return self.url.removesuffix("/v1")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A running Overnight."""

    base_url: str
    api_key: str
    process: psutil.Process
    ready_seconds: float
    """From the start of the command until `/readyz` said so."""
    data_folder: Path

    def client(self) -> BatchClient:
        """Its batch API."""
        return BatchClient(self.base_url, self.api_key)

    def written_bytes(self) -> int:
        """How much its Postgres has ever written to its log: what reaches the disk for good."""
        lines = (self.data_folder / "postgres" / "postmaster.pid").read_text().splitlines()
        with psycopg.connect(url_of(Path(lines[4]))) as connection:
            row = connection.execute("SELECT pg_current_wal_lsn() - '0/0'").fetchone()
        return int(row[0]) if row else 0


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
def engine(
    data_folder: Path, *, upstream_url: str, workers: int, **settings: str
) -> Iterator[Engine]:
    """`overnight up` on a free port, ready and idle; settings are OVERNIGHT_… variables."""
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
            env=os.environ | settings | {"OVERNIGHT_API_KEY": key},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                base_url = _until_ready(process, ready_file, log)
                ready_seconds = time.perf_counter() - began
                family = psutil.Process(process.pid)
                _until_idle(family)
                yield Engine(
                    base_url=base_url,
                    api_key=key,
                    process=family,
                    ready_seconds=ready_seconds,
                    data_folder=data_folder,
                )
            finally:
                _stop(process)


@contextmanager
def server(
    argv: Sequence[str], *, probe_url: str, log: Path, **env: str
) -> Iterator[psutil.Process]:
    """Any other server, once it answers at `probe_url` with whatever status below 500."""
    with (
        log.open("ab") as output,
        subprocess.Popen(
            argv,
            cwd=log.parent,
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            _until_answered(process, probe_url, log)
            yield psutil.Process(process.pid)
        finally:
            _stop(process)


@contextmanager
def traffic(url: str, *options: str) -> Iterator["Traffic"]:
    """`benchmarks.open_loop` beside whatever else the block does."""
    argv = (sys.executable, "-m", "benchmarks.open_loop", url, *options)
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Traffic(process)
        finally:
            _stop(process)


class Traffic:
    """Calls that are being made."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def finish(self) -> dict[str, float]:
        """End them, if they have not ended, and return what they saw."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        text, _ = self._process.communicate(timeout=START_SECONDS)
        seen: dict[str, float] = json.loads(text)
        return seen


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def run_program(*argv: str) -> dict[str, float]:
    """Run a program of the benchmarks to its end, and return the JSON object that it printed."""
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{argv[-1]} failed:\n{done.stderr[-2_000:]}")
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


def _until_idle(process: psutil.Process) -> None:
    """Processes that others do not wait for may still be loading; that is no batch's cost."""
    watch = Watch(process)
    with watch:
        before = 0.0
        for _ in range(20):
            time.sleep(2 * SAMPLE_SECONDS)
            spent = sum(watch.cpu_seconds().values())
            if spent - before < 0.1 * SAMPLE_SECONDS:
                return
            before = spent


def _until_answered(process: "subprocess.Popen[bytes]", probe_url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if not httpx.get(probe_url, timeout=5).is_server_error:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{process.args!r} did not start:\n{log.read_text()[-4_000:]}")


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
