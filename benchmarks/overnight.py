"""One batch through an Overnight that starts from nothing, and all that can be told of it afterwards."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.batch import Batch, Timing, run_batch
from benchmarks.machine import Watch
from benchmarks.processes import Upstream, engine, upstream
from benchmarks.report import Measure, Target
from benchmarks.yardsticks.outcome import Outcome

ROLES = ("run worker", "control worker", "api", "beat", "up", "postgres", "valkey", "simulate")
MODEL_SERVER = "simulate"


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What a batch took."""

    timing: Timing
    stats: dict[str, Any]
    """The model server's own counts, once all was over."""
    cpu_seconds: dict[str, float]
    """From the upload to the end of the download, by role."""
    peaks_mb: dict[str, float]
    written_bytes: int
    """By the database, to its log."""
    first_call_seconds: float
    """From create until the first call reached the model server."""
    last_call_seconds: float
    """From when the last call reached the model server until `completed`."""

    def outcome(self, name: str) -> Outcome:
        """Beside the yardsticks."""
        seconds = sum(each for role, each in self.cpu_seconds.items() if role != MODEL_SERVER)
        peaks = [each for role, each in self.peaks_mb.items() if role != MODEL_SERVER]
        return Outcome(
            name=name,
            lines_per_second=self.timing.lines_per_second,
            cpu_ms_a_line=1000 * seconds / self.timing.lines,
            peak_mb=max(peaks),
        )

    def by_process(self, memory: Target | None = None) -> list[Measure]:
        """A row for each role; the memory that is asked for is that of the API and the workers."""
        measures = []
        for role in ROLES:
            if role not in self.cpu_seconds:
                continue
            name = "model server (simulated)" if role == MODEL_SERVER else role
            cpu = 1000 * self.cpu_seconds[role] / self.timing.lines
            is_judged = role == "api" or role.endswith("worker")
            measures += [
                Measure(name, cpu, "", 3, column="CPU ms a line"),
                Measure(
                    name,
                    self.peaks_mb[role],
                    "MB",
                    0,
                    memory if is_judged else None,
                    column="peak memory of the largest",
                    is_worst=True,
                ),
            ]
        return measures


def observe(
    folder: Path,
    source: Path,
    *options: str,
    workers: int,
    during: Callable[[Upstream, Batch], None] | None = None,
    **settings: str,
) -> Observed:
    """Start a model server with these options and Overnight with these settings; run one batch.

    Raises unless the model server answered each line exactly once.
    """
    folder.mkdir()
    log = folder / "calls.log"
    with (
        upstream("--log", str(log), *options) as model_server,
        engine(
            folder / "data", upstream_url=model_server.url, workers=workers, **settings
        ) as overnight,
        overnight.client() as client,
    ):
        written = overnight.written_bytes()
        with Watch(overnight.process, model_server.process) as watch:
            timing = run_batch(
                client,
                source,
                None if during is None else lambda batch: during(model_server, batch),
            )
        written = overnight.written_bytes() - written
        stats = model_server.stats()
    if stats["duplicates"]:
        raise RuntimeError(f"The model server was asked again for what it had answered: {stats}")
    first_call, last_call = _first_and_last(log)
    return Observed(
        timing=timing,
        stats=stats,
        cpu_seconds=watch.cpu_seconds(),
        peaks_mb=watch.peaks_mb(),
        written_bytes=written,
        first_call_seconds=first_call - timing.created_at,
        last_call_seconds=timing.completed_at - last_call,
    )


def _first_and_last(log: Path) -> tuple[float, float]:
    """Unix times of the earliest and the latest call in the model server's log."""
    first, last = float("inf"), 0.0
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            arrived = float(line.partition("\t")[0])
            first, last = min(first, arrived), max(last, arrived)
    return first, last
