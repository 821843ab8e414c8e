"""What the tests of running shards share: gates to hold calls at, and how a run is brought to its end."""

import asyncio
import json
from dataclasses import replace
from typing import Any

from models import Batch
from models.lifecycle import BatchStatus
from tests.factories import input_line, json_lines
from tests.fixtures.runtime import (
    Reply,
    Request,
    ScriptedServer,
    in_flight,
    reload,
    results_of,
    rings,
    run_settings,
    run_shards,
    started_batch,
)
from worker.runtime import Runtime

GOOD = b'{"object":"chat.completion","usage":{"prompt_tokens":1,"completion_tokens":1}}'


def question(request: Request) -> str:
    """What a request asks; names its line."""
    text: str = json.loads(request.body)["messages"][0]["content"]
    return text


async def finished(runtime: Runtime, batch: Batch) -> dict[int, dict[str, Any]]:
    """Run what can be run; the batch must be done with it. The results by line number."""
    await asyncio.wait_for(run_shards(runtime), timeout=30)
    assert (await reload(runtime.database, batch)).status == BatchStatus.FINALIZING
    assert rings(runtime)[-1] == ("finalize", batch.pk)
    assert in_flight(runtime) == 0
    return await results_of(runtime.database, batch)


async def run_one(runtime: Runtime, *lines: object) -> dict[str, Any]:
    """Run a batch of one line; its output line."""
    batch = await started_batch(runtime, json_lines(*(lines or (input_line(),))))
    return (await finished(runtime, batch))[1]


def with_settings(runtime: Runtime, **changes: Any) -> Runtime:
    """The same worker with other settings."""
    return replace(runtime, run_settings=run_settings(**changes))


POISON = '"question 3"'


class Gate:
    """A script that lets the first so many calls through and holds the others until it opens."""

    def __init__(self, server: ScriptedServer, *, lets_through: int) -> None:
        self.held = 0
        self.held_reply = Reply(body=GOOD)
        self._lets_through = lets_through
        self._is_open = asyncio.Event()
        server.script = self._answer

    def open(self) -> None:
        self._is_open.set()

    async def _answer(self, _: Request) -> Reply:
        if self._lets_through > 0:
            self._lets_through -= 1
        else:
            self.held += 1
            await self._is_open.wait()
            return self.held_reply
        return Reply(body=GOOD)
