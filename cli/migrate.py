"""`overnight migrate`: bring the database to the schema that this version needs.

Promises: running it again changes nothing; two at once wait for each other. It is never run at the
start of an API or worker process, only here and by `overnight up`.
"""

import importlib.resources
from typing import Annotated

import typer
from alembic import command
from alembic.config import Config
from alembic.util import CommandError as AlembicError
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError

from cli.console import CommandError
from cli.processes.start import read_settings
from cli.revision import current_revision, newest_revision, unreachable
from cli.tables import AsJson, show_json
from models.settings import DatabaseSettings


def migrate(
    *,
    show: Annotated[
        bool,
        typer.Option("--show", help="Only say which revisions the database and the code have."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the database to this version's schema."""
    url = read_settings(DatabaseSettings).database_url.get_secret_value()
    before = current_revision(url)
    if not show:
        upgrade(url)
    after = current_revision(url)
    if as_json:
        show_json({"before": before, "database": after, "code": newest_revision()})
    elif show:
        typer.echo(f"database: {before or 'empty'}\ncode:     {newest_revision()}")
    elif before == after:
        typer.echo(f"The database is up to date ({after}).")
    else:
        typer.echo(f"The database is now at {after} (before: {before or 'empty'}).")


def upgrade(database_url: str) -> None:
    """Run every migration that the database lacks."""
    settings = DatabaseSettings(database_url=SecretStr(database_url))
    config = Config()
    # Found as a package, so that it works from an installed wheel and from any folder.
    config.set_main_option("script_location", str(importlib.resources.files("migrations")))
    config.attributes["database_url"] = settings.database_url.get_secret_value()
    try:
        command.upgrade(config, "head")
    except AlembicError as error:
        raise CommandError(
            f"The database's schema is not one of this version's ({error}): it was made by a newer"
            " version of Overnight. Install that one, or use another database."
        ) from error
    except DBAPIError as error:
        raise unreachable(error.orig or error) from error
