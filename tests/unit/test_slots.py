"""How the calls of one process are parted among its model servers."""

import random

import pytest

from worker.flow.slots import Slots


def fill(slots: Slots, server: str) -> int:
    """Take all that a server may have; how many that was."""
    count = 0
    while slots.has_room(server):
        slots.take(server)
        count += 1
    return count


def test_one_server_has_them_all() -> None:
    slots = Slots(5, ["a"])
    assert (fill(slots, "a"), slots.in_flight, slots.is_full) == (5, 5, True)
    slots.give_back("a")
    assert (slots.in_flight, slots.has_room("a")) == (4, True)


@pytest.mark.parametrize(
    ("most", "first", "second"), [(8, 7, 1), (16, 14, 2), (2, 1, 1), (3, 2, 1), (100, 88, 12)]
)
def test_whoever_comes_first_leaves_the_other_some(most: int, first: int, second: int) -> None:
    slots = Slots(most, ["a", "b"])
    assert fill(slots, "a") == first
    assert slots.is_full
    assert fill(slots, "b") == second
    assert slots.in_flight == most


def test_fewer_slots_than_servers_go_to_whoever_comes() -> None:
    slots = Slots(2, ["a", "b", "c"])
    assert (fill(slots, "c"), fill(slots, "a")) == (2, 0)


def test_no_slot_is_lost_and_none_is_made() -> None:
    rng = random.Random(7)
    servers = ["a", "b", "c"]
    slots = Slots(20, servers)
    taken: list[str] = []
    for _ in range(5_000):
        server = rng.choice(servers)
        if rng.random() < 0.6 and slots.has_room(server):
            slots.take(server)
            taken.append(server)
        elif taken:
            slots.give_back(taken.pop(rng.randrange(len(taken))))
        assert slots.in_flight == len(taken) <= 20
    for server in taken:
        slots.give_back(server)
    assert slots.in_flight == 0
    assert [fill(slots, each) for each in servers] == [18, 1, 1]
