"""A scripted model server that remembers every call it saw: the witness of a chaos run.

It runs in a thread of the test's process, so no fault that hits the engine reaches it. A call is in
the list from the moment its request was read, however it ends: also one whose caller died.
"""

import asyncio
import json
import random
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from aiohttp import web

_JOIN_SECONDS = 10
_TRICKLED_PIECES = 40
HUGE_BYTES = 8 * 1024 * 1024


class Manner(StrEnum):
    """How a call is answered."""

    WELL = "well"
    REFUSING = "refusing"
    """503, as a proxy does whose server is away."""
    FAILING = "failing"
    """500."""
    CLOSING = "closing"
    """The connection is cut without a word."""
    HANGING = "hanging"
    TRICKLING = "trickling"
    """A good answer, a few bytes at a time."""
    CUTTING = "cutting"
    """The connection is cut in the middle of the body."""
    BROKEN_JSON = "broken_json"
    HTML = "html"
    """200 with a page."""
    ERROR_BODY = "error_body"
    """200 with `error` in the body."""
    HUGE = "huge"
    """A body above the limit."""
    REDIRECTING = "redirecting"
    """307 to a place that nobody may ask."""


@dataclass(slots=True)
class Call:
    """One call: whose it was, and what came of it."""

    key: str
    question: str
    has_ended: bool = False
    is_answered: bool = False
    """A good answer was handed to the network."""


@dataclass
class ScriptedUpstream:
    """A model server on a port of its own; its fields may be changed at any time."""

    latency_seconds: float = 0.1
    manner: Manner = Manner.WELL
    share: float = 1.0
    """Of the calls, how many are answered in that manner; the others are answered well."""
    url: str = ""
    calls: list[Call] = field(default_factory=list)
    strayed: list[str] = field(default_factory=list)
    """Paths that were asked for and that no batch asks for."""
    _port: int = 0
    _runner: web.AppRunner | None = None

    def __post_init__(self) -> None:
        """Start the thread; nothing listens before `start`."""
        self._loop = asyncio.new_event_loop()
        self._random = random.Random(1)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Listen; after a `stop`, on the same port again."""
        self._do(self._start())

    def stop(self) -> None:
        """Cut every connection and refuse new ones."""
        self._do(self._stop())

    def close(self) -> None:
        """Stop, and end the thread."""
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_JOIN_SECONDS)
        self._loop.close()

    def be_well(self) -> None:
        """Answer every call well from now on."""
        self.manner, self.share, self.latency_seconds = Manner.WELL, 1.0, 0.1

    def forget(self) -> None:
        """Forget all calls."""
        self.calls.clear()
        self.strayed.clear()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_JOIN_SECONDS)

    async def _start(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_get("/v1/models", _list_models)
        app.router.add_route("*", "/{rest:.*}", self._stray)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=1024)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}/v1"

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _stray(self, request: web.Request) -> web.Response:
        if request.path != "/metrics":
            self.strayed.append(request.path)
        return web.Response(status=404)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        question = json.loads(await request.read())["messages"][0]["content"]
        call = Call(request.headers.get("idempotency-key", "-"), question)
        self.calls.append(call)
        try:
            manner = self.manner if self._random.random() < self.share else Manner.WELL
            if manner is Manner.HANGING:
                await asyncio.sleep(3600)
            await asyncio.sleep(self.latency_seconds * self._random.uniform(0.5, 1.5))
            return await self._reply(request, call, manner)
        finally:
            call.has_ended = True

    async def _reply(self, request: web.Request, call: Call, manner: Manner) -> web.StreamResponse:
        good = json.dumps(answer_to(call.question)).encode()
        match manner:
            case Manner.REFUSING | Manner.FAILING:
                status = 503 if manner is Manner.REFUSING else 500
                return web.json_response({"error": {"message": "no"}}, status=status)
            case Manner.CLOSING:
                return _cut(request)
            case Manner.CUTTING:
                response = web.StreamResponse(headers={"content-length": str(len(good))})
                await response.prepare(request)
                await response.write(good[: len(good) // 2])
                return _cut(request)
            case Manner.BROKEN_JSON:
                return web.Response(body=good[:-7], content_type="application/json")
            case Manner.HTML:
                return web.Response(text="<html>Welcome</html>", content_type="text/html")
            case Manner.ERROR_BODY:
                call.is_answered = True
                return web.json_response({"error": {"message": "no", "code": "overloaded"}})
            case Manner.HUGE:
                return web.Response(body=b" " * HUGE_BYTES + good, content_type="application/json")
            case Manner.REDIRECTING:
                return web.Response(status=307, headers={"location": "/elsewhere"})
            case Manner.TRICKLING:
                call.is_answered = True
                return await _trickle(request, good)
            case _:
                call.is_answered = True
                return web.Response(body=good, content_type="application/json")


def answer_to(question: str) -> dict[str, Any]:
    """The good answer, whose text and usage are this question's alone."""
    prompt, completion = usage_of(question)
    return {
        "id": "chatcmpl-chaos",
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": f"to {question}"}}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }


def usage_of(question: str) -> tuple[int, int]:
    """The tokens of a question and of its answer, which differ from line to line."""
    number = int(question.rsplit(maxsplit=1)[-1])
    return 1 + number % 13, 1 + number % 7


async def _list_models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


async def _trickle(request: web.Request, body: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-length": str(len(body))})
    await response.prepare(request)
    step = max(1, len(body) // _TRICKLED_PIECES)
    for start in range(0, len(body), step):
        await response.write(body[start : start + step])
        await asyncio.sleep(0.03)
    return response
