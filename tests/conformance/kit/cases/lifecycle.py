"""Sections 2 and 5: how a batch comes to its end."""

from itertools import pairwise
from typing import Any

from openai.types import Batch

from tests.conformance.kit.case import case
from tests.conformance.kit.expect import NotApplicable, conforms, ok, same
from tests.conformance.kit.runs import MANY, OUTPUT_LIFE_SECONDS, Run
from tests.conformance.kit.server import ENDED
from tests.conformance.kit.subject import Subject

_MONTH_SECONDS = 30 * 86_400
_STATUSES = {
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
}
_MOVES = {
    "validating": {"failed", "in_progress", "cancelling"},
    "in_progress": {"finalizing", "cancelling", "expired"},
    "finalizing": {"completed", "expired"},
    "cancelling": {"cancelled"},
}
NAMES = (
    "clean",
    "mixed",
    "hopeless",
    "failed",
    "no file",
    "cancelled",
    "cancelled early",
    "expired",
)
_ROWS = [{"name": name} for name in NAMES]
_NOTHING = {"total": 0, "completed": 0, "failed": 0}


def run_of(server: Subject, name: str) -> Run:
    """A batch that has ended as its name says.

    Raises:
        NotApplicable: this server cannot bring it about.
    """
    run = server.runs[name]
    if name == "expired":
        run.done.wait()
        if run.failure is not None and not run.created:
            raise NotApplicable(f"the server takes no short window: {run.failure}")
    batch = run.ended()
    if name in {"cancelled", "expired"} and batch["status"] == "completed":
        raise NotApplicable(f"{MANY} lines were done before they could be stopped")
    return run


def _reachable(earlier: str, later: str) -> bool:
    seen, open_ = {earlier}, [earlier]
    while open_:
        for following in _MOVES.get(open_.pop(), set()) - seen:
            seen.add(following)
            open_.append(following)
    return later in seen


@case("2.13", "the words of a batch that is {name}", rows=_ROWS)
def the_words(server: Subject, name: str) -> None:
    run = run_of(server, name)
    assert {batch["status"] for batch in run.seen} <= _STATUSES, "there is another word"


@case("2.14", "no file id before the end of a batch that is {name}", also=["6.8"], rows=_ROWS)
def no_ids_before_the_end(server: Subject, name: str) -> None:
    run = run_of(server, name)
    for batch in run.seen:
        if batch["status"] not in ENDED:
            same(
                (batch["output_file_id"], batch["error_file_id"]),
                (None, None),
                f"while {batch['status']}",
            )


@case("2.17", "times of a batch that is {name}", also=["5.9"], rows=_ROWS)
def times_on_entering(server: Subject, name: str) -> None:
    batch = run_of(server, name).ended()
    given = {field for field in batch if field.endswith("_at") and batch[field] is not None}
    always = {"created_at", "expires_at"}
    wanted: dict[str, tuple[set[str], set[str]]] = {
        # Those that must be set, and those that may be.
        "completed": ({"in_progress_at", "finalizing_at", "completed_at"}, set()),
        "failed": ({"failed_at"}, set()),
        "expired": ({"in_progress_at", "expired_at"}, {"finalizing_at"}),
        "cancelled": ({"cancelling_at", "cancelled_at"}, {"in_progress_at", "finalizing_at"}),
    }
    least, most = wanted[batch["status"]]
    assert always | least <= given, f"missing: {sorted((always | least) - given)}"
    assert given <= always | least | most, f"surplus: {sorted(given - always - least - most)}"


@case("2.17", "times follow one another in a batch that is {name}", rows=_ROWS)
def times_in_order(server: Subject, name: str) -> None:
    batch = run_of(server, name).ended()
    order = ("created_at", "in_progress_at", "finalizing_at", "completed_at")
    if batch["status"] == "cancelled":
        order = ("created_at", "in_progress_at", "cancelling_at", "cancelled_at")
    if batch["status"] == "expired":
        order = ("created_at", "in_progress_at", "finalizing_at", "expired_at")
    times = [batch[field] for field in order if batch[field] is not None]
    same(times, sorted(times), "the times")


@case(
    "2.18", "counts from the first answer on, in a batch that is {name}", also=["5.2"], rows=_ROWS
)
def counts_from_the_first(server: Subject, name: str) -> None:
    for batch in run_of(server, name).seen:
        same(set(batch["request_counts"]), set(_NOTHING), "the counts")
        if batch["status"] == "validating":
            same(batch["request_counts"], _NOTHING, "the counts while validating")


@case("5.1", "the moves of a batch that is {name}", rows=_ROWS)
def the_moves(server: Subject, name: str) -> None:
    statuses = [batch["status"] for batch in run_of(server, name).seen]
    for earlier, later in pairwise(statuses):
        assert _reachable(earlier, later), f"{earlier} became {later}"


@case(
    "5.3",
    "the counts of a batch in progress grow: {name}",
    rows=[{"name": "cancelled"}, {"name": "expired"}],
)
def the_counts_grow(server: Subject, name: str) -> None:
    running = [
        b["request_counts"] for b in run_of(server, name).seen if b["status"] == "in_progress"
    ]
    assert running, "it was not seen in progress"
    same({counts["total"] for counts in running}, {MANY}, "total")
    for earlier, later in pairwise(running):
        assert earlier["completed"] <= later["completed"], "completed became less"
        assert earlier["failed"] <= later["failed"], "failed became less"
    assert running[-1]["completed"] > 0, "nothing was completed"


@case("5.4", "a batch without a success is completed")
def completed_without_a_success(server: Subject) -> None:
    batch = server.runs["hopeless"].ended()
    same(
        (batch["status"], batch["request_counts"]),
        ("completed", {"total": 2, "completed": 0, "failed": 2}),
    )


