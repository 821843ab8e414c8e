"""What changes, as it changes: an extension, and what the dashboard lives on.

Promises: however many listen, each process looks for each project once a second, and more rarely if a look
takes long, so that looking costs the database a twentieth of one connection's time at most; a look touches
open batches only, the newest few hundred; a listener that is slow misses states in between, never the
last.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    Select,
    bindparam,
    cast,
    func,
    select,
    union,
)
from sqlalchemy.engine import Row
from sqlalchemy.exc import SQLAlchemyError

from api.services.progress import standing_batches, told
from models import Batch, wire
from models.database import Database
from models.lifecycle import FINAL, BatchStatus
from models.project import Caller

log = logging.getLogger(__name__)

_EVERY_SECONDS = 1.0
_REST_FACTOR = 20
"""So many times as long as a look took passes before the next one."""

_MOST_REST_SECONDS = 10.0
_HEARTBEAT_SECONDS = 15.0
_LIFE_SECONDS = 300.0
"""Then a stream ends, and whoever comes back for the next one has to show a key that is still good."""

_MOST_BATCHES = 300
_NEW = timedelta(seconds=30)
_OPEN = [status.value for status in BatchStatus if status not in FINAL]

HELLO = b"retry: 500\nevent: hello\ndata: {}\n\n"
"""The first event: from now on nothing is missed, so what is read now needs no second look."""

_HEARTBEAT = b": still here\n\n"


class Listener:
    """Somebody who wants to hear; of each batch the newest state waits for them, and no other."""

    def __init__(self) -> None:
        self._waiting: dict[str, bytes] = {}
        self._has_news = asyncio.Event()
        self._is_over = False

    def tell(self, news: dict[str, bytes]) -> None:
        """Let them hear of these batches."""
        self._waiting.update(news)
        self._has_news.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._is_over = True
        self._has_news.set()

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events, until the end; a comment now and then, so that a dead client is noticed."""
        ends_at = time.monotonic() + _LIFE_SECONDS
        yield HELLO
        while not self._is_over and time.monotonic() < ends_at:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HEARTBEAT_SECONDS):
                    await self._has_news.wait()
            self._has_news.clear()
            news, self._waiting = self._waiting, {}
            yield b"".join(news.values()) or _HEARTBEAT


class Watches:
    """One watch for each project that somebody listens to."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watches: dict[int, _Watch] = {}
        self._is_closed = False

    async def listen(self, caller: Caller) -> AsyncIterator[bytes]:
        """The events of a project from now on.

        Raises:
            SQLAlchemyError: the database cannot be asked.
        """
        watch = self._watches.get(caller.project_pk)
        if watch is None:
            watch = self._watches[caller.project_pk] = _Watch(self._database, caller.project_pk)
        listener = Listener()
        watch.listeners.add(listener)
        try:
            await watch.begin(listener)
        except BaseException:
            self._forget(caller, watch, listener)
            raise
        if self._is_closed:
            listener.end()
        return self._heard(caller, watch, listener)

    async def _heard(
        self, caller: Caller, watch: "_Watch", listener: Listener
    ) -> AsyncIterator[bytes]:
        try:
            async for event in listener.events():
                yield event
        finally:
            self._forget(caller, watch, listener)

    def _forget(self, caller: Caller, watch: "_Watch", listener: Listener) -> None:
        watch.listeners.discard(listener)
        if not watch.listeners:
            watch.stop()
            if self._watches.get(caller.project_pk) is watch:
                del self._watches[caller.project_pk]

    def close(self) -> None:
        """Let every answer end: the process is about to."""
        self._is_closed = True
        for watch in self._watches.values():
            watch.stop()
            for listener in watch.listeners:
                listener.end()


class _Watch:
    """Looks at a project's batches, and tells all who listen what has changed."""

    def __init__(self, database: Database, project_pk: int) -> None:
        self.listeners: set[Listener] = set()
        self._database = database
        self._project_pk = project_pk
        self._seen: dict[int, tuple[Any, ...]] = {}
        self._open: dict[str, bytes] = {}
        self._first_look: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    async def begin(self, listener: Listener) -> None:
        """Tell a new listener of all open batches; what changes afterwards is told as well."""
        if self._first_look is None or self._has_failed(self._first_look):
            self._first_look = asyncio.create_task(self._look(is_first=True))
        await asyncio.shield(self._first_look)
        listener.tell(self._open)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_until_stopped())

    def stop(self) -> None:
        """Look no more."""
        for task in (self._first_look, self._looking):
            if task is not None:
                task.cancel()

    @staticmethod
    def _has_failed(task: asyncio.Task[None]) -> bool:
        return task.done() and (task.cancelled() or task.exception() is not None)

    async def _look_until_stopped(self) -> None:
        rest_seconds = _EVERY_SECONDS
        while True:
            await asyncio.sleep(rest_seconds)
            began = time.monotonic()
            try:
                await self._look()
            except (SQLAlchemyError, OSError) as error:
                log.info("no look at the batches: %s", type(error).__name__)
            took_seconds = time.monotonic() - began
            wanted_seconds = max(_EVERY_SECONDS - took_seconds, _REST_FACTOR * took_seconds)
            rest_seconds = min(wanted_seconds, _MOST_REST_SECONDS)

    async def _look(self, *, is_first: bool = False) -> None:
        async with self._database.statement() as session:
            rows = (await session.execute(self.statement())).all()
        seen = {row.Batch.pk: _gist(row) for row in rows}
        changed = [row for row in rows if self._seen.get(row.Batch.pk) != seen[row.Batch.pk]]
        # Those that have ended are looked at once more, and then left alone.
        self._seen = seen
        news = {row.Batch.id: _event(row) for row in changed}
        are_open = {row.Batch.id for row in rows if row.Batch.status not in FINAL}
        self._open = {id_: event for id_, event in (self._open | news).items() if id_ in are_open}
        if news and not is_first:
            for listener in self.listeners:
                listener.tell(news)

    def statement(self) -> Select[Any]:
        """What a look asks for: the open batches, those that were, and those that are new."""
        theirs = select(Batch.pk).where(Batch.project_pk == self._project_pk)
        newest = theirs.order_by(Batch.created_at.desc(), Batch.pk.desc()).limit(_MOST_BATCHES)
        # Written out, for only then Postgres knows that the index of open batches has them all.
        statuses: BindParameter[Any] = bindparam(
            "open", _OPEN, expanding=True, literal_execute=True
        )
        were_open = [pk for pk, gist in self._seen.items() if gist[0] not in FINAL]
        wanted = union(
            select(newest.where(Batch.status.in_(statuses)).subquery().c.pk),
            # A batch may begin and end between two looks.
            select(newest.where(Batch.created_at > func.now() - _NEW).subquery().c.pk),
            select(func.unnest(cast(were_open, ARRAY(BigInteger)))),
        )
        return standing_batches().where(Batch.pk.in_(wanted))


def _gist(row: Row[Any]) -> tuple[Any, ...]:
    """What is worth an event when it changes; seconds that pass are not."""
    batch: Batch = row.Batch
    counts = (row.succeeded, row.failed, row.in_flight, row.retries, batch.total)
    return (batch.status, batch.paused_at, batch.model, *counts)


def _event(row: Row[Any]) -> bytes:
    batch: Batch = row.Batch
    progress = told(row)
    counts = progress.request_counts
    shown = wire.Batch.of(batch, counts.completed, counts.failed)
    update = wire.BatchUpdate(batch=shown, progress=progress)
    return b"event: batch\ndata: " + update.model_dump_json().encode() + b"\n\n"
