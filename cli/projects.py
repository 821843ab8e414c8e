"""`overnight projects`: the tenants, and what each may use.

Promises: nothing that belongs to a project is ever removed here; a limit counts from the next request.
"""

import re
from typing import Annotated, Any

import typer

from api.services import projects as services
from cli.administration import (
    AsJson,
    DatabaseUrl,
    DataDir,
    on_database,
    read_project_name,
    show_facts,
    show_json,
    show_moment,
    show_table,
    unix,
)
from cli.console import CommandError, UsageError
from models.database import Database
from models.project import DEFAULT_PROJECT_PK, Project

_ID_SIGN = "proj_"
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_NUMBER = re.compile(r"([0-9]{1,19})(|[kmgt]b)", re.ASCII | re.IGNORECASE)
_MOST = {"max_batches_per_hour": 2**31 - 1}
_MOST_OF_OTHERS = 2**63 - 1

projects = typer.Typer(
    help="Make, list, limit and archive projects.", no_args_is_help=True, add_completion=False
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The project's name or id.")]
_LIMIT_WORDS = "a number, `none` for no limit, or `default` for that of the settings."


def _limit_option(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", metavar="LIMIT", help=f"{what}: {_LIMIT_WORDS}")


@projects.command("list")
def list_(
    data_dir: DataDir = None, database_url: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """List projects."""
    found = on_database(services.list_, data_dir=data_dir, database_url=database_url)
    if as_json:
        show_json([_as_json(project) | {"active_keys": keys} for project, keys in found])
        return
    show_table(
        ["NAME", "ID", "ACTIVE KEYS", "CREATED", "STATE", "OWN LIMITS"],
        [
            (
                project.name,
                project.id,
                str(keys),
                show_moment(project.created_at, ""),
                _state(project),
                _own_limits(project),
            )
            for project, keys in found
        ],
    )


@projects.command("create")
def create(
    name: Name,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a project; one that is there already stays as it is."""
    asked = read_project_name(name)

    async def work(database: Database) -> tuple[Project, bool]:
        return await found_or_made(database, asked)

    project, is_new = on_database(work, data_dir=data_dir, database_url=database_url)
    if as_json:
        show_json(_as_json(project))
        return
    typer.echo(f"{project.name} ({project.id}) {'is made' if is_new else 'was there already'}.")


@projects.command("show")
def show(
    name: Name,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show a project: its limits, and what it uses just now."""
    asked = read_project_name(name)

    async def work(database: Database) -> tuple[Project, services.Usage]:
        project = await must_find(database, asked)
        return project, await services.usage_of(database, project)

    project, usage = on_database(work, data_dir=data_dir, database_url=database_url)
    if as_json:
        enqueued = [
            {"model": each.model, "lines": each.lines, "tokens": each.tokens}
            for each in usage.enqueued
        ]
        used = {
            "batches_last_hour": usage.batches_last_hour,
            "enqueued": enqueued,
            "stored_bytes": usage.stored_bytes,
        }
        show_json(_as_json(project) | {"usage": used})
        return
    facts = [
        ("Name", project.name),
        ("Id", project.id),
        ("State", _state(project)),
        ("Created", show_moment(project.created_at, "")),
        (
            "Batches an hour",
            f"{usage.batches_last_hour:,} of {_limit(project, 'max_batches_per_hour')}",
        ),
        ("Stored bytes", f"{usage.stored_bytes:,} of {_limit(project, 'max_stored_bytes')}"),
        ("Enqueued requests of a model", f"at most {_limit(project, 'max_enqueued_lines')}"),
        ("Enqueued tokens of a model", f"at most {_limit(project, 'max_enqueued_tokens')}"),
    ]
    facts += [
        (
            f"  {each.model or '(no model named)'}",
            f"{each.lines:,} requests, {each.tokens:,} tokens",
        )
        for each in usage.enqueued
    ]
    show_facts(facts)


@projects.command("set")
def set_(
    name: Name,
    max_batches_per_hour: Annotated[
        str | None, _limit_option("max-batches-per-hour", "Batches created in an hour")
    ] = None,
    max_enqueued_lines: Annotated[
        str | None, _limit_option("max-enqueued-lines", "Enqueued requests of one model")
    ] = None,
    max_enqueued_tokens: Annotated[
        str | None, _limit_option("max-enqueued-tokens", "Enqueued prompt tokens of one model")
    ] = None,
    max_stored_bytes: Annotated[
        str | None, _limit_option("max-stored-bytes", "Stored bytes (also 500GB)")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Set limits of a project; they count from the next request."""
    asked = read_project_name(name)
    given = {
        "max_batches_per_hour": max_batches_per_hour,
        "max_enqueued_lines": max_enqueued_lines,
        "max_enqueued_tokens": max_enqueued_tokens,
        "max_stored_bytes": max_stored_bytes,
    }
    limits = {limit: _read_limit(limit, text) for limit, text in given.items() if text is not None}
    if not limits:
        options = ", ".join(f"--{limit.replace('_', '-')}" for limit in given)
        raise UsageError(f"Say which limit to set: {options}.")

    async def work(database: Database) -> Project:
        return await services.set_limits(database, await must_find(database, asked), limits)

    project = on_database(work, data_dir=data_dir, database_url=database_url)
    typer.echo(f"{project.name} ({project.id}) now has: {_own_limits(project)}.")


@projects.command("archive")
def archive(name: Name, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Let no key open a project any more. What it has running ends as it would; nothing is removed."""
    asked = read_project_name(name)

    async def work(database: Database) -> Project:
        project = await must_find(database, asked)
        if project.pk == DEFAULT_PROJECT_PK:
            raise CommandError(
                f"The project '{project.name}' cannot be archived: it is that of OVERNIGHT_API_KEY."
            )
        return await services.archive(database, project)

    project = on_database(work, data_dir=data_dir, database_url=database_url)
    typer.echo(f"{project.name} ({project.id}) is archived: its keys open nothing any more.")


@projects.command("restore")
def restore(name: Name, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Bring an archived project back, with its keys."""
    asked = read_project_name(name)

    async def work(database: Database) -> Project:
        return await services.restore(database, await must_find(database, asked))

    project = on_database(work, data_dir=data_dir, database_url=database_url)
    typer.echo(f"{project.name} ({project.id}) is active.")


async def must_find(database: Database, name: str) -> Project:
    """The project of this name or id; a sentence if there is none."""
    found = await services.find(database, name)
    if found is None:
        raise CommandError(f"No project is called '{name}': `overnight projects list` shows them.")
    return found


async def found_or_made(database: Database, name: str) -> tuple[Project, bool]:
    """The project of this name or id, made if it is new; what looks like an id has to be there."""
    if name.startswith(_ID_SIGN):
        return await must_find(database, name), False
    return await services.find_or_create(database, name)


def _read_limit(limit: str, text: str) -> int | None:
    option = f"--{limit.replace('_', '-')}"
    word = text.strip().lower().replace(",", "").replace("_", "")
    if word in {"none", "default"}:
        return 0 if word == "none" else None
    match = _NUMBER.fullmatch(word)
    if match is None or (match[2] and limit != "max_stored_bytes"):
        raise UsageError(f"{option}: give {_LIMIT_WORDS}")
    value = int(match[1]) * _UNITS[match[2]]
    most = _MOST.get(limit, _MOST_OF_OTHERS)
    if value > most:
        raise UsageError(f"{option}: at most {most:,}; `none` is no limit.")
    return value


def _limit(project: Project, limit: str) -> str:
    value: int | None = getattr(project, limit)
    return "the default" if value is None else f"{value:,}" if value else "no limit"


def _own_limits(project: Project) -> str:
    names = (
        "max_batches_per_hour",
        "max_enqueued_lines",
        "max_enqueued_tokens",
        "max_stored_bytes",
    )
    own = [
        f"{name} {_limit(project, name)}" for name in names if getattr(project, name) is not None
    ]
    return ", ".join(own) or "the defaults"


def _state(project: Project) -> str:
    return "active" if project.archived_at is None else "archived"


def _as_json(project: Project) -> dict[str, Any]:
    return {
        "id": project.id,
        "name": project.name,
        "state": _state(project),
        "created_at": unix(project.created_at),
        "archived_at": unix(project.archived_at),
        "limits": {
            "max_batches_per_hour": project.max_batches_per_hour,
            "max_enqueued_lines": project.max_enqueued_lines,
            "max_enqueued_tokens": project.max_enqueued_tokens,
            "max_stored_bytes": project.max_stored_bytes,
        },
    }