@case(
    "5.5",
    "the answer to a cancel: {name}",
    rows=[{"name": "cancelled"}, {"name": "cancelled early"}],
)
def the_answer_to_a_cancel(server: Subject, name: str) -> None:
    run = run_of(server, name)
    assert run.cancelled is not None, "it was not cancelled"
    batch = ok(run.cancelled)
    assert batch["status"] in {"cancelling", "cancelled"}, f"the status is {batch['status']}"
    assert batch["cancelling_at"] is not None, "cancelling_at is null"
    same(batch["id"], run.created["id"], "the id")


@case("5.5", "the SDK cancels")
def the_sdk_cancels(server: Subject) -> None:
    batch = server.sdk.batches.cancel(run_of(server, "cancelled").ended()["id"])
    same(batch.status, "cancelled", "the status")


@case("5.6", "what ran when it was cancelled is kept", also=["6.10"])
def what_ran_is_kept(server: Subject) -> None:
    run = run_of(server, "cancelled")
    batch = run.ended()
    assert run.cancelled is not None, "it was not cancelled"
    at_cancel = ok(run.cancelled)["request_counts"]["completed"]
    assert batch["request_counts"]["completed"] >= at_cancel, "finished lines were lost"
    same(len(run.outputs()), batch["request_counts"]["completed"], "the number of output lines")


@case("5.7", "a cancel right after the creation")
def a_cancel_at_once(server: Subject) -> None:
    batch = run_of(server, "cancelled early").ended()
    same((batch["status"], batch["request_counts"]["completed"]), ("cancelled", 0))


@case("5.7", "a cancel of a batch whose file is not there")
def a_cancel_of_nothing(server: Subject) -> None:
    batch = server.create()
    response = server.http.post(f"batches/{batch['id']}/cancel")
    ended = server.ended(batch["id"])
    wanted = ("cancelled", 200) if ended["status"] == "cancelled" else ("failed", 409)
    same((ended["status"], response.status_code), wanted)


@case("5.8", "read again: {name}", rows=_ROWS)
def read_again(server: Subject, name: str) -> None:
    batch = run_of(server, name).ended()
    same(server.batch(batch["id"]), batch, "the batch")
    [listed] = [one for one in _all(server) if one["id"] == batch["id"]]
    same(listed, batch, "the batch in the list")


def _all(server: Subject) -> list[dict[str, Any]]:
    return [batch.model_dump(mode="json") for batch in server.sdk.batches.list(limit=100)]


@case("5.10", "a batch whose window closes", also=["1.10"])
def a_window_that_closes(server: Subject) -> None:
    batch = run_of(server, "expired").ended()
    same(batch["status"], "expired", "the status")
    assert batch["expired_at"] >= batch["expires_at"], "it expired before its window closed"
    conforms(Batch, batch)


@case(
    "5.11",
    "counts and lines of a batch that is {name}",
    also=["6.4", "6.10"],
    rows=[{"name": "cancelled"}, {"name": "expired"}],
)
def what_never_ran(server: Subject, name: str) -> None:
    run = run_of(server, name)
    counts = run.ended()["request_counts"]
    never_ran = [line for line in run.errors() if line["response"] is None]
    ran = [line for line in run.errors() if line["response"] is not None]
    same(counts["total"], MANY, "total")
    same(counts["completed"], len(run.outputs()), "completed")
    same(counts["failed"], len(ran), "failed")
    same(len(never_ran), MANY - counts["completed"] - counts["failed"], "lines that never ran")
    assert never_ran, "every line ran"
    assert counts["completed"], "no line ran"


@case(
    "5.12",
    "the sum of a batch that is {name}",
    rows=[{"name": n} for n in ("clean", "mixed", "hopeless")],
)
def the_sum(server: Subject, name: str) -> None:
    counts = server.runs[name].ended()["request_counts"]
    same(counts["completed"] + counts["failed"], counts["total"], "the sum")


@case("6.9", "ids and end in one answer: {name}", rows=_ROWS)
def ids_with_the_end(server: Subject, name: str) -> None:
    run = run_of(server, name)
    ends = [batch for batch in run.seen if batch["status"] in ENDED]
    for batch in [*ends, server.batch(run.created["id"])]:
        same(batch["output_file_id"], ends[0]["output_file_id"], "output_file_id")
        same(batch["error_file_id"], ends[0]["error_file_id"], "error_file_id")


@case("11.6", "usage before the end of a batch that is {name}", also=["2.19"], rows=_ROWS)
def no_usage_before_the_end(server: Subject, name: str) -> None:
    for batch in run_of(server, name).seen:
        if batch["status"] not in ENDED:
            same(batch["usage"], None, "usage")


@case("1.28", "the life of an output file")
def the_life_of_an_output(server: Subject) -> None:
    batch = server.runs["clean"].ended()
    file = ok(server.http.get(f"files/{batch['output_file_id']}"))
    same(file["expires_at"], file["created_at"] + OUTPUT_LIFE_SECONDS, "expires_at")
    assert file["created_at"] >= batch["created_at"], "the file is older than its batch"


@case(
    "1.38",
    "the life of an {which} file, unless told otherwise",
    rows=[{"which": "output"}, {"which": "error"}],
)
def the_usual_life_of_an_output(server: Subject, which: str) -> None:
    batch = server.runs["mixed"].ended()
    file = ok(server.http.get(f"files/{batch[which + '_file_id']}"))
    assert abs(file["expires_at"] - batch["completed_at"] - _MONTH_SECONDS) <= 60, (
        "it is not 30 days"
    )
