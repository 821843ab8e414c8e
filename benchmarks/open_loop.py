"""Calls that come when they come, whatever became of those before: users, or programs that poll.

    python -m benchmarks.open_loop URL --rate 96 [--warm-up 20] [--seconds 30] [--interactive]

Calls begin at random moments (a Poisson process), and each is timed from the moment at which it was
due, so that waiting for a free connection, or for this process, counts. Ends after the time given, or
at SIGTERM, and prints what it has seen as JSON. A GET, or with `--interactive` a chat completion that
is marked as a person's.
"""

import argparse
import asyncio
import random
import signal
import statistics
from contextlib import suppress
from typing import Any

import aiohttp
import orjson
import uvloop

from benchmarks.inputs import MODEL

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hello, are you there?"}]}
HEADERS = {"content-type": "application/json", "x-traffic": "interactive"}


class Caller:
    """Makes calls and remembers how long they took."""

    def __init__(self, session: aiohttp.ClientSession, url: str, *, is_interactive: bool) -> None:
        self._session = session
        self._url = url
        self._body = orjson.dumps(BODY) if is_interactive else None
        self._headers = HEADERS if is_interactive else None
        self._method = "POST" if is_interactive else "GET"
        self.seconds: list[float] = []
        self.failed = 0

    async def call(self, due: float, *, is_counted: bool) -> None:
        """One call, that should have begun at `due`."""
        loop = asyncio.get_running_loop()
        try:
            async with self._session.request(
                self._method, self._url, data=self._body, headers=self._headers
            ) as answer:
                await answer.read()
            has_succeeded = answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            has_succeeded = False
        if not is_counted:
            return
        if has_succeeded:
            self.seconds.append(loop.time() - due)
        else:
            self.failed += 1


async def keep_calling(
    url: str,
    *,
    rate: float,
    warm_up_seconds: float,
    seconds: float,
    connections: int,
    is_interactive: bool,
    api_key: str,
) -> dict[str, Any]:
    """Call for so long, wait for the last answers, and tell what came after the warming up."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.call_later(warm_up_seconds + seconds, stopped.set)
    connector = aiohttp.TCPConnector(limit=connections)
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=timeout
    ) as session:
        caller = Caller(session, url, is_interactive=is_interactive)
        due = loop.time()
        began = due + warm_up_seconds
        async with asyncio.TaskGroup() as calls:
            while not stopped.is_set():
                due += random.expovariate(rate)
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), max(0, due - loop.time()))
                if not stopped.is_set():
                    calls.create_task(caller.call(due, is_counted=due >= began))
        lasted = loop.time() - began
    parts = statistics.quantiles(caller.seconds, n=100) if len(caller.seconds) > 1 else [0.0] * 99
    calls_counted = len(caller.seconds) + caller.failed
    return {
        "calls": calls_counted,
        "calls_per_second": calls_counted / max(lasted, 0.001),
        "failed": caller.failed,
        "p50_seconds": parts[49],
        "p99_seconds": parts[98],
    }


def main() -> None:
    """Run from the command line and print what was seen."""
    parser = argparse.ArgumentParser(description="Make calls at a rate.")
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, required=True, help="calls a second, on average")
    parser.add_argument("--warm-up", type=float, default=0, help="seconds not counted")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--connections", type=int, default=8, help="most at a time")
    parser.add_argument("--interactive", action="store_true", help="POST a chat completion")
    parser.add_argument("--api-key", default="")
    chosen = parser.parse_args()
    seen = uvloop.run(
        keep_calling(
            chosen.url,
            rate=chosen.rate,
            warm_up_seconds=chosen.warm_up,
            seconds=chosen.seconds,
            connections=chosen.connections,
            is_interactive=chosen.interactive,
            api_key=chosen.api_key,
        )
    )
    print(orjson.dumps(seen).decode())


if __name__ == "__main__":
    main()
