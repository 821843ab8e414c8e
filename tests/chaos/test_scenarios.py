"""The file of scenarios is well formed, and promises no less than it ever did."""

import tomllib
from dataclasses import replace

import pytest

from tests.chaos.scenarios import FROZEN_PATH, Scenario, freeze, read_scenarios, weakened

_FROZEN = tomllib.loads(FROZEN_PATH.read_text())


def test_each_scenario_can_be_run() -> None:
    scenarios = read_scenarios()

    assert [mistake for each in scenarios.values() for mistake in each.mistakes()] == []
    assert len({each.does for each in scenarios.values()}) == len(scenarios)


def test_no_promise_is_gone_or_weaker() -> None:
    assert list(weakened(read_scenarios(), _FROZEN)) == []


def test_what_was_added_or_tightened_is_frozen() -> None:
    assert tomllib.loads(freeze(read_scenarios())) == _FROZEN, (
        "run `python -m tests.chaos.scenarios`"
    )


@pytest.mark.parametrize(
    ("changes", "noticed"),
    [
        ({"duplicates": "retries"}, "duplicates"),
        ({"seconds": 1000}, "seconds"),
        ({"ends": ["completed", "failed"]}, "ends"),
        ({"stages": ["running"]}, "stages"),
        ({"all_succeed": False}, "all_succeed"),
        ({"fault": "terminate"}, "fault"),
        ({"options": {"process": "beat"}}, "options"),
        ({"system": "networked"}, "system"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_weaker_promise_is_noticed(changes: dict[str, object], noticed: str) -> None:
    scenarios = read_scenarios()
    weaker: Scenario = replace(scenarios["kill_run_worker"], **changes)  # type: ignore[arg-type]  # each of its field

    found = list(weakened(scenarios | {"kill_run_worker": weaker}, _FROZEN))

    assert found == [f"kill_run_worker: {noticed}"]


def test_a_scenario_that_is_gone_is_noticed() -> None:
    scenarios = read_scenarios()
    del scenarios["kill_run_worker"]

    assert list(weakened(scenarios, _FROZEN)) == ["kill_run_worker is gone"]
