"""Named places between two durable writes where a process can be made to die, for tests of what it leaves.

Promises: nothing happens at them unless OVERNIGHT_FAILPOINT was set when the process began; no request,
file or setting of the database can switch one on; whoever passes the armed one is gone at once, by
SIGKILL, with no line of cleaning up.

    OVERNIGHT_FAILPOINT="finalize.output_file_written"     at the first passing
    OVERNIGHT_FAILPOINT="record.written:3"                 at the third
    OVERNIGHT_FAILPOINT="@/path/of/a/file"                 what the file says, read at each passing

Such a file holds the same, a line for each death in turn, and may be rewritten at any time. It is shared
by all processes: a line is gone once a process has died of it, so that whoever takes over does not.
"""

import fcntl
import os
import signal
from enum import StrEnum
from pathlib import Path


class Failpoint(StrEnum):
    """Every failpoint. Those that name an act in progress (`…ing`) lie within its transaction."""

    UPLOAD_OPENED = "upload.opened"
    UPLOAD_CHUNKS_STORED = "upload.chunks_stored"
    UPLOAD_PUBLISHING = "upload.publishing"
    UPLOAD_PUBLISHED = "upload.published"
    PART_ADDING = "part.adding"
    COMPLETE_PARTS_READ = "complete.parts_read"
    COMPLETE_ENDING = "complete.ending"
    COMPLETE_MOVING_CHUNKS = "complete.moving_chunks"
    COMPLETE_FORGETTING_PARTS = "complete.forgetting_parts"
    COMPLETE_DONE = "complete.done"

    KEY_CLAIMING = "key.claiming"
    CREATE_ADDING = "create.adding"
    CREATE_BEFORE_BELL = "create.before_bell"
    CANCEL_MOVING = "cancel.moving"
    CANCEL_BEFORE_BELL = "cancel.before_bell"
    RESUME_BEFORE_BELL = "resume.before_bell"
    RETRY_LINES_COPIED = "retry.lines_copied"
    RETRY_ADDING = "retry.adding"
    RETRY_BEFORE_BELL = "retry.before_bell"
    DELETE_HIDDEN = "delete.hidden"

    VALIDATE_CLAIMED = "validate.claimed"
    VALIDATE_READING = "validate.reading"
    VALIDATE_CHECKED = "validate.checked"
    VALIDATE_MOVING = "validate.moving"
    VALIDATE_ADDING_SHARDS = "validate.adding_shards"
    VALIDATE_BEFORE_BELL = "validate.before_bell"
    VALIDATE_FAILING = "validate.failing"
    VALIDATE_FAILED = "validate.failed"

    CLAIM_LEASING = "claim.leasing"
    CLAIM_LEASED = "claim.leased"
    RUN_ANSWERED = "run.answered"
    RECORD_BEFORE_WRITE = "record.before_write"
    RECORD_WRITTEN = "record.written"
    CLOSE_BEFORE = "close.before"
    CLOSE_CLOSING = "close.closing"
    CLOSE_CLOSED = "close.closed"
    CLOSE_BATCH_MOVED = "close.batch_moved"

    FINALIZE_CLAIMED = "finalize.claimed"
    FINALIZE_WRITING_ANSWERED = "finalize.writing_answered"
    FINALIZE_WRITING_UNANSWERED = "finalize.writing_unanswered"
    FINALIZE_CLOSING_OUTPUT = "finalize.closing_output"
    FINALIZE_CLOSING_ERRORS = "finalize.closing_errors"
    FINALIZE_MOVING = "finalize.moving"
    FINALIZE_DROPPING_RESULTS = "finalize.dropping_results"
    FINALIZE_DROPPING_SHARDS = "finalize.dropping_shards"
    FINALIZE_DONE = "finalize.done"
    END_BEFORE_OUTBOX = "end.before_outbox"

    NOTIFY_CLAIMED = "notify.claimed"
    NOTIFY_SENT = "notify.sent"
    NOTIFY_RECORDED = "notify.recorded"

    SWEEP_EXPIRING = "sweep.expiring"
    SWEEP_RESTED = "sweep.rested"
    SWEEP_BEFORE_BELL = "sweep.before_bell"
    SWEEP_REMOVING_PART = "sweep.removing_part"
    PURGE_BEFORE_REMOVING = "purge.before_removing"
    PURGE_REMOVING_CHUNKS = "purge.removing_chunks"


def pass_failpoint(point: Failpoint) -> None:
    """Go on, unless this process was started to die here."""
    if _armed is not None:
        _armed.pass_by(point)


def after_passing(wishes: str, point: Failpoint) -> tuple[str, bool]:
    """What is left of the wishes after passing a point, and whether it is one to die at."""
    first, _, later = wishes.partition("\n")
    name, _, passings = first.partition(":")
    if name.strip() != point:
        return wishes, False
    left = int(passings or 1) - 1
    return (f"{point}:{left}\n{later}", False) if left else (later, True)


class _Armed:
    """What OVERNIGHT_FAILPOINT said when this process began."""

    def __init__(self, wish: str) -> None:
        self._file = Path(wish[1:]) if wish.startswith("@") else None
        self._wish = wish
        # What is no failpoint, no number or no file is refused at once.
        if self._file is None:
            after_passing(wish, Failpoint(wish.partition(":")[0]))
        else:
            self._file.read_bytes()

    def pass_by(self, point: Failpoint) -> None:
        if self._file is None:
            self._wish, is_last = after_passing(self._wish, point)
        else:
            is_last = _pass_in_file(self._file, point)
        if is_last:
            os.write(2, f"failpoint {point}: killed\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)


def _pass_in_file(path: Path, point: Failpoint) -> bool:
    with path.open("r+", encoding="utf-8") as file:
        # Of several processes that pass at the same time, one dies.
        fcntl.flock(file, fcntl.LOCK_EX)
        wishes = file.read()
        left, is_last = after_passing(wishes, point)
        if left != wishes:
            file.seek(0)
            file.truncate()
            file.write(left)
    return is_last


_wish = os.environ.get("OVERNIGHT_FAILPOINT")
_armed = _Armed(_wish) if _wish else None
