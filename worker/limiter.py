"""How many calls may be in flight in this process. First come, first served, so shards take turns."""

from asyncio import Semaphore


class Limiter:
    """A fixed number of slots. A waiter may be cancelled at any time without losing a slot."""

    def __init__(self, slots: int) -> None:
        self._free = Semaphore(slots)
        self.in_flight = 0

    async def acquire(self) -> None:
        """Wait for a slot and take it."""
        await self._free.acquire()
        self.in_flight += 1

    def release(self) -> None:
        """Give the slot back."""
        self.in_flight -= 1
        self._free.release()
