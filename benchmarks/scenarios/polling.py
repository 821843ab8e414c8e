"""Programs that ask for a batch's status all the time, while it runs."""

from pathlib import Path
from typing import NamedTuple

from benchmarks.inputs import write_input
from benchmarks.machine import Watch
from benchmarks.plan import Plan, Scenario
from benchmarks.processes import engine, traffic, upstream
from benchmarks.report import Measure, below
from benchmarks.scenarios.capacity import SERVER

LINES, FULL_SERVER_LINES = 50_000, 6_400
LINE_BYTES = 350
POLLS_PER_SECOND, CONNECTIONS = 200, 8


def status_polling(plan: Plan) -> list[Measure]:
    """On a server that is full, and on one that answers at once."""
    return [
        *_polled(plan, "64 slots of 200 ms, 429 above", FULL_SERVER_LINES, *SERVER),
        *_polled(plan, "no latency, all cores at work", LINES),
    ]


class _Run(NamedTuple):
    seconds: float
    """From create to completed."""
    api_cpu_seconds: float
    polls: dict[str, float]


def _polled(plan: Plan, name: str, full_lines: int, *options: str) -> list[Measure]:
    lines = plan.lines(full_lines, least=2_000)
    source = plan.folder / "input.jsonl"
    write_input(source, lines=lines, line_bytes=LINE_BYTES)
    quiet, polled = (
        _run(plan.folder / f"{lines}-{is_polled}", plan.workers, source, *options, polled=is_polled)
        for is_polled in (False, True)
    )
    seen = polled.polls
    api_ms = 1000 * (polled.api_cpu_seconds - quiet.api_cpu_seconds) / seen["calls"]
    slower = 1 - quiet.seconds / polled.seconds
    return [
        Measure(f"{name}: polls answered a second", seen["calls_per_second"], "", 0),
        Measure(f"{name}: polls that failed", seen["failed"], "", 0, is_worst=True),
        Measure(f"{name}: p50 of a poll", 1000 * seen["p50_seconds"], "ms", 1),
        Measure(f"{name}: p99 of a poll", 1000 * seen["p99_seconds"], "ms", 0, below(50)),
        Measure(f"{name}: CPU of the API, a poll", api_ms, "ms", 2),
        Measure(f"{name}: not polled", lines / quiet.seconds, "lines/s", 0),
        Measure(f"{name}: polled", lines / polled.seconds, "lines/s", 0),
        Measure(f"{name}: slower by", 100 * slower, "%", 1, below(10)),
    ]


def _run(folder: Path, workers: int, source: Path, *options: str, polled: bool) -> _Run:
    polling = ("--rate", str(POLLS_PER_SECOND), "--connections", str(CONNECTIONS))
    with (
        upstream(*options) as server,
        engine(folder, upstream_url=server.url, workers=workers) as overnight,
        overnight.client() as client,
    ):
        file_id = client.upload(source)
        with Watch(overnight.process) as watch:
            batch = client.create(file_id)
            polls: dict[str, float] = {}
            if polled:
                url = f"{overnight.base_url}/batches/{batch.id}"
                with traffic(url, *polling, "--api-key", overnight.api_key) as calls:
                    client.wait(batch)
                    polls = calls.finish()
            else:
                client.wait(batch)
    return _Run(batch.seconds, watch.cpu_seconds()["api"], polls)


SCENARIOS = {
    "polling": Scenario(
        "Status polling",
        f"{POLLS_PER_SECOND} times a second, at random moments and over {CONNECTIONS} connections, somebody"
        " asks for the batch that is running. Each poll is timed from when it was due. Who polls shares the"
        " cores, too.",
        status_polling,
    ),
}
