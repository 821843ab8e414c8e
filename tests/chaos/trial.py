"""One run of one scenario: a batch, a fault in the middle of it, its end, and what was seen."""

import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import psycopg

from models.ids import request_id
from tests.chaos import ledger
from tests.chaos.auditor import Evidence
from tests.chaos.ledger import Standing
from tests.chaos.system import System, until
from tests.factories import input_file

# `withdrawn` is cancelled while it is validated.
STAGES = ("validating", "withdrawn", "running", "finalizing", "cancelling", "expiring")
_REACH_SECONDS = 60
_LATENCY_SECONDS = 0.1


@dataclass
class Trial:
    """What a fault works with. It creates the batch, brings it to a stage, and says when it hit."""

    system: System
    rng: random.Random
    lines: int
    stage: str
    connection: psycopg.Connection[Any]
    batch_id: str = ""
    stage_hit: str = ""
    """Where the batch really stood when the fault hit."""
    recorded: set[int] = field(default_factory=set)
    """Lines whose result the database held then."""
    in_flight: int = 0
    takeover_seconds: float | None = None
    standstill_seconds: float = 0.0
    """The longest time without progress between the end of the fault and that of the batch."""
    complaints: list[str] = field(default_factory=list)
    _healed: bool = False
    _last: Standing | None = None
    _since: float = 0.0
    _keys: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A word that no other run uses."""
        return f"chaos-{id(self)}-{self.rng.getrandbits(64):x}"

    def prepare(self) -> None:
        """Make the upstream as slow as the stage needs it, and create the batch."""
        upstream = self.system.upstream
        # So slow that the window closes first, where that is the point; nobody waits for long answers.
        upstream.latency_seconds = 2.0 if self.stage == "expiring" else _LATENCY_SECONDS
        self.create(window="10s" if self.stage == "expiring" else "24h")

    def upload(self, key: str) -> str:
        """Upload the input with a key that makes it safe to repeat; the file's id."""
        files = {"file": ("in.jsonl", input_file(self.lines))}
        response = self.system.ask(
            "POST",
            "files",
            data={"purpose": "batch"},
            files=files,
            headers={"idempotency-key": key},
        )
        return str(self._expect(response)["id"])

    def create(self, *, window: str = "24h", key: str | None = None) -> str:
        """Upload and create, as a client that repeats what got no answer."""
        key = key or self.name
        return self.create_from(self.upload(key), window=window, key=key)

    def create_from(self, file_id: str, *, window: str = "24h", key: str) -> str:
        """Create the batch of an uploaded file."""
        body = {
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": window,
        }
        response = self.system.ask("POST", "batches", json=body, headers={"idempotency-key": key})
        self.batch_id = str(self._expect(response)["id"])
        self._keys = {request_id(self.batch_id, no): no for no in range(1, self.lines + 1)}
        return self.batch_id

    def cancel(self) -> None:
        """Ask for the end."""
        self.system.ask("POST", f"batches/{self.batch_id}/cancel")

    def standing(self) -> Standing:
        """Where the batch stands, past the API and past any outage of the database."""
        while True:
            try:
                standing = ledger.standing_of(self.connection, self.batch_id)
            except psycopg.OperationalError:
                self.connection.close()
                self.connection = self.reconnect()
            else:
                self._note_progress(standing)
                return standing

    def _note_progress(self, now: Standing) -> None:
        last = self._last
        if last is not None and (now.status, now.recorded) == (last.status, last.recorded):
            return
        moment = time.monotonic()
        if last is not None and self._healed:
            self.standstill_seconds = max(self.standstill_seconds, moment - self._since)
        self._last, self._since = now, moment

    def reconnect(self) -> psycopg.Connection[Any]:
        """A new connection, once there is one to be had."""
        opened: list[psycopg.Connection[Any]] = []

        def can() -> bool:
            try:
                opened.append(self.system.connect())
            except psycopg.OperationalError:
                return False
            return True

        until("the database answers", can, seconds=60, pause_seconds=0.1)
        return opened[0]

    def reach(self) -> None:
        """Let the batch come to a random moment of its stage."""
        rng = self.rng
        match self.stage:
            case "validating":
                time.sleep(rng.uniform(0, 0.15))
            case "withdrawn":
                time.sleep(rng.uniform(0, 0.05))
                self.cancel()
                time.sleep(rng.uniform(0, 0.05))
            case "running":
                self.reach_lines(rng.uniform(0.02, 0.8))
            case "finalizing":
                is_there = lambda: self.standing().status not in {"validating", "in_progress"}  # noqa: E731
                until("finalizing", is_there, seconds=_REACH_SECONDS, pause_seconds=0.005)
                time.sleep(rng.uniform(0, 0.05))
            case "cancelling":
                self.reach_lines(rng.uniform(0.02, 0.6))
                self.cancel()
                time.sleep(rng.uniform(0, 0.3))
            case "expiring":
                self._reach_expiry(rng.uniform(-0.5, 0.5))
            case _:
                raise ValueError(self.stage)

    def reach_lines(self, share: float) -> None:
        """Let so many of the lines be recorded."""
        count = max(1, int(share * self.lines))

        def is_there() -> bool:
            standing = self.standing()
            return standing.recorded >= count or standing.status not in {
                "validating",
                "in_progress",
            }

        until(f"{count} lines", is_there, seconds=_REACH_SECONDS)

    def _reach_expiry(self, offset_seconds: float) -> None:
        query = (
            "SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM batches WHERE id = %s"
        )
        row = self.connection.execute(query, [self.batch_id]).fetchone()
        assert row is not None
        time.sleep(max(0.0, float(row[0]) + offset_seconds))

    def hit(self) -> Standing:
        """Note where the batch stands at the moment of the fault."""
        standing = self.standing()
        self.stage_hit = self.stage_hit or standing.status
        self.recorded |= ledger.recorded_lines(self.connection, self.batch_id)
        return standing

    def count_in_flight(self, process: psutil.Process | None = None, *, slots: int = 0) -> int:
        """Calls that the upstream was asked for and whose results are not in the database.

        Of a process: those of the lines that it holds a lease on, for it calls no others. With `slots`:
        of a frozen one, which may have begun calls that it puts on the wire when it wakes. Nobody
        outside can count those, but there are no more calls without an answer than it has slots.
        """
        if self.standing().has_ended:
            return 0
        calls = self._calls()
        called = {self._keys[call.key] for call in calls}
        if process is not None:
            called &= ledger.lines_held_by(self.connection, self.batch_id, process.pid)
        called -= ledger.recorded_lines(self.connection, self.batch_id)
        answered = called & {self._keys[call.key] for call in calls if call.is_answered}
        return len(answered) + max(len(called - answered), slots)

    def watch_in_flight(self, process: psutil.Process | None = None, *, seconds: float) -> None:
        """Count the calls in flight for a while; what counts is the most that there were at a time."""
        deadline = time.monotonic() + seconds
        most = self.count_in_flight(process)
        while time.monotonic() < deadline and not self.standing().has_ended:
            most = max(most, self.count_in_flight(process))
            time.sleep(0.02)
        self.in_flight += most

    def kill_counting(self, process: psutil.Process) -> Standing:
        """Kill a process that makes calls, and count its calls in flight: it is frozen meanwhile."""
        process.suspend()
        try:
            # What it had put on the wire by now is read.
            time.sleep(0.05)
            standing = self.hit()
            self.in_flight += self.count_in_flight(process)
        finally:
            process.kill()
        return standing

    def time_takeover(self, before: Standing, *, dead: int, since: float | None = None) -> None:
        """Measure how long it takes until each shard of the dead is somebody else's or done.

        What happened before this is called is not seen; `since` then gives a time that is too long.
        """
        began = time.monotonic() if since is None else since
        orphans = {no: who for no, who in before.holders.items() if f":{dead}:" in who}

        def goes_on() -> bool:
            now = self.standing()
            if now.has_ended:
                return True
            return all(now.holders.get(no) != who for no, who in orphans.items())

        until("somebody takes over", goes_on, seconds=60, pause_seconds=0.05)
        self.takeover_seconds = time.monotonic() - began

    def heal(self) -> None:
        """The fault is over: from now on a standstill is the engine's own."""
        self._healed, self._since = True, time.monotonic()

    def wait_for_end(self, *, seconds: float) -> None:
        """Wait for a final status in the database."""
        until(
            f"{self.batch_id} has ended",
            lambda: self.standing().has_ended,
            seconds=seconds,
            pause_seconds=0.05,
        )

    def evidence(self) -> Evidence:
        """Everything that is known of the batch now."""
        batch = self._expect(self.system.ask("GET", f"batches/{self.batch_id}"))
        standing = self.standing()
        calls, counted, answered = self._calls(), Counter[int](), set[int]()
        for call in calls:
            counted[self._keys[call.key]] += 1
            if call.is_answered:
                answered.add(self._keys[call.key])
        upstream = self.system.upstream
        strangers = [call.key for call in upstream.calls if call.key not in self._keys]
        row = ledger.row_of(self.connection, self.batch_id)
        # By the contract, nothing at all is done of a batch that is cancelled before it is validated.
        is_untouched = self.stage == "withdrawn" and row["total"] == 0
        return Evidence(
            lines=0 if is_untouched else self.lines,
            batch=batch,
            outputs=self.read_lines(batch["output_file_id"]),
            errors=self.read_lines(batch["error_file_id"]),
            row=row,
            rows_left=standing.recorded + standing.shards,
            calls=counted,
            answered=answered,
            in_flight=self.in_flight,
            recorded=self.recorded,
            strays=[*upstream.strayed, *strangers],
            complaints=[*self.complaints, *self.system.complaints],
        )

    def read_lines(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of a file; none if there is no file."""
        if file_id is None:
            return []
        response = self.system.ask("GET", f"files/{file_id}/content")
        return [json.loads(line) for line in response.text.splitlines()]

    def _calls(self) -> list[Any]:
        return [call for call in list(self.system.upstream.calls) if call.key in self._keys]

    def _expect(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code != httpx.codes.OK:
            self.complaints.append(f"{response.status_code}: {response.text[:200]}")
        answer: dict[str, Any] = response.json()
        return answer
