"""Running the cases, and telling how they went."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tests.conformance.kit.case import Case
from tests.conformance.kit.expect import NotApplicable
from tests.conformance.kit.subject import Subject

Verdict = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one case went; `reason` is empty where it passed."""

    number: str
    verdict: Verdict
    reason: str = ""


def run_case(case: Case, server: Subject) -> Outcome:
    """Run one case, whatever becomes of it."""
    try:
        case.run(server)
    except NotApplicable as reason:
        return Outcome(case.number, "skipped", str(reason))
    except Exception as error:  # noqa: BLE001  # a case that stumbles has failed
        words = str(error) or repr(error)
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return Outcome(case.number, "failed", (kind + words).splitlines()[0][:600])
    return Outcome(case.number, "passed")


def run_cases(cases: Sequence[Case], server: Subject, say: Callable[[str], None]) -> list[Outcome]:
    """Run cases, saying a line for each that does not pass, and how many did."""
    outcomes = []
    for case in cases:
        outcome = run_case(case, server)
        outcomes.append(outcome)
        if outcome.verdict != "passed":
            say(f"{outcome.verdict:7} {case.number:8} {case.title}: {outcome.reason}")
    say(summary(outcomes))
    return outcomes


def summary(outcomes: Iterable[Outcome]) -> str:
    """How many passed."""
    verdicts = [outcome.verdict for outcome in outcomes]
    passed, failed = verdicts.count("passed"), verdicts.count("failed")
    return (
        f"{passed} of {len(verdicts)} passed, {failed} failed, {verdicts.count('skipped')} skipped"
    )


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Keep a run, for `scripts/write_compatibility.py`."""
    path.write_text(json.dumps([asdict(outcome) for outcome in outcomes]))


def read_outcomes(path: Path) -> list[Outcome]:
    """A run that was kept."""
    return [Outcome(**entry) for entry in json.loads(path.read_text())]
