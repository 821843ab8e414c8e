"""The small world of the model check: one batch of three lines in two shards, in a real Postgres.

`View` is what matters of the database in one moment: two moments with equal views are taken for the
same state. `World` reads one, and puts the rows of an earlier moment back. Time is a lease or a window
that the model moves into the past; what is written as live outlasts the run.
"""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg

from models import Batch, File
from models.database import Database
from models.lifecycle import FINAL, BatchStatus
from tests.factories import input_file, make_batch, make_file
from tests.fixtures.client import RecordingBell
from tests.fixtures.runtime import make_runtime, rings, upstream_settings_for
from worker.claim import ClaimedShard
from worker.runtime import Runtime
from worker.stages.shard import Piece, ShardCutter
from worker.upstream import Upstream

LINES = 3
LINES_A_SHARD = 2
FAILS = 2
"""The line whose answer is a failure."""

LEASE_SECONDS = 24 * 3600.0
WORKERS = ("w1", "w2")
CONTROLS = ("c1", "c2")
_PAST = "2000-01-01T00:00:00+00:00"
_NOBODY_LISTENS = "http://127.0.0.1:9/v1"


class ShardView(NamedTuple):
    """One shard. `lease` is `none`, `live` or `lapsed`."""

    no: int
    lines: tuple[int, ...]
    state: str
    owner: str | None
    lease: str
    claims: int
    succeeded: int
    failed: int
    total_tokens: int


class View(NamedTuple):
    """All that matters of the database in one moment."""

    status: str
    owner: str | None
    lease: str
    is_window_closed: bool
    total: int
    completed: int
    failed: int
    total_tokens: int | None
    has_files: tuple[bool, bool]
    shards: tuple[ShardView, ...]
    results: tuple[tuple[int, bool], ...]

    @property
    def is_final(self) -> bool:
        """Whether the batch has ended."""
        return self.status in FINAL

    @property
    def answered(self) -> frozenset[int]:
        """The lines that have a result."""
        return frozenset(line_no for line_no, _ in self.results)

    def shard(self, no: int) -> ShardView | None:
        """A shard, if it is still there."""
        return next((shard for shard in self.shards if shard.no == no), None)


