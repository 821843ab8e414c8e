"""Slots: in all and for each server; who waits, who is next, and what a cancelled waiter leaves."""

import asyncio
import random

import pytest

from worker.limiter import Limiter


async def settle() -> None:
    """Let every task come to where it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def fill(limiter: Limiter, server: str) -> int:
    """Take every slot that a server can get; how many those were."""
    taken = 0
    while True:
        waiter = asyncio.create_task(limiter.acquire(server))
        await settle()
        if not waiter.done():
            waiter.cancel()
            await settle()
            return taken
        taken += 1


def both(slots: int, **most: int | None) -> Limiter:
    return Limiter(slots, {"a": None, "b": None} | most)


async def test_one_server_may_have_every_slot() -> None:
    limiter = Limiter(5, {"a": None})
    assert await fill(limiter, "a") == 5
    assert limiter.in_flight == 5


async def test_a_server_has_no_more_than_its_own_limit() -> None:
    limiter = both(8, a=2)
    assert await fill(limiter, "a") == 2
    assert await fill(limiter, "b") == 6
    assert limiter.in_flight == 8


@pytest.mark.parametrize(("slots", "first", "second"), [(128, 112, 16), (8, 7, 1), (2, 1, 1)])
async def test_a_server_that_holds_all_it_can_leaves_the_other_some(
    slots: int, first: int, second: int
) -> None:
    limiter = both(slots)
    assert await fill(limiter, "a") == first
    assert await fill(limiter, "b") == second


async def test_with_fewer_slots_than_servers_nothing_is_kept_back() -> None:
    limiter = both(1)
    assert await fill(limiter, "a") == 1
    assert await fill(limiter, "b") == 0


async def test_what_goes_to_no_server_gets_a_slot_also_if_the_servers_have_them_all() -> None:
    limiter = both(2)
    assert (await fill(limiter, "a"), await fill(limiter, "b"), await fill(limiter, "")) == (
        1,
        1,
        1,
    )
    for server in ("a", "b", ""):
        limiter.release(server)
    assert limiter.in_flight == 0
    assert (await fill(limiter, "a"), await fill(limiter, "b")) == (1, 1)


async def test_a_server_at_its_limit_holds_up_nobody() -> None:
    limiter = both(4, a=1)
    await limiter.acquire("a")
    waiting = [asyncio.create_task(limiter.acquire("a")) for _ in range(10)]
    await settle()
    assert await fill(limiter, "b") == 3
    for waiter in waiting:
        waiter.cancel()


async def test_of_two_servers_the_one_that_has_waited_longer_is_next() -> None:
    limiter = both(8)
    for server in "aaaaaaab":
        await limiter.acquire(server)
    order: list[str] = []

    async def wait(name: str) -> None:
        await limiter.acquire(name[0])
        order.append(name)

    tasks = []
    for name in ("b1", "a1", "b2", "a2"):
        tasks.append(asyncio.create_task(wait(name)))
        await settle()
    for _ in range(4):
        # A slot that anybody may have.
        limiter.release("a")
        await settle()
    assert order == ["b1", "a1", "b2", "a2"]
    assert all(task.done() for task in tasks)


async def test_to_one_server_the_first_come_is_served_first() -> None:
    limiter = Limiter(1)
    await limiter.acquire()
    late = asyncio.create_task(limiter.acquire())
    await settle()
    limiter.release()
    # The slot is the waiter's already, though it has not run since.
    overtaking = asyncio.create_task(limiter.acquire())
    await settle()
    assert late.done()
    assert not overtaking.done()
    overtaking.cancel()


async def test_a_slot_that_was_given_to_a_cancelled_waiter_is_not_lost() -> None:
    limiter = Limiter(1)
    await limiter.acquire()
    waiter = asyncio.create_task(limiter.acquire())
    await settle()
    limiter.release()
    waiter.cancel()
    await settle()
    assert waiter.cancelled()
    assert limiter.in_flight == 0
    assert await fill(limiter, "") == 1


async def test_a_waiter_that_was_cancelled_first_is_passed_over() -> None:
    limiter = Limiter(1)
    await limiter.acquire()
    first = asyncio.create_task(limiter.acquire())
    second = asyncio.create_task(limiter.acquire())
    await settle()
    first.cancel()
    limiter.release()
    await settle()
    assert second.done()
    assert first.cancelled()
    assert limiter.in_flight == 1


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_no_slot_is_lost_or_given_twice(seed: int) -> None:
    chance = random.Random(seed)
    slots = chance.randint(1, 9)
    most = {name: chance.choice([None, 1, 2, 5, 50]) for name in "abc"[: chance.randint(1, 3)]}
    limiter = Limiter(slots, most)
    held = dict.fromkeys(most, 0)

    async def call(server: str) -> None:
        await limiter.acquire(server)
        held[server] += 1
        try:
            assert sum(held.values()) <= slots
            assert held[server] <= (most[server] or slots)
            for _ in range(chance.randint(0, 3)):
                await asyncio.sleep(0)
        finally:
            held[server] -= 1
            limiter.release(server)

    tasks = []
    for _ in range(200):
        tasks.append(asyncio.create_task(call(chance.choice(list(most)))))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.3:
            await asyncio.sleep(0)
    ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=20)
    assert {type(end) for end in ends} <= {type(None), asyncio.CancelledError}
    assert limiter.in_flight == 0
    fresh = Limiter(slots, most)
    assert [await fill(limiter, each) for each in most] == [
        await fill(fresh, each) for each in most
    ]
