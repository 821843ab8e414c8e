"""The migrations: they lead from nothing to the models and back, and guard what has ended."""

from collections.abc import Iterator

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect
from sqlalchemy.pool import NullPool

from models import Base
from models.database import Database
from models.lifecycle import FINAL, BatchStatus
from models.queries import advance
from models.settings import DatabaseSettings
from tests.factories import make_batch
from tests.fixtures.database import Postgres, migrations


@pytest.fixture
def empty_url(postgres: Postgres) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    name = postgres.create()
    yield postgres.url(name)
    postgres.drop(name)


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        )
        return {name for (name,) in rows}


def test_from_nothing_to_the_models_and_back(empty_url: str) -> None:
    config = migrations(empty_url)
    command.upgrade(config, "head")
    assert tables(empty_url) == set(Base.metadata.tables) | {"alembic_version"}
    command.upgrade(config, "head")
    command.downgrade(config, "base")
    assert tables(empty_url) == {"alembic_version"}
    command.upgrade(config, "head")
    assert tables(empty_url) == set(Base.metadata.tables) | {"alembic_version"}


def test_nothing_is_left_behind_by_a_downgrade(empty_url: str) -> None:
    config = migrations(empty_url)
    command.upgrade(config, "head")
    command.downgrade(config, "base")
    with psycopg.connect(empty_url) as connection:
        functions = connection.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        ).fetchall()
    assert functions == []


def test_the_migrations_are_the_models(database_url: str) -> None:
    command.check(migrations(database_url))


def test_every_check_is_in_the_database(database_settings: DatabaseSettings) -> None:
    # Alembic compares no CHECK constraints.
    engine = create_engine(database_settings.database_url.get_secret_value(), poolclass=NullPool)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        found = inspect(connection)
        for table in Base.metadata.tables.values():
            declared = {
                constraint.name for constraint in table.constraints if "ck_" in str(constraint.name)
            }
            migrated = {check["name"] for check in found.get_check_constraints(table.name)}
            assert declared == migrated
    engine.dispose()


def test_results_of_the_release_before_can_be_served(empty_url: str) -> None:
    """They are there when the column comes that puts partial results in order."""
    config = migrations(empty_url)
    command.upgrade(config, "41d9128d37d8")
    insert = (
        "INSERT INTO results (batch_pk, line_no, succeeded, line, input_tokens, cached_tokens,"
        " output_tokens, reasoning_tokens, total_tokens) VALUES (1, %s, true, '', 0, 0, 0, 0, 0)"
    )
    with psycopg.connect(empty_url) as connection:
        connection.execute(insert, [1])
    command.upgrade(config, "head")
    with psycopg.connect(empty_url) as connection:
        # As a process of the release before writes it.
        connection.execute(insert, [2])
    with psycopg.connect(empty_url) as connection:
        rows = connection.execute(
            "SELECT line_no, recorded_xid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
            " FROM results ORDER BY recorded_xid"
        ).fetchall()
    assert rows == [(1, True), (2, True)]


def test_there_is_one_newest_revision(database_url: str) -> None:
    script = ScriptDirectory.from_config(migrations(database_url))
    assert len(script.get_heads()) == 1
    for revision in script.walk_revisions():
        assert revision.doc


@pytest.mark.parametrize("status", sorted(FINAL))
async def test_an_ended_batch_never_changes(
    database: Database, database_url: str, status: BatchStatus
) -> None:
    batch = await make_batch(database, status=status)
    async with database.begin() as session:
        for target in BatchStatus:
            assert not await advance(session, batch.pk, target)
    with (
        psycopg.connect(database_url) as connection,
        pytest.raises(psycopg.errors.RaiseException, match="has ended"),
    ):
        connection.execute("UPDATE batches SET total = 5")


@pytest.mark.parametrize("status", list(BatchStatus))
async def test_every_status_can_be_kept(database: Database, status: BatchStatus) -> None:
    batch = await make_batch(database, status=status)
    assert batch.status == status


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE batches SET status = 'done'",
        "UPDATE batches SET status = 'completed'",
        "UPDATE batches SET completed_at = now()",
        "UPDATE batches SET finalizing_at = now()",
        "UPDATE batches SET cancelling_at = now()",
        "UPDATE batches SET in_progress_at = NULL",
        "UPDATE batches SET output_file_id = 'file-early'",
        "UPDATE batches SET completed = 1",
        "UPDATE batches SET lease_owner = 'me'",
    ],
)
async def test_what_must_not_be_is_refused(
    database: Database, database_url: str, statement: str
) -> None:
    await make_batch(database, status=BatchStatus.IN_PROGRESS)
    with (
        psycopg.connect(database_url) as connection,
        pytest.raises(psycopg.errors.CheckViolation),
    ):
        connection.execute(statement.encode())
