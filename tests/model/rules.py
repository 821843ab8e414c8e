"""What must hold of every step, whatever came before it. `check` says what does not, if anything."""

from collections.abc import Iterator
from itertools import chain

from models.lifecycle import ALLOWED, BatchStatus
from tests.fixtures.runtime import lines_of
from tests.model.steps import TOKENS_A_LINE, Outcome, Run, Step
from tests.model.world import FAILS, LINES, Moment, ShardView, View, World

_ALL_LINES = frozenset(range(1, LINES + 1))


async def check(
    world: World, before: Moment, step: Step, outcome: Outcome, after: Moment
) -> list[str]:
    """The rules that this step has broken."""
    faults = chain(
        _of_the_ended(before, after),
        _of_results(before, after),
        _of_counters(after.view),
        _of_moves(before.view, after.view),
        _of_leases(before, step, outcome, after),
    )
    found = list(faults)
    if after.view.is_final and not before.view.is_final:
        found += await _of_the_end(world, before, after)
    return found


def is_held_by(view: View, run: Run) -> bool:
    """Whether this claim is the shard's last, and the shard not given back."""
    shard = view.shard(run.shard_no)
    return shard is not None and shard.state == "running" and shard.claims == run.claim_no


def _of_the_ended(before: Moment, after: Moment) -> Iterator[str]:
    if before.view.is_final and before.rows != after.rows:
        yield "a batch that had ended, or its files, changed"


def _of_results(before: Moment, after: Moment) -> Iterator[str]:
    earlier = {row["line_no"]: row["line"] for row in before.table("results")}
    rows = [(row["line_no"], row["line"]) for row in after.table("results")]
    if len(rows) != len(dict(rows)):
        yield "a line has two results"
    if after.view.is_final:
        if rows or after.view.shards:
            yield "an ended batch still has results or shards"
    elif any(dict(rows).get(line_no) != line for line_no, line in earlier.items()):
        yield "a result was changed or lost"


def _of_counters(view: View) -> Iterator[str]:
    succeeded = dict(view.results)
    for shard in view.shards:
        answers = [succeeded[line_no] for line_no in shard.lines if line_no in succeeded]
        if (shard.succeeded, shard.failed) != (answers.count(True), answers.count(False)):
            yield f"shard {shard.no} counts other results than there are"
        if shard.total_tokens != TOKENS_A_LINE * len(answers):
            yield f"shard {shard.no} counts other tokens than there are"
        if shard.state == "done" and len(answers) != len(shard.lines):
            yield f"shard {shard.no} is done and has lines without a result"
    if not view.is_final and (view.completed, view.failed) != (0, 0):
        yield "a batch is counted before its end"


def _of_moves(before: View, after: View) -> Iterator[str]:
    if after.status != before.status:
        if BatchStatus(after.status) not in ALLOWED[BatchStatus(before.status)]:
            yield f"a batch went from {before.status} to {after.status}"
        if any(shard.lease == "live" for shard in before.shards) and after.is_final:
            yield "a batch ended while a lease on its lines was live"
    lines = sorted(chain.from_iterable(shard.lines for shard in after.shards))
    if after.status in {"in_progress", "finalizing"} and lines != sorted(_ALL_LINES):
        yield f"the shards have the lines {lines}"


def _of_leases(before: Moment, step: Step, outcome: Outcome, after: Moment) -> Iterator[str]:
    if step.name in {"record", "renew", "close"}:
        assert step.run is not None
        if not is_held_by(before.view, step.run) and before.rows != after.rows:
            yield "a worker that had lost its shard changed something"
    if step.name == "claim":
        yield from _of_a_claim(before.view, outcome.run, after.view)
    if step.name.startswith("begin") and outcome.stage and before.view.lease == "live":
        yield "a batch was taken from a live holder"


def _of_a_claim(before: View, run: Run | None, after: View) -> Iterator[str]:
    def is_runnable(shard: ShardView) -> bool:
        return shard.state == "queued" or shard.lease == "lapsed"

    is_open = before.status == "in_progress" and not before.is_window_closed
    if run is None:
        if is_open and any(is_runnable(shard) for shard in before.shards):
            yield "nothing was claimed, although there was a runnable shard"
        return
    shard = before.shard(run.shard_no)
    if not is_open or shard is None or not is_runnable(shard):
        yield "a shard was claimed that was not to be had"
    elif run.lines != frozenset(shard.lines) - before.answered:
        yield "a claim gave other lines than those without a result"
    elif not is_held_by(after, run):
        yield "a claim left no lease"


async def _of_the_end(world: World, before: Moment, after: Moment) -> list[str]:
    [batch] = after.table("batches")
    output = await lines_of(world.database, batch["output_file_id"])
    errors = await lines_of(world.database, batch["error_file_id"])
    was, view = before.view, after.view
    answered = {row["line_no"]: row["succeeded"] for row in before.table("results")}
    told = sorted(line["custom_id"] for line in output + errors)
    recorded = {bytes.fromhex(row["line"][2:]) for row in before.table("results")}
    kept = {line["answer"] for line in output + errors if "answer" in line}
    status = _status_due(was)
    faults = {
        f"the files hold the lines {told}": told != [f"request-{no}" for no in sorted(_ALL_LINES)]
        and was.status != "cancelling",
        f"the files of a cancelled batch hold {told}": was.status == "cancelling"
        and told != [f"request-{no}" for shard in was.shards for no in sorted(shard.lines)],
        "the output file holds other lines than the good ones": {
            line["custom_id"] for line in output
        }
        != {f"request-{no}" for no, succeeded in answered.items() if succeeded},
        "an answer is not the one that was recorded": len(kept) != len(recorded)
        or not all(b'"answer": %d}' % answer in b"".join(recorded) for answer in kept),
        "a line that has an answer is told to have none": any(
            "answer" not in line for line in errors if line["custom_id"] == f"request-{FAILS}"
        )
        and FAILS in answered,
        f"the batch is {view.status} and not {status}": view.status != status,
        "the batch counts other lines than it has": (view.completed, view.failed)
        != (list(answered.values()).count(True), list(answered.values()).count(False)),
        "the usage is another": view.total_tokens != TOKENS_A_LINE * len(answered),
        "a file is there without a line, or a line without a file": view.has_files
        != (bool(output), bool(errors)),
    }
    return [fault for fault, is_so in faults.items() if is_so]


def _status_due(was: View) -> str:
    if was.status == "cancelling":
        return "cancelled"
    is_whole = was.answered == _ALL_LINES
    # Only a closed window ends a batch that has lines without an answer.
    return "completed" if is_whole else "expired" if was.is_window_closed else "in_progress"
