"""How long it takes until Overnight is ready."""

from benchmarks.plan import Plan, Scenario
from benchmarks.processes import engine, upstream
from benchmarks.report import Measure, below


def start(plan: Plan) -> list[Measure]:
    """`overnight up` from an empty folder, and again on the same data."""
    seconds = []
    with upstream() as server:
        for _ in range(2):
            with engine(
                plan.folder / "data", upstream_url=server.url, workers=plan.workers
            ) as overnight:
                seconds.append(overnight.ready_seconds)
    return [
        Measure("empty folder to ready", seconds[0], "s", 2, below(10)),
        Measure("warm start to ready", seconds[1], "s", 2, below(5)),
    ]


SCENARIOS = {
    "start": Scenario(
        "Starting", "`overnight up`, from the command until `/readyz` says so.", start
    ),
}
