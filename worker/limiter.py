"""How many calls may be in flight in this process, in all and to each model server.

Promises: to one server, first come, first served, so shards take turns; between servers, the one that has
waited longest. A server at its own limit waits without a slot of the process, and of those a quarter is
kept back, in equal parts: a slow server leaves every other one some.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

_EVERYBODY = ""
_KEPT_BACK = 4
"""One part in so many of the slots."""


@dataclass(slots=True)
class _Lane:
    """What one server has and may have."""

    most: int
    kept: int
    """Slots that no other server may take."""

    in_flight: int = 0
    waiting: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)


class Limiter:
    """A fixed number of slots. A waiter may be cancelled at any time without losing a slot.

    `most` has, by the name of each server, the most slots that it may have; null for no such limit.
    """

    def __init__(self, slots: int, most: Mapping[str, int | None] | None = None) -> None:
        limits = most or {}
        kept = max(1, slots // (_KEPT_BACK * len(limits))) if 1 < len(limits) <= slots else 0
        self._lanes = {
            name: _Lane(most=min(limit or slots, slots), kept=min(kept, limit or slots))
            for name, limit in limits.items()
        }
        self._shared = slots - sum(lane.kept for lane in self._lanes.values())
        # If the servers have every slot between them, what goes to none of them has one beside these.
        self._lanes.setdefault(_EVERYBODY, _Lane(most=slots, kept=0 if self._shared else 1))
        self._arrivals = 0
        self.in_flight = 0

    async def acquire(self, server: str = _EVERYBODY) -> None:
        """Wait for a slot and take it."""
        lane = self._lane(server)
        if self.has_room(server):
            self._take(lane)
            return
        given = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        place = (self._arrivals, given)
        lane.waiting.append(place)
        try:
            await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                # It was given just before the waiter was cancelled.
                self.release(server)
            else:
                # A release may have passed over it already.
                with contextlib.suppress(ValueError):
                    lane.waiting.remove(place)
            raise

    def has_room(self, server: str) -> bool:
        """Whether a slot could be taken without waiting."""
        lane = self._lane(server)
        return not lane.waiting and self._may_take(lane)

    def release(self, server: str = _EVERYBODY) -> None:
        """Give the slot back."""
        lane = self._lane(server)
        self._shared += lane.in_flight > lane.kept
        lane.in_flight -= 1
        self.in_flight -= 1
        self._give()

    def _lane(self, server: str) -> _Lane:
        return self._lanes.get(server) or self._lanes[_EVERYBODY]

    def _may_take(self, lane: _Lane) -> bool:
        return lane.in_flight < lane.most and (lane.in_flight < lane.kept or self._shared > 0)

    def _take(self, lane: _Lane) -> None:
        self._shared -= lane.in_flight >= lane.kept
        lane.in_flight += 1
        self.in_flight += 1

    def _give(self) -> None:
        """Give what is free to those who wait, the longest waiting first."""
        while ready := [
            lane for lane in self._lanes.values() if lane.waiting and self._may_take(lane)
        ]:
            lane = min(ready, key=lambda each: each.waiting[0][0])
            _, given = lane.waiting.popleft()
            if not given.done():
                self._take(lane)
                given.set_result(None)
