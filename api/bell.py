"""Ringing the workers from the event loop.

Promises: ringing comes after the commit, never fails a request and never holds the loop; whatever is
not heard, the sweep finds.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)

_RING_SECONDS = 2.0


class Bell(Protocol):
    """What the API needs of `worker.queue.Doorbell`. Every method may block for a second or two."""

    def ring_validate(self, batch_pk: int) -> None:
        """A batch waits to be validated."""

    def ring_run(self, times: int = 1) -> None:
        """So many shards may be runnable."""

    def ring_finalize(self, batch_pk: int) -> None:
        """A batch may be ready to have its files written."""

    def broker_answers(self) -> bool:
        """Whether the broker can be reached."""

    def workers_answer(self, queue: str) -> bool:
        """Whether at least one worker of a queue answers."""

    def has_been_swept(self) -> bool:
        """Whether everything was looked over in the last half minute."""

    def told_of_workers(self) -> list[bytes]:
        """What the workers' processes told of themselves in the last ten seconds."""

    def close(self) -> None:
        """Close the connections."""


async def ring(bell: Callable[[int], None], batch_pk: int) -> None:
    """Ring in a thread, and wait for it only so long."""
    try:
        async with asyncio.timeout(_RING_SECONDS):
            await asyncio.to_thread(bell, batch_pk)
    except Exception as error:  # noqa: BLE001  # the work is safe in the database; the sweep rings again
        log.warning(
            "could not ring for batch %d: %s; the sweep will", batch_pk, type(error).__name__
        )
