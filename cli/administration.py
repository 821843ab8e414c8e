"""What `overnight keys` and `overnight projects` share: the way to the database.

Promises: works beside a running `overnight up`, without its lock; changes no schema; a database that
is away, or not of this version, is a sentence with what to do next.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from cli.console import CommandError, UsageError
from cli.datafolder import default_data_folder, running_sockets
from cli.embedded.postgres import url_of
from cli.processes.start import read_settings
from cli.revision import current_revision, newest_revision, unreachable
from models.database import Database
from models.project import check_name, check_project_name
from models.settings import DatabaseSettings

Answer = TypeVar("Answer")

# The environment is read by hand: what stands on the command line goes before it.
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="The data folder of the running `overnight up` (OVERNIGHT_DATA_DIR).",
        show_default="~/.local/share/overnight",
    ),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="The Postgres of the installation (OVERNIGHT_DATABASE_URL), instead of that of an"
        " `overnight up`. A URL with a password is better given by the environment variable.",
    ),
]


def on_database(
    work: Callable[[Database], Awaitable[Answer]],
    *,
    data_dir: Path | None,
    database_url: str | None,
) -> Answer:
    """Do some work on the database that the options or the environment name.

    Raises:
        CommandError: there is none, it does not answer, or it is not of this version.
    """
    url, place = _find_database(data_dir, database_url)
    settings = read_settings(lambda: DatabaseSettings(database_url=SecretStr(url)))
    try:
        found, needed = current_revision(url), newest_revision()
    except CommandError:
        if place is None:
            raise
        raise CommandError(
            f"The database of {place} does not answer: is `overnight up` still running, or starting,"
            " on it?"
        ) from None
    if found != needed:
        raise CommandError(
            f"The database's schema is {found or 'empty'} and this version needs {needed}: "
            + (
                "run `overnight migrate`."
                if place is None
                else f"stop the `overnight up` of {place}, and start it with this version."
            )
        )

    async def run() -> Answer:
        database = Database.connect(settings, role="command")
        try:
            return await work(database)
        finally:
            await database.dispose()

    try:
        return asyncio.run(run())
    except (DBAPIError, PoolTimeoutError, OSError) as error:
        raise unreachable(getattr(error, "orig", None) or error) from error


def _find_database(data_dir: Path | None, database_url: str | None) -> tuple[str, Path | None]:
    """Its URL; and the data folder, if it is the embedded one of an `overnight up`."""
    if data_dir is not None and database_url is not None:
        raise UsageError("Give either --data-dir or --database-url: each names a database.")
    if database_url is not None:
        return database_url, None
    from_environment = os.environ.get("OVERNIGHT_DATABASE_URL")
    # As with `up`: the variable names the database, whatever folder the rest is kept in.
    if from_environment and data_dir is None:
        return from_environment, None
    folder = data_dir or default_data_folder()
    sockets = running_sockets(folder)
    if sockets is not None:
        return url_of(sockets), folder
    if from_environment:
        return from_environment, None
    raise CommandError(
        f"No `overnight up` is running on {folder}: start it, name its --data-dir, or name your"
        " Postgres by OVERNIGHT_DATABASE_URL or --database-url."
    )


def read_name(text: str) -> str:
    """A key's name from the command line."""
    return _checked(check_name, text)


def read_project_name(text: str) -> str:
    """A project's name or id from the command line."""
    return _checked(check_project_name, text)


def _checked(check: Callable[[str], str], text: str) -> str:
    try:
        return check(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def unix(moment: datetime | None) -> int | None:
    """A time as the API has it."""
    return None if moment is None else int(moment.timestamp())
