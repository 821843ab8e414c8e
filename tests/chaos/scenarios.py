"""The scenarios, read from `scenarios.toml`, and what may change in it."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from tests.chaos import faults, faults_api, faults_outside
from tests.chaos.auditor import Duplicates, Promise
from tests.chaos.faults import Fault
from tests.chaos.trial import STAGES

PATH = Path(__file__).with_name("scenarios.toml")
FROZEN_PATH = Path(__file__).with_name("frozen.toml")
_SYSTEMS = {"plain", "networked", "small_disk"}
_ENDS = {"withdrawn": "cancelled", "cancelling": "cancelled", "expiring": "expired"}
# From the weakest to the strongest.
_STRENGTH: dict[str, int] = {"retries": 0, "in flight": 1, "none": 2}


@dataclass(frozen=True)
class Scenario:
    """One of them."""

    name: str
    does: str
    fault: str
    stages: list[str]
    duplicates: Duplicates
    seconds: float
    options: dict[str, Any] = field(default_factory=dict)
    ends: list[str] = field(default_factory=lambda: ["completed"])
    all_succeed: bool = True
    system: str = "plain"
    quick: list[str] = field(default_factory=list)

    @property
    def act(self) -> Fault:
        """The function that does it."""
        homes = (faults, faults_api, faults_outside)
        act: Fault | None = next(
            (getattr(home, self.fault) for home in homes if hasattr(home, self.fault)), None
        )
        if act is None:
            message = f"{self.name}: there is no fault {self.fault}"
            raise ValueError(message)
        return act

    def promise(self, stage: str) -> Promise:
        """What holds for a run whose fault hits at this stage."""
        ends = list(self.ends)
        if stage in _ENDS:
            # It may also have got to its end before.
            ends.append(_ENDS[stage])
        return Promise(ends=tuple(ends), duplicates=self.duplicates, all_succeed=self.all_succeed)

    def mistakes(self) -> Iterator[str]:
        """What is wrong with how it is written."""
        _ = self.act
        if not self.stages or not set(self.stages) <= set(STAGES):
            yield f"{self.name}: stages {self.stages}"
        if not set(self.quick) <= set(self.stages):
            yield f"{self.name}: quick {self.quick}"
        if self.system not in _SYSTEMS:
            yield f"{self.name}: system {self.system}"
        if self.duplicates not in get_args(Duplicates):
            yield f"{self.name}: duplicates {self.duplicates}"


def read_scenarios(path: Path = PATH) -> dict[str, Scenario]:
    """All of them, in the order of the file."""
    tables = tomllib.loads(path.read_text())
    return {name: Scenario(name=name, **table) for name, table in tables.items()}


def weakened(now: dict[str, Scenario], frozen: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Promises of the frozen list that are gone, or weaker now."""
    for name, old in frozen.items():
        scenario = now.get(name)
        if scenario is None:
            yield f"{name} is gone"
            continue
        # Another deed, or the same for a shorter time, is another promise.
        for word in ("fault", "options", "system"):
            if getattr(scenario, word) != old[word]:
                yield f"{name}: {word}"
        if _STRENGTH[scenario.duplicates] < _STRENGTH[old["duplicates"]]:
            yield f"{name}: duplicates"
        if scenario.seconds > old["seconds"]:
            yield f"{name}: seconds"
        if not set(scenario.ends) <= set(old["ends"]):
            yield f"{name}: ends"
        if not set(scenario.stages) >= set(old["stages"]):
            yield f"{name}: stages"
        if old["all_succeed"] and not scenario.all_succeed:
            yield f"{name}: all_succeed"


def _as_toml(value: object) -> str:
    """A value of an option as TOML; JSON writes all but tables alike."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_as_toml(each)}" for name, each in value.items()) + " }"
    return json.dumps(value)


def freeze(now: dict[str, Scenario]) -> str:
    """The frozen list of these scenarios, as TOML."""
    lines = [
        "# What scenarios.toml may not fall behind. `python -m tests.chaos.scenarios` adds to it.\n"
    ]
    for name, each in now.items():
        stages = ", ".join(f'"{stage}"' for stage in sorted(set(each.stages)))
        ends = ", ".join(f'"{end}"' for end in each.ends)
        lines.append(
            f'[{name}]\nfault = "{each.fault}"\noptions = {_as_toml(each.options)}\n'
            f'system = "{each.system}"\nduplicates = "{each.duplicates}"\nseconds = {each.seconds}\n'
            f"ends = [{ends}]\nstages = [{stages}]\nall_succeed = {str(each.all_succeed).lower()}\n"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    broken = list(weakened(read_scenarios(), tomllib.loads(FROZEN_PATH.read_text())))
    if broken:
        raise SystemExit("\n".join(broken))
    FROZEN_PATH.write_text(freeze(read_scenarios()))