@dataclass(frozen=True)
class Moment:
    """The rows of every table that the protocol writes to, as JSON, and what matters of them."""

    rows: tuple[str, ...]
    view: View

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of one table."""
        found: list[dict[str, Any]] = json.loads(self.rows[_NAMES.index(name)])
        return found


# What to read and to replace of each table: the input file stays as it is.
_TABLES = {
    "batches": "",
    "shards": "",
    "results": "",
    "files": "WHERE purpose = 'batch_output'",
    "file_chunks": "WHERE file_pk IN (SELECT pk FROM files WHERE purpose = 'batch_output')",
}
_NAMES = tuple(_TABLES)
_ORDERS = ("pk", "no", "line_no", "pk", "file_pk, no")
_READ = "SELECT " + ", ".join(  # noqa: S608  # names of the models
    f"(SELECT coalesce(json_agg(t ORDER BY {order}), '[]')::text FROM {name} t {where})"  # noqa: S608  # the same
    for (name, where), order in zip(_TABLES.items(), _ORDERS, strict=True)
)


class World:
    """The database with one batch, the processes that work on it, and time at the model's command."""

    def __init__(
        self, connection: psycopg.Connection, database: Database, batch: Batch, file: File
    ) -> None:
        self.database = database
        self.batch_id = batch.id
        self.batch_pk = batch.pk
        self.file = file
        self.bell = RecordingBell()
        self.pieces = _pieces()
        # What a process has at hand beside what tells one state from another.
        self.claimed: dict[tuple[str, int, int, frozenset[int]], ClaimedShard] = {}
        self.batches: dict[tuple[str, str, int], Batch] = {}
        self.written = 0
        self._connection = connection
        self._upstream = Upstream.connect(upstream_settings_for(_NOBODY_LISTENS))
        self.controls = {name: self._process(name) for name in CONTROLS}
        self._sweeper = self._process("sweeper")
        self._now = self.read()

    @classmethod
    async def begin(cls, connection: psycopg.Connection, database: Database) -> "World":
        """A world with a batch that waits to be validated.

        A lapsed lease can be claimed once the server has been up for as long as a lease lasts. This
        one says that it has: its database has a function of that name that is found first.
        """
        connection.execute(
            """
            CREATE SCHEMA IF NOT EXISTS model;
            CREATE FUNCTION model.pg_postmaster_start_time() RETURNS timestamptz
                LANGUAGE sql STABLE AS $$ SELECT '2000-01-01'::timestamptz $$;
            DO $$ BEGIN
                EXECUTE format('ALTER DATABASE %I SET search_path = model, pg_catalog, public',
                               current_database());
            END $$;
            SET session_replication_role = replica;
            """
        )
        file = await make_file(database, input_file(LINES))
        batch = await make_batch(database, input_file_id=file.id)
        # Connections from here on find the function.
        await database.dispose()
        return cls(connection, database, batch, file)

    @property
    def sweeper(self) -> Runtime:
        """The process that sweeps; its bells are what `rung` tells."""
        return self._sweeper

    def rung(self) -> frozenset[str]:
        """What the sweep has rung for since this was asked last."""
        found = frozenset(name for name, _ in rings(self._sweeper))
        rings(self._sweeper).clear()
        return found

    @property
    def now(self) -> Moment:
        """The present moment, as last read."""
        return self._now

    def read(self) -> Moment:
        """Look at the database."""
        row = self._connection.execute(_READ.encode()).fetchone()
        assert row is not None
        self._now = Moment(tuple(row), _view_of(*(json.loads(rows) for rows in row)))
        return self._now

    def return_to(self, moment: Moment) -> None:
        """Put the rows of an earlier moment back, where they differ."""
        differing = [
            (name, rows)
            for name, rows, present in zip(_NAMES, moment.rows, self._now.rows, strict=True)
            if rows != present
        ]
        if not differing:
            return
        with self._connection.transaction(), self._connection.pipeline():
            for name, _ in reversed(differing):
                self._connection.execute(f"DELETE FROM {name} {_TABLES[name]}".encode())  # noqa: S608  # names of the models
            for name, rows in differing:
                filling = (
                    f"INSERT INTO {name} OVERRIDING SYSTEM VALUE"  # noqa: S608  # the same
                    f" SELECT * FROM json_populate_recordset(NULL::{name}, %s::json)"
                )
                self._connection.execute(filling.encode(), [rows])
        self._now = moment

    def tidy(self) -> None:
        """Take away what thousands of rows that were put back have left behind."""
        self._connection.execute(b"VACUUM batches, shards, results, files, file_chunks")

    def count_shards_from_one(self) -> None:
        """Give the same shards the same keys, in whichever state they are made."""
        self._connection.execute(b"SELECT setval(pg_get_serial_sequence('shards', 'pk'), 1, false)")

    def let_shard_lapse(self, no: int) -> None:
        """Let the time of a shard's lease be over."""
        self._connection.execute(b"UPDATE shards SET lease_until = %s WHERE no = %s", [_PAST, no])

    def let_batch_lapse(self) -> None:
        """Let the time of the batch's own lease be over."""
        self._connection.execute(b"UPDATE batches SET lease_until = %s", [_PAST])

    def close_window(self) -> None:
        """Let the batch's window be over."""
        self._connection.execute(b"UPDATE batches SET expires_at = %s", [_PAST])

    async def aclose(self) -> None:
        """Close the connections."""
        await self._upstream.aclose()

    def _process(self, name: str) -> Runtime:
        return make_runtime(
            self.database, self._upstream, owner=name, lease_seconds=LEASE_SECONDS, record_rows=1
        )


def _pieces() -> list[Piece]:
    cutter = ShardCutter(lines=LINES_A_SHARD, size_bytes=1024 * 1024)
    offset = 0
    for line_no, line in enumerate(input_file(LINES).splitlines(keepends=True), start=1):
        cutter.add(line_no, offset, len(line) - 1)
        offset += len(line)
    return cutter.deal()


Rows = list[dict[str, Any]]


def _view_of(batches: Rows, shards: Rows, results: Rows, files: Rows, chunks: Rows) -> View:
    del files, chunks
    [batch] = batches
    usage = batch["usage"]
    is_final = BatchStatus(batch["status"]) in FINAL
    return View(
        status=batch["status"],
        owner=batch["lease_owner"],
        lease=_lease_of(batch),
        # Of no account once the batch has moved on.
        is_window_closed=not is_final and batch["expires_at"].startswith("2000"),
        total=batch["total"],
        completed=batch["completed"],
        failed=batch["failed"],
        total_tokens=usage and usage["total_tokens"],
        has_files=(bool(batch["output_file_id"]), bool(batch["error_file_id"])),
        shards=tuple(
            ShardView(
                no=shard["no"],
                lines=tuple(shard["line_numbers"]),
                state=shard["state"],
                owner=shard["lease_owner"],
                lease=_lease_of(shard),
                claims=shard["claims"],
                succeeded=shard["succeeded"],
                failed=shard["failed"],
                total_tokens=shard["total_tokens"],
            )
            for shard in sorted(shards, key=lambda row: int(row["no"]))
        ),
        results=tuple(sorted((row["line_no"], row["succeeded"]) for row in results)),
    )


def _lease_of(row: dict[str, Any]) -> str:
    until = row["lease_until"]
    if until is None:
        return "none"
    return "lapsed" if until.startswith("2000") else "live"
