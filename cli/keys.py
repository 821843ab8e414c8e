"""`overnight keys`: the API keys that are kept in the database.

Promises: a key is printed once, when it is made, and to standard output alone; only a salted hash of
it is kept, and it is never a part of a command line.
"""

from datetime import timedelta
from typing import Annotated, Any

import typer

from api.services import keys as services
from api.windows import parse_duration
from cli.administration import DatabaseUrl, DataDir, on_database, read_name, read_project_name, unix
from cli.console import CommandError, UsageError
from cli.projects import found_or_made, must_find
from cli.tables import AsJson, show_facts, show_json, show_moment, show_table
from models.database import Database
from models.project import ApiKey, Project

_LONGEST_LIFE = timedelta(days=36_500)
_KEY_SIGN = "sk-on-"

keys = typer.Typer(
    help="Make, list and revoke API keys; each opens one project.",
    no_args_is_help=True,
    add_completion=False,
)


@keys.command("create")
def create(
    project: Annotated[
        str,
        typer.Option("--project", metavar="NAME", help="Whose key; made if there is none such."),
    ],
    name: Annotated[
        str, typer.Option("--name", metavar="TEXT", help="What it is for, to tell keys apart.")
    ] = "",
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires",
            metavar="DURATION",
            help="How long it opens the project: 30d, 12h, 15m.",
            show_default="for ever",
        ),
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, this once."""
    project_name, key_name = read_project_name(project), read_name(name)
    life = None if expires is None else _read_life(expires)

    async def make(database: Database) -> tuple[str, ApiKey, Project, bool]:
        owner, is_new = await found_or_made(database, project_name)
        if owner.archived_at is not None:
            raise CommandError(
                f"The project '{owner.name}' is archived: its keys open nothing. Bring it back with"
                f" `overnight projects restore {owner.id}`."
            )
        text, kept = await services.create(database, owner, name=key_name, life=life)
        return text, kept, owner, is_new

    text, kept, owner, is_new = on_database(make, data_dir=data_dir, database_url=database_url)
    if as_json:
        show_json({"key": text} | _as_json(kept, owner))
        return
    show_facts(
        [
            ("Key", text),
            ("Id", kept.id),
            ("Project", f"{owner.name} ({owner.id}{', new' if is_new else ''})"),
            ("Expires", show_moment(kept.expires_at, "never")),
        ]
    )
    typer.echo("Keep the key now: it is not kept here, and cannot be shown again.", err=True)


@keys.command("list")
def list_(
    project: Annotated[
        str | None, typer.Option("--project", metavar="NAME", help="Only this project's keys.")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List keys: what they are for, when they were used last, what has become of them."""
    project_name = None if project is None else read_project_name(project)

    async def read(database: Database) -> Any:
        of = None if project_name is None else await must_find(database, project_name)
        return await services.list_(database, of)

    found = on_database(read, data_dir=data_dir, database_url=database_url)
    if as_json:
        show_json([_as_json(key, of, is_open=is_open) for key, of, is_open in found])
        return
    if not found:
        typer.echo(
            "There is no key yet: make one with `overnight keys create --project NAME`.", err=True
        )
        return
    show_table(
        ["ID", "KEY", "PROJECT", "NAME", "CREATED", "LAST USED", "EXPIRES", "STATE"],
        [
            (
                key.id,
                f"{_KEY_SIGN}…{key.hint}",
                of.name,
                key.name,
                show_moment(key.created_at, ""),
                show_moment(key.last_used_at, "never"),
                show_moment(key.expires_at, "never"),
                _state(key, of, is_open=is_open),
            )
            for key, of, is_open in found
        ],
    )


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id: key_….")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Let a key open nothing any more, at once and for good."""
    if key_id.startswith("sk-"):
        raise UsageError(
            "Give the key's id (key_…), as `overnight keys list` shows it. Other users of this machine"
            " can read command lines: should that have been a key, revoke it."
        )

    async def work(database: Database) -> ApiKey | None:
        # What Postgres cannot hold, nobody has.
        return await services.revoke(database, key_id) if key_id.isprintable() else None

    revoked = on_database(work, data_dir=data_dir, database_url=database_url)
    if revoked is None:
        raise CommandError(f"No key has the id {key_id[:64]!a}: `overnight keys list` shows them.")
    if as_json:
        show_json({"id": revoked.id, "state": "revoked", "revoked_at": unix(revoked.revoked_at)})
        return
    typer.echo(f"{revoked.id} is revoked since {show_moment(revoked.revoked_at, '')}.")


def _read_life(text: str) -> timedelta:
    try:
        life = parse_duration(text.strip())
    except ValueError as error:
        raise UsageError(f"--expires: {error}.") from error
    if life > _LONGEST_LIFE:
        raise UsageError(
            f"--expires: at most {_LONGEST_LIFE.days}d; leave it out for a key for ever."
        )
    return life


def _state(key: ApiKey, of: Project, *, is_open: bool) -> str:
    if is_open:
        return "active"
    if key.revoked_at is not None:
        return "revoked"
    return "project archived" if of.archived_at is not None else "expired"


def _as_json(key: ApiKey, of: Project, *, is_open: bool = True) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "hint": key.hint,
        "project": {"id": of.id, "name": of.name},
        "state": _state(key, of, is_open=is_open),
        "created_at": unix(key.created_at),
        "last_used_at": unix(key.last_used_at),
        "expires_at": unix(key.expires_at),
        "revoked_at": unix(key.revoked_at),
    }
