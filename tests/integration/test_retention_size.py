"""What retention takes away makes room for what comes next: the database does not grow with time."""

import random
from datetime import UTC, datetime

import psycopg
from sqlalchemy import func, select, update

from models import File, FileChunk
from models.database import Database
from tests.factories import make_file
from worker.runtime import Runtime
from worker.stages.sweep import sweep

FILES = 6
MIB = 1024 * 1024
PAST = datetime(2020, 1, 1, tzinfo=UTC)


def size_of(url: str) -> int:
    """The bytes that the chunks of files take on disk, whatever is in them."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_total_relation_size('file_chunks')").fetchone()
    assert row is not None
    return int(row[0])


async def load(database: Database) -> None:
    for number in range(FILES):
        # Bytes that do not compress.
        await make_file(database, random.Random(number).randbytes(MIB))


async def expire_all(runtime: Runtime) -> None:
    async with runtime.database.begin() as session:
        await session.execute(update(File).values(expires_at=PAST))
    await sweep(runtime)
    async with runtime.database.begin() as session:
        assert await session.scalar(select(func.count()).select_from(FileChunk)) == 0


async def test_the_room_of_expired_files_is_used_again(runtime: Runtime, database_url: str) -> None:
    await load(runtime.database)
    full = size_of(database_url)
    assert full > FILES * MIB
    for _ in range(2):
        await expire_all(runtime)
        # What autovacuum does in its own time. The end of the table is kept, as where files remain.
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("VACUUM (TRUNCATE false) file_chunks")
        await load(runtime.database)
    assert size_of(database_url) < 1.2 * full


def test_room_is_found_long_before_a_fifth_of_a_table_is_gone(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        tuned = connection.execute(
            "SELECT relname FROM pg_class"
            " WHERE 'autovacuum_vacuum_scale_factor=0.02' = ANY (reloptions) ORDER BY relname"
        ).fetchall()
    assert tuned == [("file_chunks",), ("results",), ("shards",)]
