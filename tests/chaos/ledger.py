"""What the database itself says of a batch: the auditor's own look, past the API."""

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row


@dataclass(frozen=True)
class Standing:
    """Where a batch stands at one moment."""

    pk: int
    status: str
    is_leased: bool
    recorded: int
    shards: int
    holders: dict[int, str]
    """Who holds which open shard, by the shard's number; lapsed leases included."""

    @property
    def has_ended(self) -> bool:
        """Whether the status is a final one."""
        return self.status in {"completed", "failed", "expired", "cancelled"}


def standing_of(connection: psycopg.Connection[Any], batch_id: str) -> Standing:
    """Look at a batch once."""
    row = connection.execute(
        """
        SELECT b.pk, b.status, b.lease_owner IS NOT NULL,
               (SELECT count(*) FROM results r WHERE r.batch_pk = b.pk),
               (SELECT count(*) FROM shards s WHERE s.batch_pk = b.pk),
               (SELECT coalesce(jsonb_object_agg(s.no, s.lease_owner), '{}') FROM shards s
                WHERE s.batch_pk = b.pk AND s.state = 'running')
        FROM batches b WHERE b.id = %s
        """,
        [batch_id],
    ).fetchone()
    assert row is not None
    holders = {int(no): owner for no, owner in row[5].items()}
    return Standing(row[0], row[1], row[2], row[3], row[4], holders)


def recorded_lines(connection: psycopg.Connection[Any], batch_id: str) -> set[int]:
    """The lines that have a result."""
    rows = connection.execute(
        "SELECT line_no FROM results WHERE batch_pk = (SELECT pk FROM batches WHERE id = %s)",
        [batch_id],
    )
    return {row[0] for row in rows}


def lines_held_by(connection: psycopg.Connection[Any], batch_id: str, pid: int) -> set[int]:
    """The lines of the shards that a process holds or held last."""
    rows = connection.execute(
        "SELECT unnest(line_numbers) FROM shards WHERE state = 'running' AND lease_owner LIKE %s"
        " AND batch_pk = (SELECT pk FROM batches WHERE id = %s)",
        [f"%:{pid}:%", batch_id],
    )
    return {row[0] for row in rows}


def row_of(connection: psycopg.Connection[Any], batch_id: str) -> dict[str, Any]:
    """The batch's own row."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute("SELECT * FROM batches WHERE id = %s", [batch_id]).fetchone()
    assert row is not None
    return row


def count_disagreements(connection: psycopg.Connection[Any], batch_id: str) -> list[str]:
    """Counters of shards that differ from the results written, in one look at a running batch."""
    rows = connection.execute(
        """
        SELECT s.no, s.succeeded, s.failed, count(r.line_no) FILTER (WHERE r.succeeded),
               count(r.line_no) FILTER (WHERE NOT r.succeeded)
        FROM shards s JOIN batches b ON b.pk = s.batch_pk
        LEFT JOIN results r ON r.batch_pk = s.batch_pk AND r.line_no = ANY(s.line_numbers)
        WHERE b.id = %s
        GROUP BY s.pk
        HAVING (s.succeeded, s.failed) IS DISTINCT FROM
            (count(r.line_no) FILTER (WHERE r.succeeded),
             count(r.line_no) FILTER (WHERE NOT r.succeeded))
        """,
        [batch_id],
    ).fetchall()
    return [
        f"shard {no} counts {good} + {bad}, its results are {good_rows} + {bad_rows}"
        for no, good, bad, good_rows, bad_rows in rows
    ]
