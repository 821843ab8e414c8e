"""The auditor notices each kind of thing that must not be: else its silence would mean nothing."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.auditor import Evidence, Promise, audit
from tests.chaos.upstream import answer_to, usage_of

_LINES = 12


def _output(number: int) -> dict[str, Any]:
    return {
        "id": f"batch_req_{number}",
        "custom_id": f"request-{number}",
        "response": {"status_code": 200, "body": answer_to(f"question {number}")},
        "error": None,
    }


def _error(number: int, code: str = "batch_cancelled") -> dict[str, Any]:
    return {
        "id": f"batch_req_{number}",
        "custom_id": f"request-{number}",
        "response": None,
        "error": {"code": code, "message": "…"},
    }


def _whole() -> Evidence:
    """A cancelled batch of which ten lines ran, and everything agrees."""
    each = [usage_of(f"question {number}") for number in range(1, 11)]
    prompt, completion = sum(pair[0] for pair in each), sum(pair[1] for pair in each)
    counts = {"total": _LINES, "completed": 10, "failed": 0}
    usage = {
        "input_tokens": prompt,
        "output_tokens": completion,
        "total_tokens": prompt + completion,
    }
    return Evidence(
        lines=_LINES,
        batch={"status": "cancelled", "request_counts": counts, "usage": usage},
        outputs=[_output(number) for number in range(1, 11)],
        errors=[_error(11), _error(12)],
        row={"status": "cancelled", "lease_owner": None} | counts,
        calls=Counter(range(1, 12)),
        answered=set(range(1, 11)),
        in_flight=1,
        recorded={1, 2, 3},
    )


_PROMISE = Promise(ends=("completed", "cancelled"), duplicates="in flight")


def test_agreement_is_no_violation() -> None:
    findings = audit(_whole(), _PROMISE)

    assert findings.violations == ()
    assert (findings.lost, findings.doubled, findings.duplicates) == (0, 0, 0)


def _change(path: str, value: Any) -> Callable[[Evidence], None]:
    """Set one thing of the batch or its row: `batch.request_counts.completed`."""
    first, *middle, last = path.split(".")

    def change(evidence: Evidence) -> None:
        holder = getattr(evidence, first)
        for name in middle:
            holder = holder[name]
        holder[last] = value

    return change


def _lose_a_line(evidence: Evidence) -> None:
    evidence.errors.pop()


def _double_a_line(evidence: Evidence) -> None:
    evidence.outputs.insert(4, copy.deepcopy(evidence.outputs[3]))


def _double_a_line_over_both_files(evidence: Evidence) -> None:
    evidence.errors.append(_error(3))


def _add_a_stranger(evidence: Evidence) -> None:
    evidence.outputs.append(_output(99))


def _mix_up_answers(evidence: Evidence) -> None:
    first, second = evidence.outputs[0]["response"], evidence.outputs[1]["response"]
    first["body"], second["body"] = second["body"], first["body"]


def _invent_an_answer(evidence: Evidence) -> None:
    evidence.answered.remove(5)


def _disorder(evidence: Evidence) -> None:
    evidence.outputs.reverse()


def _fail_a_line(evidence: Evidence) -> None:
    evidence.errors[0] = _error(11, "upstream_timeout")
    evidence.batch["request_counts"]["failed"] = 1
    evidence.row["failed"] = 1


def _answer_with_an_error(evidence: Evidence) -> None:
    evidence.outputs[2]["response"]["body"] = {"error": {"message": "no"}}


def _forget_what_was_recorded(evidence: Evidence) -> None:
    evidence.recorded = {3, 11}


def _repeat_calls(evidence: Evidence) -> None:
    evidence.calls[2] += 2


def _leave_rows(evidence: Evidence) -> None:
    evidence.rows_left = 3


def _stray(evidence: Evidence) -> None:
    evidence.strays.append("/elsewhere")


def _complain(evidence: Evidence) -> None:
    evidence.complaints.append("500 for batches")


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        pytest.param(_lose_a_line, "lost", id="lost line"),
        pytest.param(_double_a_line, "doubled", id="doubled line"),
        pytest.param(_double_a_line_over_both_files, "doubled", id="in both files"),
        pytest.param(_add_a_stranger, "stranger", id="line that is not in the input"),
        pytest.param(_mix_up_answers, "mixed up", id="another line's answer"),
        pytest.param(_invent_an_answer, "invented", id="answer that nobody gave"),
        pytest.param(_disorder, "order", id="order"),
        pytest.param(_fail_a_line, "failed", id="line that failed"),
        pytest.param(_answer_with_an_error, "failed", id="error as an answer"),
        pytest.param(_forget_what_was_recorded, "forgotten", id="recorded line that is forgotten"),
        pytest.param(_change("batch.status", "completed"), "excuse", id="excuse without a reason"),
        pytest.param(_repeat_calls, "duplicates", id="repeated calls"),
        pytest.param(_leave_rows, "left over", id="rows left"),
        pytest.param(_stray, "stray call", id="stray call"),
        pytest.param(_complain, "complaint", id="answer of the API"),
        pytest.param(_change("batch.status", "finalizing"), "stuck", id="stuck"),
        pytest.param(_change("batch.status", "expired"), "ended otherwise", id="other end"),
        pytest.param(_change("batch.request_counts.completed", 9), "counters", id="completed"),
        pytest.param(_change("batch.request_counts.failed", 2), "counters", id="failed"),
        pytest.param(_change("batch.request_counts.total", 13), "counters", id="total"),
        pytest.param(_change("batch.usage.input_tokens", 1), "usage", id="usage"),
        pytest.param(_change("batch.usage.total_tokens", 1), "usage", id="sum of the usage"),
        pytest.param(_change("batch.usage", None), "usage", id="no usage"),
        pytest.param(_change("row.completed", 9), "row", id="counter of the row"),
        pytest.param(_change("row.status", "completed"), "row", id="status of the row"),
        pytest.param(_change("row.lease_owner", "somebody"), "left over", id="lease left"),
    ],
)
def test_what_does_not_agree_is_noticed(spoil: Callable[[Evidence], None], kind: str) -> None:
    evidence = _whole()
    spoil(evidence)

    assert kind in {each.kind for each in audit(evidence, _PROMISE).violations}


def test_a_repeated_call_is_allowed_only_as_far_as_it_is_promised() -> None:
    evidence = _whole()
    evidence.calls[2] += 1

    assert audit(evidence, _PROMISE).violations == ()
    assert audit(evidence, _PROMISE).duplicates == 1
    strict = Promise(ends=("cancelled",), duplicates="none")
    assert [each.kind for each in audit(evidence, strict).violations] == ["duplicates"]
    loose = Promise(ends=("cancelled",), duplicates="retries")
    evidence.calls[2] += 10
    assert audit(evidence, loose).violations == ()


def test_lines_of_a_batch_that_has_not_ended_are_not_lost() -> None:
    evidence = Evidence(lines=3, batch={"status": "in_progress"})

    findings = audit(evidence, _PROMISE)

    assert [each.kind for each in findings.violations] == ["stuck"]
    assert findings.lost == 0
