"""Two projects of 100 batches each, created, listed and cancelled at the same time by the official SDK."""

import asyncio
from collections.abc import Awaitable, Callable

import openai

from models.database import Database
from tests.factories import make_key, make_project
from tests.fixtures.client import LiveApi

BATCHES = 100
AT_ONCE = 10


class Tenant:
    """A program that uses one project, and checks that it never sees another's batch."""

    def __init__(self, name: str, client: openai.AsyncOpenAI) -> None:
        self.name = name
        self.client = client
        self.ids: set[str] = set()
        self.walks = 0
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def create(self, number: int) -> None:
        async with self._slots:
            batch = await self.client.batches.create(
                input_file_id="file-0000000000000000000000",
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"tenant": self.name, "number": str(number)},
            )
        self.ids.add(batch.id)

    async def cancel(self, batch_id: str) -> None:
        async with self._slots:
            batch = await self.client.batches.cancel(batch_id)
        assert (batch.id, batch.status) == (batch_id, "cancelling")

    async def walk(self) -> dict[str, str]:
        """Go through all pages: the status of each batch by its id."""
        found: dict[str, str] = {}
        async for batch in await self.client.batches.list(limit=7):
            assert batch.metadata is not None
            assert batch.metadata["tenant"] == self.name
            assert batch.id not in found
            found[batch.id] = batch.status
        self.walks += 1
        return found

    async def walk_until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            await self.walk()


async def create_all(tenants: list[Tenant]) -> None:
    """Create all batches at once, while everybody looks on."""

    def is_over() -> bool:
        return all(len(tenant.ids) == BATCHES for tenant in tenants)

    async with asyncio.TaskGroup() as group:
        for number in range(BATCHES):
            for tenant in tenants:
                group.create_task(tenant.create(number))
        for tenant in tenants:
            group.create_task(tenant.walk_until(is_over))


async def cancel_all(cancelled: dict[Tenant, set[str]]) -> None:
    """Cancel these batches at once, while everybody looks on."""
    cancels: list[asyncio.Task[None]] = []

    def is_over() -> bool:
        return all(each.done() for each in cancels)

    async with asyncio.TaskGroup() as group:
        for tenant, ids in cancelled.items():
            cancels += [group.create_task(tenant.cancel(batch_id)) for batch_id in ids]
        for tenant in cancelled:
            group.create_task(tenant.walk_until(is_over))


async def is_refused(call: Callable[[str], Awaitable[object]], batch_id: str) -> bool:
    """Whether a batch is not there."""
    try:
        await call(batch_id)
    except openai.NotFoundError:
        return True
    return False


async def test_they_never_see_each_other(live_api: LiveApi, database: Database) -> None:
    tenants = []
    for name in ("one", "two"):
        key = await make_key(database, await make_project(database, name))
        client = openai.AsyncOpenAI(base_url=live_api.base_url, api_key=key, max_retries=0)
        tenants.append(Tenant(name, client))
    one, two = tenants

    async with one.client, two.client:
        await create_all(tenants)
        assert not one.ids & two.ids
        for tenant in tenants:
            assert set(await tenant.walk()) == tenant.ids

        # All of one's, and half of the other's.
        cancelled = {one: one.ids, two: set(sorted(two.ids)[: BATCHES // 2])}
        await cancel_all(cancelled)
        for tenant in tenants:
            assert await tenant.walk() == {
                batch_id: "cancelling" if batch_id in cancelled[tenant] else "validating"
                for batch_id in tenant.ids
            }
            # More than the ones of this test itself: somebody did look on.
            assert tenant.walks > 2

        for batch_id in sorted(two.ids)[:10]:
            assert await is_refused(one.client.batches.retrieve, batch_id)
            assert await is_refused(one.client.batches.cancel, batch_id)
