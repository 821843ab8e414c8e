"""Which workers there are, and how they find the model servers: an extension.

Told from what each process leaves in Redis every two seconds, and keeps there for ten; it is for the eyes
only, so what cannot be read is left out.
"""

import asyncio
import time
from collections.abc import Iterable

import msgspec

from api.bell import Bell
from models.wire_extensions import UpstreamStanding, Worker, WorkerList

_ASK_SECONDS = 3.0


class _Model(msgspec.Struct):
    server: str
    model: str
    in_flight: int
    waiting: int
    limit: int | None
    is_open: bool
    paused_seconds: float
    succeeded: int
    refused: int
    failed: int
    latency_seconds: float


class _Told(msgspec.Struct):
    name: str
    kind: str
    in_flight: int
    room: int
    shards: int
    began_at: float
    is_draining: bool
    models: list[_Model]


async def standing(bell: Bell, *, servers: Iterable[str]) -> WorkerList:
    """All workers that were heard of, by name; model servers that nobody calls stand idle at the end."""
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            told = await asyncio.to_thread(bell.told_of_workers)
    except TimeoutError:
        told = []
    found = sorted(_readable(told), key=lambda each: (each.kind != "run", each.name))
    now = time.time()
    workers = [
        Worker(
            name=each.name,
            kind=each.kind,
            in_flight=each.in_flight,
            room=each.room,
            shards=each.shards,
            up_seconds=round(max(0.0, now - each.began_at), 1),
            is_draining=each.is_draining,
        )
        for each in found
    ]
    return WorkerList(data=workers, upstreams=_upstreams(found, servers))


def _readable(told: Iterable[bytes]) -> Iterable[_Told]:
    for each in told:
        try:
            yield msgspec.json.decode(each, type=_Told)
        except msgspec.DecodeError:
            # A worker of another version.
            continue


def _upstreams(found: Iterable[_Told], servers: Iterable[str]) -> list[UpstreamStanding]:
    standings: dict[tuple[str, str], UpstreamStanding] = {}
    seconds: dict[tuple[str, str], float] = {}
    for each in (model for worker in found for model in worker.models):
        label = (each.server, each.model)
        one = standings.setdefault(label, UpstreamStanding(server=each.server, model=each.model))
        one.in_flight += each.in_flight
        one.waiting += each.waiting
        one.succeeded += each.succeeded
        one.refused += each.refused
        one.failed += each.failed
        one.paused_seconds = max(one.paused_seconds, round(each.paused_seconds, 1))
        seconds[label] = seconds.get(label, 0.0) + each.latency_seconds
        if each.limit is not None:
            one.workers += 1
            # All workers agree about it; one that has not asked for long knows an older one.
            one.limit = max(one.limit or 0, each.limit)
            if each.is_open:
                one.breaker = "open"
    for label, one in standings.items():
        if one.succeeded:
            one.mean_latency_seconds = round(seconds[label] / one.succeeded, 3)
    known = {server for server, _ in standings}
    idle = [UpstreamStanding(server=name, model="") for name in servers if name not in known]
    return [*(standings[label] for label in sorted(standings)), *idle]
