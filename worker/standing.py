"""What a process tells of itself every few seconds, for `GET /v1/workers`: that it is there, and how its
lanes stand.

It is left in Redis for ten seconds, so that a process that is gone is soon forgotten. Nothing depends on
it.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from worker.flow.lane import Lane
from worker.flow.lanes import Lanes
from worker.flow.tally import CallTally
from worker.runtime import Runtime

log = logging.getLogger(__name__)

_SECONDS = 2.0
_REFUSED = (429, 503)


async def keep_standing(runtime: Runtime) -> None:
    """Tell every two seconds, until cancelled."""
    began_at = time.time()
    while True:
        try:
            told = msgspec.json.encode(standing_of(runtime, began_at=began_at))
            await runtime.ring(runtime.doorbell.note_worker, runtime.owner, told.decode())
        except Exception as error:  # noqa: BLE001  # it is for the eyes only
            log.info("no word was left of this process: %s", type(error).__name__)
        await asyncio.sleep(_SECONDS)


def standing_of(runtime: Runtime, *, began_at: float) -> dict[str, Any]:
    """How this process stands. Called on its loop, where the lanes live."""
    dispatcher = runtime.dispatcher
    standing: dict[str, Any] = {
        "name": runtime.owner,
        "kind": "control" if dispatcher is None else "run",
        "in_flight": 0,
        "room": 0,
        "shards": 0,
        "began_at": began_at,
        "is_draining": runtime.draining.is_set(),
        "models": [],
    }
    if dispatcher is not None:
        standing |= {
            "in_flight": dispatcher.in_flight,
            "room": runtime.run_settings.max_in_flight,
            "shards": dispatcher.shards,
            "models": list(_models(dispatcher.lanes)),
        }
    return standing


def _models(lanes: Lanes) -> Iterator[dict[str, Any]]:
    """By server and model; models that the settings do not name stand together, as in the metrics."""
    grouped: dict[tuple[str, str], list[Lane]] = {label: [] for label in lanes.tallies.by_label}
    for lane in lanes:
        label = lanes.tallies.label_of(lane.key.server, lane.key.model)
        grouped.setdefault(label, []).append(lane)
    for (server, model), group in grouped.items():
        if not server:
            # Lines that no server may get.
            continue
        in_use = [lane for lane in group if lane.is_in_use]
        yield {
            "server": server,
            "model": model,
            "in_flight": sum(lane.in_flight for lane in group),
            "waiting": sum(lane.waiting for lane in group),
            "limit": sum(lane.own.limit for lane in in_use) if in_use else None,
            "is_open": any(lane.breaker.is_open for lane in group),
            "paused_seconds": max((_paused_seconds(lane) for lane in group), default=0.0),
            **_counts(lanes.tallies.of(server, model)),
        }


def _paused_seconds(lane: Lane) -> float:
    return max(0.0, *(gate.paused_until - lane.clock() for gate in lane.gates))


def _counts(tally: CallTally) -> dict[str, float]:
    succeeded = sum(tally.buckets)
    refused = sum(tally.ends.get(status, 0) for status in _REFUSED)
    return {
        "succeeded": succeeded,
        "refused": refused,
        "failed": sum(tally.ends.values()) - succeeded - refused,
        "latency_seconds": tally.seconds,
    }
