"""The protocol of leases, results and ends, in every order in which its steps can happen.

A run worker, two control workers, the sweep, a client who cancels, leases and windows that run out, and
three lines in two shards, with the engine's own statements on a real Postgres: claim, record, renew,
close, advance, start, finalize, sweep, cancel. After each step the rules of `tests.model.rules` hold,
and from each state the batch comes to its end with no bell but the sweep's (`tests.model.explorer`).

Not modelled: two transactions that overlap (each step is one that commits before the next begins; the
tests of leases and of finalizing have those), calls and retries (a recorded answer stands for them),
pauses, webhooks, several batches or projects, purges, a failed validation, rests and suspects after many
tries. The order of transactions within `finish_shard`, `validate_batch` and `finalize_batch` is repeated
here by hand.

A longer look, with more guards broken, two run workers (a minute), these with each answer recorded by
itself (two minutes), and both kinds of process doubled at once (hours):
MODEL_CHECK=long pytest --timeout 0 -sv tests/model
"""

import os
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from models.database import Database
from models.lifecycle import BatchStatus
from models.queries import advance
from models.settings import DatabaseSettings
from tests.fixtures.database import Postgres
from tests.model.explorer import Bounds, Broken, Explorer
from tests.model.world import World
from worker import claim, recorder

# Thousands of transactions: a quarter of a minute, but not on a machine that does much else.
pytestmark = pytest.mark.timeout(600)

_WORKERS = Bounds(claims=2, runs=2, workers=2, controls=1, by_line=False)
_CONTROLS = Bounds(claims=1, runs=1, workers=1, controls=2, by_line=False)
_SMALLEST = Bounds(claims=1, runs=1, workers=1, controls=1, by_line=False)

_LONG = {
    "workers": _WORKERS,
    "workers, line by line": Bounds(claims=2, runs=2, workers=2, controls=1),
    "workers, at length": Bounds(claims=4, runs=3, workers=2, controls=1),
    "all, at length": Bounds(claims=3, runs=2, workers=2, controls=2),
}
_IS_LONG = os.environ.get("MODEL_CHECK") == "long"
_LOOKS = {"control workers": _CONTROLS}
_LOOKS |= _LONG if _IS_LONG else {}
_long = pytest.mark.skipif(not _IS_LONG, reason="a part of MODEL_CHECK=long")


@pytest.fixture
async def world(
    postgres: Postgres, database_name: str, database_settings: DatabaseSettings
) -> AsyncIterator[World]:
    """A world of its own; nobody else will get its database."""
    postgres.execute("CREATE SCHEMA model", database=database_name)
    # Without the look whether a connection still lives: that would be every third message.
    url = database_settings.database_url.get_secret_value()
    database = Database(create_async_engine(url))
    with psycopg.connect(postgres.url(database_name), autocommit=True) as connection:
        made = await World.begin(connection, database)
        yield made
        await made.aclose()
        await database.dispose()


@pytest.mark.parametrize("bounds", [pytest.param(_LOOKS[name], id=name) for name in sorted(_LOOKS)])
async def test_no_order_of_steps_breaks_a_rule(world: World, bounds: Bounds) -> None:
    explorer = Explorer(world, bounds)
    await explorer.explore()
    print(  # for those who change the bounds
        f"{len(explorer.states)} states, {len(explorer.moments)} of the database,"
        f" {explorer.transactions} transactions"
    )
    ends = {moment.view.status for moment in explorer.moments if moment.view.is_final}
    assert ends == {"completed", "expired", "cancelled"}


async def _breaks(world: World, bounds: Bounds) -> str:
    with pytest.raises(Broken) as broken:
        await Explorer(world, bounds).explore()
    return str(broken.value).partition("\n")[0]


_OWNER = " AND lease_owner = %(lease_owner)s"


# Each takes one guard away, and the check must notice: else it would prove nothing.


@pytest.mark.parametrize(
    ("guard", "instead", "fault"),
    [
        pytest.param(
            _OWNER, "", "a worker that had lost its shard changed something", id="the owner"
        ),
        pytest.param(
            "ON CONFLICT DO NOTHING",
            "ON CONFLICT (batch_pk, line_no) DO UPDATE SET line = excluded.line",
            "counts_sane",
            id="one result a line",
        ),
        pytest.param(
            "SET succeeded = shards.succeeded + counted.succeeded",
            "SET succeeded = shards.succeeded",
            "shard 0 counts other results than there are",
            id="counters",
        ),
    ],
)
async def test_a_broken_record_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch, guard: str, instead: str, fault: str
) -> None:
    assert guard in recorder._RECORD
    monkeypatch.setattr(recorder, "_RECORD", recorder._RECORD.replace(guard, instead))
    assert fault in await _breaks(world, _WORKERS)


@pytest.mark.parametrize(
    ("guard", "instead", "fault"),
    [
        pytest.param(
            "AND shards.lease_until <= now()", "", "a shard was claimed that was", id="the lease"
        ),
        pytest.param(
            ":owner || '#' || (shards.claims + 1)",
            ":owner",
            "a worker that had lost its shard changed something",
            id="the number of the claim",
        ),
        pytest.param("AND expires_at > now()", "", "a shard was claimed that was", id="the window"),
    ],
)
async def test_a_broken_claim_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch, guard: str, instead: str, fault: str
) -> None:
    statement = claim._CLAIM_SHARD.text
    assert guard in statement
    monkeypatch.setattr(claim, "_CLAIM_SHARD", text(statement.replace(guard, instead)))
    assert fault in await _breaks(world, _WORKERS)


@_long
async def test_a_close_by_a_stranger_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_owner(statement: str) -> Any:
        assert "lease_owner = :lease_owner" in statement
        return text(statement.replace(" AND lease_owner = :lease_owner", ""))

    monkeypatch.setattr("worker.lease.text", without_owner)
    assert "a worker that had lost its shard" in await _breaks(world, _WORKERS)


@_long
async def test_an_end_before_the_end_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def advance_anyhow(database: Database, batch_pk: int) -> bool:
        async with database.begin() as session:
            return await advance(session, batch_pk, BatchStatus.FINALIZING)

    monkeypatch.setattr("tests.model.steps.advance_if_all_done", advance_anyhow)
    assert "the batch is expired and not in_progress" in await _breaks(world, _SMALLEST)


async def test_an_end_under_a_live_lease_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody_is(*_: object, locking: bool = False) -> bool:
        del locking
        return False

    monkeypatch.setattr("worker.stages.finalize._is_at_work", nobody_is)
    assert "while a lease on its lines was live" in await _breaks(world, _SMALLEST)


@pytest.mark.parametrize(
    "forgotten", ["_advance_finished", pytest.param("_ring_for_batches", marks=_long)]
)
async def test_a_sweep_that_forgets_something_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    async def forget(_: object) -> None:
        pass

    monkeypatch.setattr(f"tests.model.steps.{forgotten}", forget)
    assert "stuck" in await _breaks(world, _SMALLEST)
