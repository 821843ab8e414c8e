"""Write `docs/compatibility.md` from a run of the conformance kit.

    python -m tests.conformance.kit --write build/conformance.json
    python -m scripts.write_compatibility build/conformance.json

`make compatibility` does both. A test renders the page again from what it says itself, so that the
page, the contract and the kit cannot drift apart.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from tests.conformance.kit.catalogue import ALL
from tests.conformance.kit.facts import (
    DIFFERENT,
    PARTLY_SEEN,
    UNSEEN,
    Fact,
    read_facts,
    read_sections,
)
from tests.conformance.kit.report import Outcome, Verdict, read_outcomes

PATH = Path(__file__).parents[1] / "docs" / "compatibility.md"
_HEAD = """\
# Compatibility

What Overnight answers to each fact of [the contract](contract.md), as the
[conformance kit](../tests/conformance/kit) found it in its last run against Overnight itself:
**{passed} of {total} cases passed**. `make conformance` runs it again, and with `BASE_URL` and
`API_KEY` set it runs against any other server. [clients.md](clients.md) has the clients that were
run, with their versions.

This page is written by `scripts/write_compatibility.py`.
"""
_ROUTES: Sequence[tuple[str, Sequence[str]]] = (
    ("`POST /v1/files`", ["1.4", "1.22", "3.21", "3.23", "3.24", "3.25", "4.5", "4.6", "4.7"]),
    ("`GET /v1/files`", ["1.5", "2.7", "7.1", "7.2", "7.3", "7.4", "7.6", "7.8"]),
    ("`GET /v1/files/{id}`", ["1.6", "3.18"]),
    ("`DELETE /v1/files/{id}`", ["1.7", "2.8", "11.5"]),
    ("`GET /v1/files/{id}/content`", ["1.8", "3.19", "3.20", "8.11"]),
    ("`POST /v1/batches`", ["1.9", "1.20", "1.21", "1.25", "3.26", "3.27", "3.28", "3.29"]),
    ("`GET /v1/batches`", ["1.10", "2.21", "3.33", "3.34", "3.35", "7.3"]),
    ("`GET /v1/batches/{id}`", ["1.11", "3.30"]),
    ("`POST /v1/batches/{id}/cancel`", ["1.12", "3.31", "3.32", "3.38", "5.5", "5.7"]),
    ("`POST /v1/uploads`", ["1.13", "1.24", "1.39", "2.22"]),
    ("`POST /v1/uploads/{id}/parts`", ["1.14", "2.23", "2.26"]),
    ("`POST /v1/uploads/{id}/complete`", ["1.15", "2.24", "2.25", "2.26", "2.27"]),
    ("`POST /v1/uploads/{id}/cancel`", ["1.16"]),
    ("`GET /v1/models`, `GET /v1/models/{model}`", ["1.17", "2.28", "2.29"]),
    ("`POST`, `GET /v1/webhook_endpoints`", ["9.11", "9.12"]),
    ("`GET`, `POST`, `DELETE /v1/webhook_endpoints/{id}`", ["9.13", "9.14"]),
    ("`POST …/rotate_secret`, `POST …/test`", ["9.15", "9.16"]),
    ("`GET /v1/webhook_event_types`", ["9.17"]),
    ("lines of the eight endpoints", ["1.20", "6.17", "10.7"]),
    ("webhooks", ["9.1", "9.2", "9.3", "9.4", "9.5", "9.6", "9.7", "9.8"]),
)
_NOT_PASSED = re.compile(r"^\| (\d+\.\d+\.\d+) \| .* \| (failed|skipped) \| (.*) \|$", re.MULTILINE)


def render(outcomes: Sequence[Outcome]) -> str:
    """The whole page."""
    by_number = {outcome.number: outcome for outcome in outcomes}
    facts, sections = read_facts(), read_sections()
    passed = sum(outcome.verdict == "passed" for outcome in outcomes)
    parts = [_HEAD.format(passed=passed, total=len(ALL)), _routes(by_number)]
    for number, title in sections.items():
        rows = [_row(fact, by_number) for fact in facts.values() if fact.section == number]
        parts.append(_table(f"## {number}. {title}", "fact | mark | | cases | passed", rows))
    parts.append(
        _table(
            "## Answered differently on purpose",
            "fact | how",
            [f"{number} | {how}" for number, how in DIFFERENT.items()],
        )
    )
    reasons = [f"{number} | not at all | {reason}" for number, reason in UNSEEN.items()]
    reasons += [f"{number} | in part | {reason}" for number, reason in PARTLY_SEEN.items()]
    reasons.sort(key=lambda row: [int(part) for part in row.partition(" ")[0].split(".")])
    parts.append(_table("## What the kit cannot see", "fact | seen | why", reasons))
    parts.append(_others(by_number))
    return "\n".join(parts)


def read_page(page: str) -> list[Outcome]:
    """The outcomes that a page tells of."""
    told = {
        number: Outcome(number, cast("Verdict", verdict), reason)
        for number, verdict, reason in _NOT_PASSED.findall(page)
    }
    return [told.get(case.number, Outcome(case.number, "passed")) for case in ALL]


def _cases_of(*facts: str) -> list[str]:
    return [case.number for case in ALL if set(case.facts) & set(facts)]


def _answer(numbers: Sequence[str], outcomes: Mapping[str, Outcome]) -> str:
    verdicts = [outcomes[number].verdict for number in numbers]
    if set(verdicts) == {"passed"}:
        return "all"
    return f"{verdicts.count('passed')} of {len(verdicts)}"


def _row(fact: Fact, outcomes: Mapping[str, Outcome]) -> str:
    numbers = _cases_of(fact.number)
    answer = _answer(numbers, outcomes) if numbers else "not seen"
    text = fact.text.replace(" | ", "; ")
    return f"{fact.number} | {fact.mark} | {text} | {len(numbers)} | {answer}"


def _routes(outcomes: Mapping[str, Outcome]) -> str:
    rows = [
        f"{route} | {', '.join(facts)} | {len(_cases_of(*facts))} |"
        f" {_answer(_cases_of(*facts), outcomes)}"
        for route, facts in _ROUTES
    ]
    return _table("## Routes", "route | facts | cases | passed", rows)


def _others(outcomes: Mapping[str, Outcome]) -> str:
    rows = [
        f"{case.number} | {_plain(case.title)} | {outcome.verdict} | {_plain(outcome.reason)}"
        for case in ALL
        if (outcome := outcomes[case.number]).verdict != "passed"
    ]
    heading = "## Cases that did not pass"
    return (
        _table(heading, "case | | verdict | reason", rows)
        if rows
        else f"{heading}\n\nThere are none.\n"
    )


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ").strip()


def _table(heading: str, columns: str, rows: Sequence[str]) -> str:
    rule = "|".join("---" for _ in columns.split("|"))
    lines = [heading, "", f"| {columns} |", f"|{rule}|", *(f"| {row} |" for row in rows), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PATH.write_text(render(read_outcomes(Path(sys.argv[1]))))
