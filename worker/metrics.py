"""What a worker process tells Prometheus: its own counts, and what its lanes stand at just now.

It writes them, every two seconds, to where whoever serves them finds them (`models.metrics_folder`);
without such a place it tells nothing and spends nothing.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.metrics_core import Metric

from models import metrics
from models.metrics_folder import CountsFile
from models.telling import counted_by
from worker.flow.lanes import Lanes
from worker.flow.tally import CallTally, Tallies
from worker.runtime import Runtime

_SECONDS = 2.0


async def keep_telling(runtime: Runtime, folder: Path) -> None:
    """Write this process's counts every two seconds, and once more when cancelled."""
    file = CountsFile(folder)
    try:
        while True:
            file.write(counts_of(runtime))
            await asyncio.sleep(_SECONDS)
    finally:
        with contextlib.suppress(Exception):
            file.write(counts_of(runtime))


def counts_of(runtime: Runtime) -> list[Metric]:
    """All that a process has to tell. Called on its loop, where the lanes live."""
    families = [
        metrics.build_info(),
        *counted_by(metrics.RUN, metrics.WORKER, metrics.EVERY),
    ]
    if runtime.dispatcher is not None:
        families += _of_lanes(runtime.dispatcher.lanes)
    return families


def _of_lanes(lanes: Lanes) -> Iterator[Metric]:
    tallies = [
        (label, tally)
        for label, tally in lanes.tallies.by_label.items()
        # Lines that no server may get have none; mostly there are no such lines.
        if label != ("", "") or tally.failed
    ]
    yield metrics.LINES.family(
        ((*label, outcome), count)
        for label, tally in tallies
        for outcome, count in (("succeeded", tally.succeeded), ("failed", tally.failed))
    )
    yield metrics.TOKENS.family(
        ((*label, kind), count)
        for label, tally in tallies
        for kind, count in (
            ("input", tally.input_tokens),
            ("cached", tally.cached_tokens),
            ("output", tally.output_tokens),
        )
    )
    yield metrics.UPSTREAM_CALLS.family(
        ((*label, status), count)
        for label, tally in tallies
        for status, count in _by_class(tally).items()
    )
    yield metrics.UPSTREAM_RETRIES.family((label, tally.retries) for label, tally in tallies)
    yield metrics.UPSTREAM_DURATION.histogram_family(
        metrics.SLOW_SECONDS, ((label, tally.buckets, tally.seconds) for label, tally in tallies)
    )
    standings = _standings(lanes, lanes.tallies)
    for metric, field in (
        (metrics.UPSTREAM_IN_FLIGHT, "in_flight"),
        (metrics.UPSTREAM_SHARE, "share"),
        (metrics.UPSTREAM_LIMIT, "limit"),
        (metrics.BREAKER_OPEN, "is_down"),
    ):
        yield metric.family((label, getattr(each, field)) for label, each in standings.items())


@dataclass(slots=True)
class _Standing:
    in_flight: int = 0
    share: int = 0
    limit: int = 0
    is_down: bool = False


def _standings(lanes: Lanes, tallies: Tallies) -> dict[tuple[str, str], _Standing]:
    """Of each label, those of its lanes together; of one without a lane, nothing."""
    found = {label: _Standing() for label in tallies.by_label if label != ("", "")}
    for lane in lanes:
        standing = found.setdefault(tallies.label_of(lane.key.server, lane.key.model), _Standing())
        standing.in_flight += lane.in_flight
        # Who wants nothing has given its share back.
        standing.share += lane.own.cap if lane.is_in_use else 0
        standing.limit += lane.own.limit
        standing.is_down |= lane.breaker.is_open
    return found


_WITHOUT_STATUS = {
    "upstream_unreachable": "unreachable",
    "upstream_timeout": "timeout",
    "upstream_disconnected": "disconnected",
}


def _by_class(tally: CallTally) -> dict[str, int]:
    """Calls by what `overnight_upstream_calls_total` calls their ends; the first five always."""
    counts = dict.fromkeys(("2xx", "4xx", "429", "5xx", "timeout"), 0)
    for how, count in tally.ends.items():
        if isinstance(how, str):
            name = _WITHOUT_STATUS.get(how, "broken")
        else:
            name = "429" if how == 429 else f"{how // 100}xx"
        counts[name] = counts.get(name, 0) + count
    return counts
