"""What is measured, one module a subject.

Each scenario starts from nothing, measures, and leaves nothing behind. `SCENARIOS` has them by name, in
the order of the page.
"""

from benchmarks.plan import Scenario
from benchmarks.scenarios import capacity, fairness, neighbour, polling, prefix, size, speed, start

SCENARIOS: dict[str, Scenario] = {
    **speed.SCENARIOS,
    **capacity.SCENARIOS,
    **neighbour.SCENARIOS,
    **prefix.SCENARIOS,
    **fairness.SCENARIOS,
    **size.SCENARIOS,
    **polling.SCENARIOS,
    **start.SCENARIOS,
}
