"""Which shard a process takes up next, so that every model server gets its turn.

Promises: no server has all the shards that a process works on; one whose calls last long, or for which
there is no slot, would else keep every thread for hours, and the other servers' batches out.
"""

import asyncio
import contextlib

from worker.lease import ClaimedShard, claim_shard
from worker.runtime import Runtime

_REST_SECONDS = 0.5
"""As long as a slot that may take up nothing goes on before it can answer another bell."""


async def claim_in_turn(runtime: Runtime, *, passed_over: int) -> tuple[ClaimedShard | None, str]:
    """A shard, and the model server among whose shards it is counted; empty if its lines go nowhere."""
    router, slots = runtime.router, runtime.shard_slots
    # With several servers one at a time, or all would be claimed before the first is counted.
    async with runtime.claiming if router.is_shared else contextlib.nullcontext():
        busy = [name for name in router.upstreams.servers if not slots.has_room(name)]
        shard = await claim_shard(
            runtime.database,
            owner=runtime.owner,
            lease_seconds=runtime.run_settings.lease_seconds,
            passed_over=passed_over,
            models=router.upstreams.models_without(busy),
        )
        if shard is not None:
            server = router.server_of(shard.endpoint, shard.model)
            if server:
                # Without waiting, for it had room.
                await slots.acquire(server)
            return shard, server
    if busy:
        # The sweep rings for the busy servers' shards, too, and rings again for every bell that is
        # used up: it would be answered in vain as fast as it can ring.
        await asyncio.sleep(_REST_SECONDS)
    return None, ""
