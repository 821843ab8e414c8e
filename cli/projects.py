"""`overnight projects`: the tenants, and what each may use.

Promises: nothing that belongs to a project is ever removed here; a limit counts from the next request.
"""

from typing import Annotated, Any

import typer

from api.services import projects as services
from cli.administration import DatabaseUrl, DataDir, on_database, read_project_name, unix
from cli.console import CommandError, UsageError
from cli.projectlimits import (
    LIMIT_WORDS,
    limit_words,
    own_limits,
    read_limit,
    read_weight,
)
from cli.tables import AsJson, show_facts, show_json, show_moment, show_table
from models.database import Database
from models.project import DEFAULT_PROJECT_PK, Project

_ID_SIGN = "proj_"

projects = typer.Typer(
    help="Make, list, limit and archive projects.", no_args_is_help=True, add_completion=False
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The project's name or id.")]

Weight = Annotated[
    str | None,
    typer.Option(
        "--weight",
        metavar="NUMBER",
        help="Its share of the model servers beside other projects', in proportion (1 unless set).",
    ),
]


def _limit_option(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", metavar="LIMIT", help=f"{what}: {LIMIT_WORDS}")


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
        ["NAME", "ID", "ACTIVE KEYS", "CREATED", "STATE", "WEIGHT", "OWN LIMITS"],
        [
            (
                project.name,
                project.id,
                str(keys),
                show_moment(project.created_at, ""),
                _state(project),
                f"{project.weight:g}",
                own_limits(project),
            )
            for project, keys in found
        ],
    )


@projects.command("create")
def create(
    name: Name,
    weight: Weight = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a project; one that is there already stays as it is."""
    asked = read_project_name(name)
    values = {} if weight is None else {"weight": read_weight(weight)}

    async def work(database: Database) -> tuple[Project, bool]:
        return await found_or_made(database, asked, **values)

    project, is_new = on_database(work, data_dir=data_dir, database_url=database_url)
    _tell(project, "is made." if is_new else "was there already.", as_json=as_json)


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
        ("Weight", f"{project.weight:g}"),
        (
            "Batches an hour",
            f"{usage.batches_last_hour:,} of {limit_words(project, 'max_batches_per_hour')}",
        ),
        ("Stored bytes", f"{usage.stored_bytes:,} of {limit_words(project, 'max_stored_bytes')}"),
        ("Enqueued requests of a model", f"at most {limit_words(project, 'max_enqueued_lines')}"),
        ("Enqueued tokens of a model", f"at most {limit_words(project, 'max_enqueued_tokens')}"),
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
    *,
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
    weight: Weight = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Set limits of a project, which count from the next request, and its weight."""
    asked = read_project_name(name)
    given = {
        "max_batches_per_hour": max_batches_per_hour,
        "max_enqueued_lines": max_enqueued_lines,
        "max_enqueued_tokens": max_enqueued_tokens,
        "max_stored_bytes": max_stored_bytes,
    }
    values: dict[str, int | float | None] = {
        limit: read_limit(limit, text) for limit, text in given.items() if text is not None
    }
    if weight is not None:
        values["weight"] = read_weight(weight)
    if not values:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in (*given, "weight"))
        raise UsageError(f"Say what to set: {options}.")

    async def work(database: Database) -> Project:
        return await services.set_limits(database, await must_find(database, asked), values)

    project = on_database(work, data_dir=data_dir, database_url=database_url)
    words = f"now has: {own_limits(project)}; weight {project.weight:g}."
    _tell(project, words, as_json=as_json)


@projects.command("archive")
def archive(
    name: Name,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
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
    _tell(project, "is archived: its keys open nothing any more.", as_json=as_json)


@projects.command("restore")
def restore(
    name: Name,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Bring an archived project back, with its keys."""
    asked = read_project_name(name)

    async def work(database: Database) -> Project:
        return await services.restore(database, await must_find(database, asked))

    project = on_database(work, data_dir=data_dir, database_url=database_url)
    _tell(project, "is active.", as_json=as_json)


def _tell(project: Project, words: str, *, as_json: bool) -> None:
    if as_json:
        show_json(_as_json(project))
    else:
        typer.echo(f"{project.name} ({project.id}) {words}")


async def must_find(database: Database, name: str) -> Project:
    """The project of this name or id; a sentence if there is none."""
    found = await services.find(database, name)
    if found is None:
        raise CommandError(f"No project is called '{name}': `overnight projects list` shows them.")
    return found


async def found_or_made(
    database: Database, name: str, *, weight: float = 1.0
) -> tuple[Project, bool]:
    """The project of this name or id, made if it is new; what looks like an id has to be there."""
    if name.startswith(_ID_SIGN):
        return await must_find(database, name), False
    return await services.find_or_create(database, name, weight=weight)


def _state(project: Project) -> str:
    return "active" if project.archived_at is None else "archived"


def _as_json(project: Project) -> dict[str, Any]:
    return {
        "id": project.id,
        "name": project.name,
        "state": _state(project),
        "created_at": unix(project.created_at),
        "archived_at": unix(project.archived_at),
        "weight": project.weight,
        "limits": {
            "max_batches_per_hour": project.max_batches_per_hour,
            "max_enqueued_lines": project.max_enqueued_lines,
            "max_enqueued_tokens": project.max_enqueued_tokens,
            "max_stored_bytes": project.max_stored_bytes,
        },
    }
