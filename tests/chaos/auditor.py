"""Compare everything that is known of an ended batch, and say what does not agree. Pure.

Input, both files, counters, usage, the database and the witness each tell the same story, or there
is a violation: it names its kind and quotes what was seen.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.chaos.upstream import usage_of

Duplicates = Literal["none", "in flight", "retries"]
FINAL = {"completed", "failed", "expired", "cancelled"}
_NEVER_RAN = {"batch_expired": "expired", "batch_cancelled": "cancelled"}
"""Codes of lines that no call was made for, and the only end of a batch that has them."""
_SHOWN = 5


@dataclass(frozen=True)
class Promise:
    """What a scenario promises of every run."""

    ends: tuple[str, ...] = ("completed",)
    lost: int = 0
    doubled: int = 0
    duplicates: Duplicates = "none"
    all_succeed: bool = True
    """No line of a completed batch is in the error file."""


@dataclass
class Evidence:
    """What was seen of one batch, whose lines are `request-1` to `request-N`, in this order."""

    lines: int
    batch: dict[str, Any]
    outputs: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    row: dict[str, Any] = field(default_factory=dict)
    rows_left: int = 0
    """Results and shards that the database still holds for it."""
    calls: Counter[int] = field(default_factory=Counter)
    """Calls that the witness saw, by the number of their line."""
    answered: set[int] = field(default_factory=set)
    in_flight: int = 0
    """Calls begun and not recorded, summed over each kill."""
    recorded: set[int] = field(default_factory=set)
    """Lines that the database held a result of when the fault hit."""
    strays: list[str] = field(default_factory=list)
    """What the witness was asked for that no line asks for."""
    complaints: list[str] = field(default_factory=list)
    """What else was seen on the way that must never be."""


@dataclass(frozen=True)
class Violation:
    """One broken promise."""

    kind: str
    text: str


@dataclass(frozen=True)
class Findings:
    """The numbers of a run, and what is wrong with them."""

    lost: int
    doubled: int
    duplicates: int
    violations: tuple[Violation, ...]


def audit(evidence: Evidence, promise: Promise) -> Findings:
    """Compare it all."""
    counts = Counter(_number(line) for line in [*evidence.outputs, *evidence.errors])
    wanted = set(range(1, evidence.lines + 1))
    has_ended = evidence.batch["status"] in FINAL
    lost = sorted(wanted - counts.keys()) if has_ended else []
    doubled = sorted(number for number, count in counts.items() if count > 1)
    duplicates = sum(count - 1 for count in evidence.calls.values())
    violations = [
        *_statuses(evidence, promise),
        *(
            [Violation("lost", f"{len(lost)} lines, {lost[:_SHOWN]}")]
            if len(lost) > promise.lost
            else []
        ),
        *(
            [Violation("doubled", f"{len(doubled)} lines, {doubled[:_SHOWN]}")]
            if len(doubled) > promise.doubled
            else []
        ),
        *_strangers(counts, wanted),
        *_contents(evidence, promise),
        *_excused(evidence),
        *_witnessed(evidence),
        *_duplicated(evidence, promise, duplicates),
        *(Violation("complaint", text) for text in evidence.complaints),
    ]
    if has_ended:
        violations += [*_counters(evidence), *_usage(evidence), *_rows(evidence)]
    return Findings(len(lost), len(doubled), duplicates, tuple(violations))


def _number(line: dict[str, Any]) -> int:
    """The line's number, by its custom id; 0 for a stranger's."""
    name, _, number = str(line.get("custom_id")).partition("-")
    return int(number) if name == "request" and number.isdigit() else 0


def _statuses(evidence: Evidence, promise: Promise) -> Iterator[Violation]:
    status = evidence.batch["status"]
    if status not in FINAL:
        yield Violation("stuck", f"the batch is {status}")
    elif status not in promise.ends:
        yield Violation("ended otherwise", f"{status}, not {' or '.join(promise.ends)}")


def _strangers(counts: Counter[int], wanted: set[int]) -> Iterator[Violation]:
    strangers = sorted(counts.keys() - wanted)
    if strangers:
        yield Violation("stranger", f"not in the input: {strangers[:_SHOWN]}")


def _contents(evidence: Evidence, promise: Promise) -> Iterator[Violation]:
    numbers = [_number(line) for line in evidence.outputs]
    if numbers != sorted(numbers):
        yield Violation("order", "the output file is not in the order of the input")
    mixed = [_number(line) for line in evidence.outputs if not _is_answer_to_its_line(line)]
    if mixed:
        yield Violation("mixed up", f"another line's answer: {mixed[:_SHOWN]}")
    ids = Counter(line["id"] for line in [*evidence.outputs, *evidence.errors])
    if len(ids) != ids.total():
        yield Violation("doubled", "two lines of the files have one id")
    failed = [line for line in evidence.errors if not _never_ran(line)]
    failed += [line for line in evidence.outputs if "error" in line["response"]["body"]]
    if failed and promise.all_succeed:
        yield Violation("failed", f"{len(failed)} lines, such as {failed[0]}"[:400])


def _excused(evidence: Evidence) -> Iterator[Violation]:
    """Lines that are said never to have run: there is a reason, and nothing was known of them."""
    excused = [line for line in evidence.errors if _never_ran(line)]
    forgotten = sorted({_number(line) for line in excused} & evidence.recorded)
    if forgotten:
        yield Violation("forgotten", f"recorded, but said never to have run: {forgotten[:_SHOWN]}")
    codes = {line["error"]["code"] for line in excused}
    wrong = {code for code in codes if _NEVER_RAN[code] != evidence.batch["status"]}
    if wrong:
        yield Violation("excuse", f"{sorted(wrong)} in a batch that is {evidence.batch['status']}")


def _is_answer_to_its_line(line: dict[str, Any]) -> bool:
    body = line["response"]["body"]
    if "error" in body:
        return True
    text = body["choices"][0]["message"]["content"]
    return bool(text == f"to question {_number(line)}")


def _never_ran(line: dict[str, Any]) -> bool:
    return (line.get("error") or {}).get("code") in _NEVER_RAN


def _witnessed(evidence: Evidence) -> Iterator[Violation]:
    invented = sorted({_number(line) for line in evidence.outputs} - evidence.answered)
    if invented:
        yield Violation("invented", f"never answered upstream: {invented[:_SHOWN]}")
    if evidence.strays:
        yield Violation("stray call", f"{evidence.strays[:_SHOWN]}")


def _duplicated(evidence: Evidence, promise: Promise, duplicates: int) -> Iterator[Violation]:
    allowed = {"none": 0, "in flight": evidence.in_flight}.get(promise.duplicates)
    if allowed is not None and duplicates > allowed:
        text = f"{duplicates} calls were repeated, {allowed} may be"
        yield Violation("duplicates", text)


def _counters(evidence: Evidence) -> Iterator[Violation]:
    failed = sum(not _never_ran(line) for line in evidence.errors)
    seen = {"total": evidence.lines, "completed": len(evidence.outputs), "failed": failed}
    if evidence.batch["request_counts"] != seen:
        yield Violation("counters", f"{evidence.batch['request_counts']}, the files have {seen}")


def _usage(evidence: Evidence) -> Iterator[Violation]:
    good = [line for line in evidence.outputs if "error" not in line["response"]["body"]]
    each = [usage_of(f"question {_number(line)}") for line in good]
    seen = (sum(prompt for prompt, _ in each), sum(completion for _, completion in each))
    told = evidence.batch.get("usage") or {}
    if (told.get("input_tokens", 0), told.get("output_tokens", 0)) != seen:
        yield Violation("usage", f"{told}, the output file's is {seen}")
    elif told.get("total_tokens", 0) != sum(seen):
        yield Violation("usage", f"{told} does not add up")


def _rows(evidence: Evidence) -> Iterator[Violation]:
    row, counts = evidence.row, evidence.batch["request_counts"]
    if evidence.rows_left:
        yield Violation("left over", f"{evidence.rows_left} rows of results and shards")
    if row.get("lease_owner") is not None:
        yield Violation("left over", "a lease on a batch that has ended")
    told = {"total": row["total"], "completed": row["completed"], "failed": row["failed"]}
    if told != counts or row["status"] != evidence.batch["status"]:
        yield Violation("row", f"the row has {row['status']} {told}, the API says {counts}")
