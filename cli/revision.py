"""Which schema the database has, and which one this version needs; without loading Alembic.

Loading Alembic and SQLAlchemy takes two seconds on a small machine, and usually only to find that
there is nothing to do.
"""

import importlib.resources
import re

import psycopg

from cli.console import CommandError

_CONNECT_SECONDS = 5
_REVISION = re.compile(r"^revision\b[^=]*=\s*(.+)$", re.MULTILINE)
_DOWN_REVISION = re.compile(r"^down_revision\b[^=]*=\s*(.+)$", re.MULTILINE)
_NAMES = re.compile(r"""["']([^"']+)["']""")


def newest_revision() -> str:
    """The revision that this code needs: the one that no other builds on."""
    revisions: set[str] = set()
    built_on: set[str] = set()
    for script in (importlib.resources.files("migrations") / "versions").iterdir():
        if script.name.endswith(".py"):
            text = script.read_text(encoding="utf-8")
            revisions.update(_names(_REVISION, text))
            built_on.update(_names(_DOWN_REVISION, text))
    (newest,) = revisions - built_on
    return newest


def current_revision(database_url: str) -> str | None:
    """The revision that the database is at; none when it is empty."""
    _, _, rest = database_url.partition("://")
    try:
        with psycopg.connect(
            f"postgresql://{rest}", connect_timeout=_CONNECT_SECONDS, autocommit=True
        ) as connection:
            if connection.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
                return None
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return str(row[0]) if row else None
    except psycopg.Error as error:
        raise unreachable(error) from error


def unreachable(error: Exception) -> CommandError:
    """The database cannot be used. The driver's words name the host, never the password."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CommandError(
        f"The database does not answer ({reason})."
        " Is it running, and is OVERNIGHT_DATABASE_URL right?"
    )


def _names(pattern: re.Pattern[str], text: str) -> list[str]:
    found = pattern.search(text)
    return _NAMES.findall(found[1]) if found else []
