"""Batches that many cases look at: started together, watched to their ends by one thread.

What each answer said on the way is kept, so that a case can ask how a batch came to its end.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.conformance.kit.expect import ok
from tests.conformance.kit.server import CHAT, ENDED, INPUTS, PATIENCE_SECONDS, Server, json_lines

Act = Callable[["Run"], None]
_POLL_SECONDS = 0.2
MANY = 2500
"""Lines of the batches that are to be caught in mid-run."""
SHORT_WINDOW = "10s"
METADATA = {"suite": "conformance", "ключ": "значение"}
OUTPUT_LIFE_SECONDS = 7200


@dataclass
class Run:
    """One batch, from its creation to its end."""

    name: str
    server: Server
    lines: bytes
    options: Mapping[str, Any] = field(default_factory=dict)
    act: Act | None = None
    """What is done at each look; it may cancel the batch."""

    created: dict[str, Any] = field(default_factory=dict)
    seen: list[dict[str, Any]] = field(default_factory=list)
    cancelled: httpx.Response | None = None
    failure: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Upload and create."""
        try:
            options = dict(self.options)
            file_id = options.pop("input_file_id", None)
            if file_id is None:
                file_id = self.server.upload(self.lines)["id"]
            self.created = self.server.create(file_id, **options)
            self.seen.append(self.created)
            if self.act is not None:
                self.act(self)
        except Exception as error:  # noqa: BLE001  # told to every case that asks for this batch
            self.fail(error)

    def look(self) -> None:
        """See where it is."""
        try:
            batch = self.server.batch(self.created["id"])
            if batch != self.seen[-1]:
                self.seen.append(batch)
            if batch["status"] in ENDED:
                self.done.set()
            elif self.act is not None:
                self.act(self)
        except Exception as error:  # noqa: BLE001  # told to every case that asks for this batch
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Nothing will come of it."""
        self.failure = error
        self.done.set()

    def cancel(self) -> None:
        """Cancel it, once."""
        if self.cancelled is None:
            self.cancelled = self.server.http.post(f"batches/{self.created['id']}/cancel")
            ok(self.cancelled)

    def ended(self) -> dict[str, Any]:
        """The batch at its end."""
        assert self.done.wait(PATIENCE_SECONDS), f"'{self.name}' did not end: {self.seen[-1:]}"
        if self.failure is not None:
            raise AssertionError(f"the batch '{self.name}': {self.failure}")
        return self.seen[-1]

    def outputs(self) -> list[dict[str, Any]]:
        """The lines of its output file."""
        return self.server.lines(self.ended()["output_file_id"])

    def errors(self) -> list[dict[str, Any]]:
        """The lines of its error file."""
        return self.server.lines(self.ended()["error_file_id"])


class Runs:
    """The batches, by name; all are begun at once."""

    def __init__(self, server: Server) -> None:
        self.by_name = {run.name: run for run in _plan(server)}
        self.begun = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        for run in self.by_name.values():
            run.start()
        self._thread.start()

    def __getitem__(self, name: str) -> Run:
        return self.by_name[name]

    def close(self) -> None:
        """Watch no longer."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while waiting := [run for run in self.by_name.values() if not run.done.is_set()]:
            for run in waiting:
                run.look()
            if self._stop.wait(_POLL_SECONDS):
                return


def refused_line(server: Server, custom_id: str) -> dict[str, Any]:
    """A line that passes validation and that its endpoint refuses."""
    return server.line(custom_id, messages=[])


def _at_once(run: Run) -> None:
    run.cancel()


def _in_mid_run(run: Run) -> None:
    if run.seen[-1]["request_counts"]["completed"] > 0:
        run.cancel()


def _plan(server: Server) -> list[Run]:
    good = [server.line(f"r-{number}") for number in range(5)]
    bad = [refused_line(server, f"bad-{number}") for number in range(2)]
    many = json_lines(*(server.line(f"r-{number}") for number in range(MANY)))
    # The long ones first: the others run beside them.
    plan = [
        Run("expired", server, many, {"completion_window": SHORT_WINDOW}),
        Run("cancelled", server, many, act=_in_mid_run),
        Run("cancelled early", server, many, act=_at_once),
        Run(
            "clean",
            server,
            json_lines(*good),
            {
                "metadata": METADATA,
                "output_expires_after": {"anchor": "created_at", "seconds": OUTPUT_LIFE_SECONDS},
            },
        ),
        Run("mixed", server, json_lines(*good, *bad)),
        Run("hopeless", server, json_lines(*bad)),
        Run("failed", server, json_lines(good[0], {}, good[1])),
        Run("no file", server, b"", {"input_file_id": "file-nothing"}),
    ]
    for endpoint in INPUTS:
        lines = [server.line(f"r-{number}", endpoint) for number in range(2)]
        if endpoint != CHAT:
            plan.append(Run(endpoint, server, json_lines(*lines), {"endpoint": endpoint}))
    return plan
