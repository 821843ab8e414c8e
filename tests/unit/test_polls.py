"""One look answers all who had asked before it began, and nobody who asked later."""

import asyncio
from typing import Any

import pytest

from api.services import batches
from api.services.polls import Polls
from models.errors import BatchNotFound
from models.project import Caller

ME, OTHER = Caller(1, "proj_me"), Caller(2, "proj_other")


class Looks:
    """In place of the database: looks that end when they are told to."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, str]] = []
        self._ends: list[asyncio.Future[Any]] = []

    async def get(self, database: object, caller: Caller, *, batch_id: str) -> Any:
        del database
        self.begun.append((caller.project_pk, batch_id))
        self._ends.append(asyncio.get_running_loop().create_future())
        return await self._ends[-1]

    def end(self, number: int, shown: Any) -> None:
        """Let a look end with what it saw, or with an error."""
        if isinstance(shown, Exception):
            self._ends[number].set_exception(shown)
        else:
            self._ends[number].set_result(shown)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    made = Looks()
    monkeypatch.setattr(batches, "get", made.get)
    return made


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def polls(looks: Looks) -> Polls:
    del looks
    return Polls(database=None)  # type: ignore[arg-type]  # nobody reads it here


def ask(polls: Polls, count: int = 1, caller: Caller = ME, batch_id: str = "b") -> list[Any]:
    return [asyncio.create_task(polls.get(caller, batch_id)) for _ in range(count)]


async def test_those_who_ask_together_share_a_look(polls: Polls, looks: Looks) -> None:
    asking = ask(polls, 5)
    await settle()
    looks.end(0, "first")
    assert await asyncio.gather(*asking) == ["first"] * 5
    assert len(looks.begun) == 1


async def test_nobody_is_told_what_was_read_before_asking(polls: Polls, looks: Looks) -> None:
    first = ask(polls)
    await settle()
    later = ask(polls, 3)
    await settle()
    assert len(looks.begun) == 1  # the second waits for the first's end
    looks.end(0, "before")
    await settle()
    looks.end(1, "after")
    assert await asyncio.gather(*first, *later) == ["before", "after", "after", "after"]
    assert len(looks.begun) == 2


async def test_other_batches_and_projects_have_looks_of_their_own(
    polls: Polls, looks: Looks
) -> None:
    asking = ask(polls) + ask(polls, caller=OTHER) + ask(polls, batch_id="c")
    await settle()
    assert looks.begun == [(1, "b"), (2, "b"), (1, "c")]
    for number in range(3):
        looks.end(number, number)
    assert await asyncio.gather(*asking) == [0, 1, 2]


async def test_one_who_goes_away_takes_nobody_along(polls: Polls, looks: Looks) -> None:
    gone, stays = ask(polls, 2)
    await settle()
    gone.cancel()
    await settle()
    looks.end(0, "seen")
    assert await stays == "seen"
    assert gone.cancelled()


async def test_an_error_is_told_to_all_and_forgotten(polls: Polls, looks: Looks) -> None:
    asking = ask(polls, 2)
    await settle()
    following = ask(polls)
    looks.end(0, BatchNotFound("b"))
    await settle()
    looks.end(1, "there")
    told = await asyncio.gather(*asking, *following, return_exceptions=True)
    assert [type(each) for each in told] == [BatchNotFound, BatchNotFound, str]


async def test_nothing_is_kept_of_what_is_over(polls: Polls, looks: Looks) -> None:
    asking = ask(polls) + ask(polls, batch_id="c")
    await settle()
    again = ask(polls)
    for number in range(2):
        looks.end(number, "seen")
    await settle()
    looks.end(2, "seen")
    await asyncio.gather(*asking, *again)
    assert (polls._under_way, polls._to_follow) == ({}, {})
