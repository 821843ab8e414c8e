"""`overnight migrate`: bring the database to the schema that this version needs.

Promises: running it again changes nothing; two at once wait for each other. It is never run at the
start of an API or worker process, only here and by `overnight up`.
"""

import importlib.resources
from typing import Annotated

import typer
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import ValidationError
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from cli.console import CommandError, UsageError, explain_settings
from models.settings import DatabaseSettings


def migrate(
    show: Annotated[
        bool,
        typer.Option("--show", help="Only say which revisions the database and the code have."),
    ] = False,
) -> None:
    """Bring the database (OVERNIGHT_DATABASE_URL) to this version's schema."""
    settings = database_settings()
    url = settings.database_url.get_secret_value()
    try:
        before = current_revision(url)
        if not show:
            upgrade(url)
        after = current_revision(url)
    except OperationalError as error:
        raise CommandError(unreachable(error)) from error
    if show:
        typer.echo(f"database: {before or 'empty'}\ncode:     {newest_revision()}")
    elif before == after:
        typer.echo(f"The database is up to date ({after}).")
    else:
        typer.echo(f"The database is now at {after} (before: {before or 'empty'}).")


def database_settings() -> DatabaseSettings:
    """The database's settings from the environment, or a sentence for each one that is wrong."""
    try:
        return DatabaseSettings()
    except ValidationError as error:
        raise UsageError(" ".join(explain_settings(error))) from error


def upgrade(url: str) -> None:
    """Run every migration that the database lacks. `url` is one of SQLAlchemy's."""
    config = _config()
    config.attributes["database_url"] = url
    command.upgrade(config, "head")


def newest_revision() -> str:
    """The revision that this code needs."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def current_revision(url: str) -> str | None:
    """The revision that the database is at; none when it is empty."""
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5})
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def unreachable(error: OperationalError) -> str:
    """Why the database cannot be reached. The driver's words name the host, never the password."""
    reason = str(error.orig).strip().splitlines()[0]
    return f"The database does not answer ({reason}). Is it running, and is OVERNIGHT_DATABASE_URL right?"


def _config() -> Config:
    config = Config()
    # Found as a package, so that it works from an installed wheel and from any folder.
    config.set_main_option("script_location", str(importlib.resources.files("migrations")))
    return config
