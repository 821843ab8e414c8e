"""Many thousand batches: what the statements of list, create, sweep and claim read does not grow with them.

Each statement is caught as it is sent, and explained with the planner's own statistics: it must find its
rows by an index, and touch a small part of them. Read linearly, any of them would touch thousands.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from api.params import CreateBatch, ListBatches, ListFiles
from api.services import batches, files
from models.database import Database
from models.project import DEFAULT_CALLER
from models.settings import DatabaseSettings
from tests.fixtures.client import RecordingBell
from worker.claim import claim_shard
from worker.runtime import Runtime
from worker.stages.sweep import sweep

MOST_RUN = 10_000
OTHERS = 1_500
MOST_ROWS = 900
MOST_PAGES = 800

_LARGE = {"batches", "shards", "results", "files"}
_STATUSES = {
    "validating": "NULL, NULL, NULL",
    "in_progress": "now(), NULL, NULL",
    "finalizing": "now(), now(), NULL",
    "cancelling": "now(), NULL, now()",
}

# Some have been begun: of those a shard runs, or is done. The newest are a day from their end.
_FILL = """
    INSERT INTO files (id, purpose, filename, bytes, chunk_bytes, status, created_at, expires_at)
    SELECT 'file-' || n, 'batch', 'x', 10, 262144, 'processed', now() - n * interval '0.1 s',
        now() + interval '30 d'
    FROM generate_series(1, {count}) AS n;
    INSERT INTO batches (id, endpoint, completion_window, input_file_id, input_file_pk, status, model,
        total, created_at, expires_at, in_progress_at, finalizing_at, cancelling_at)
    SELECT 'batch_{status}' || n, '/v1/embeddings', '24h', 'file-' || n, n, '{status}', 'm', 6,
        created_at, created_at + interval '24 h', {times}
    FROM generate_series(1, {count}) AS n,
        LATERAL (SELECT now() - interval '{age_hours} h' - n * interval '0.1 s' AS created_at) AS age;
"""
_FILL_SHARDS = """
    INSERT INTO shards (batch_pk, no, line_numbers, offsets, lengths, size, state, succeeded,
        lease_owner, lease_until, claims)
    SELECT pk, no, ARRAY[1, 2, 3], ARRAY[0, 10, 20], ARRAY[9, 9, 9], 3, state,
        CASE state WHEN 'done' THEN 3 ELSE 0 END,
        CASE state WHEN 'running' THEN 'x' END,
        CASE state WHEN 'running' THEN now() + interval '1 h' END,
        CASE state WHEN 'queued' THEN 0 ELSE 1 END
    FROM batches, generate_series(0, CAST(pk % 400 = 0 AS int)) AS no, LATERAL (
        SELECT CASE WHEN status <> 'in_progress' OR pk % 400 > 0 THEN 'queued'
                    WHEN no = 0 THEN 'done' ELSE 'running' END AS state
    ) AS begun
    WHERE status <> 'validating';
"""


@dataclass(frozen=True)
class Reading:
    """What a statement has read."""

    statement: str
    rows: int
    pages: int
    whole_tables: frozenset[str]


def scans(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of a plan that read a table."""
    if "Relation Name" in node:
        yield node
    for child in node.get("Plans", []):
        yield from scans(child)


def reading_of(statement: str, plan: dict[str, Any]) -> Reading:
    rows, whole_tables = 0.0, set()
    for scan in scans(plan):
        removed = scan.get("Rows Removed by Filter", 0) + scan.get(
            "Rows Removed by Index Recheck", 0
        )
        rows += (scan.get("Actual Rows", 0) + removed) * scan["Actual Loops"]
        if scan["Node Type"] == "Seq Scan":
            whole_tables.add(scan["Relation Name"])
    pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return Reading(statement, round(rows), pages, frozenset(whole_tables))


class Explainer:
    """A database that remembers what it is asked, and can say what that reads."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.database = Database(engine)
        self._engine = engine
        self._asked: list[tuple[str, Any]] = []
        event.listen(engine.sync_engine, "before_cursor_execute", self._remember)

    async def readings_of(self, act: Callable[[Database], Awaitable[object]]) -> list[Reading]:
        """What the statements of an act read."""
        self._asked.clear()
        await act(self.database)
        asked, found = list(self._asked), []
        for statement, values in asked:
            # Inserted rows are read from nowhere, and cannot be inserted twice.
            if not statement.lstrip().startswith("INSERT"):
                found.append(reading_of(statement, await self._explain(statement, values)))
        return found

    async def _explain(self, statement: str, values: Any) -> dict[str, Any]:
        asking = f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement}"
        async with self._engine.connect() as connection:
            explained = await connection.exec_driver_sql(asking, values)
            plan: dict[str, Any] = explained.scalar_one()[0]["Plan"]
            await connection.rollback()
        return plan

    def _remember(self, _: Any, __: Any, statement: str, values: Any, *___: Any) -> None:
        self._asked.append((statement, values))


@pytest.fixture(params=["patient", "urgent"])
async def explainer(
    request: pytest.FixtureRequest, database_settings: DatabaseSettings
) -> AsyncIterator[Explainer]:
    """A database with thousands of batches of each open status; all urgent, or none."""
    engine = create_async_engine(database_settings.database_url.get_secret_value())
    age_hours = 23 if request.param == "urgent" else 1
    async with engine.begin() as connection:
        for status, times in _STATUSES.items():
            count = MOST_RUN if status == "in_progress" else OTHERS
            values = {"status": status, "times": times, "age_hours": age_hours}
            fill = _FILL.format(count=count, **values).replace("'file-'", f"'file-{status}'")
            for statement in fill.split(";\n"):
                await connection.execute(text(statement))
        await connection.execute(text(_FILL_SHARDS))
        await connection.execute(text("ANALYZE"))
    yield Explainer(engine)
    await engine.dispose()


def create_request() -> CreateBatch:
    body = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}
    return CreateBatch.model_validate(body, context={"windows": {"24h": timedelta(hours=24)}})


async def test_what_is_read_does_not_grow_with_the_backlog(
    explainer: Explainer, runtime: Runtime
) -> None:
    async def use(database: Database) -> None:
        page = ListBatches(limit=20)
        await batches.list_(database, DEFAULT_CALLER, query=page)
        after = ListBatches(limit=20, after=f"batch_in_progress{MOST_RUN // 2}")
        await batches.list_(database, DEFAULT_CALLER, query=after)
        await batches.get(database, DEFAULT_CALLER, batch_id="batch_validating7")
        await batches.create(
            database,
            DEFAULT_CALLER,
            bell=RecordingBell(),
            request=create_request(),
            window=timedelta(hours=24),
            max_batches_per_hour=1_000_000,
        )
        await files.list_(database, DEFAULT_CALLER, query=ListFiles(limit=20))
        await sweep(replace(runtime, database=database))
        assert await claim_shard(database, owner="me", lease_seconds=60) is not None

    readings = await explainer.readings_of(use)
    assert len(readings) > 20
    for reading in readings:
        assert not reading.whole_tables & _LARGE, reading
        assert reading.rows < MOST_ROWS, reading
        assert reading.pages < MOST_PAGES, reading
