"""The `overnight` command.

Promises: every command ends with a status of `ExitStatus`; a person's mistake is answered by a
sentence with what to do next, never by a traceback.
Each command's code is imported only when that command is called: Celery alone takes a second.
"""

import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import typer
from pydantic import ValidationError
from typer.core import TyperCommand, TyperGroup

from cli.console import CommandError, ExitStatus, explain_settings

_START = "Start here"
_BATCHES = "Batches, on this machine or any other"
_TENANTS = "Who may use it"
_PROCESSES = "The single processes (compose, Kubernetes)"


class _Place(NamedTuple):
    module: str
    panel: str
    summary: str


# The summaries stand here so that `overnight --help` need not import every command; a test keeps
# them equal to the commands' own.
COMMANDS = {
    "up": _Place(
        "cli.up", _START, "Start everything on this machine and keep it running until Ctrl-C."
    ),
    "demo": _Place("cli.demo", _START, "Run 1,000 requests as a batch, from upload to results."),
    "run": _Place(
        "cli.client.run", _START, "Run files of requests as batches and download the results."
    ),
    "doctor": _Place("cli.doctor", _START, "Say what is wrong with a set-up, and how to mend it."),
    "simulate": _Place(
        "cli.simulate", _START, "Start a simulated model server, for trying things."
    ),
    "validate": _Place(
        "cli.client.validate", _BATCHES, "Check files of requests as the server would, without one."
    ),
    "estimate": _Place(
        "cli.client.estimate",
        _BATCHES,
        "Estimate how much a file of requests is, and how long it takes.",
    ),
    "ls": _Place("cli.client.listing", _BATCHES, "List batches, newest first."),
    "show": _Place("cli.client.listing", _BATCHES, "Show what is known of a batch."),
    "watch": _Place("cli.client.watch", _BATCHES, "Show how batches go until they have ended."),
    "results": _Place("cli.client.results", _BATCHES, "Print a batch's results."),
    "cancel": _Place("cli.client.orders", _BATCHES, "Cancel a batch."),
    "pause": _Place("cli.client.orders", _BATCHES, "Pause a batch."),
    "resume": _Place("cli.client.orders", _BATCHES, "Let a paused batch go on."),
    "retry": _Place("cli.client.orders", _BATCHES, "Make a new batch of the requests that failed."),
    "keys": _Place("cli.keys", _TENANTS, "Make, list and revoke API keys; each opens one project."),
    "projects": _Place("cli.projects", _TENANTS, "Make, list, limit and archive projects."),
    "api": _Place("cli.processes.api", _PROCESSES, "Serve the HTTP API."),
    "worker": _Place(
        "cli.processes.worker",
        _PROCESSES,
        "Work on batches: call the model server, validate, finalize, sweep.",
    ),
    "beat": _Place("cli.processes.beat", _PROCESSES, "Ring the sweep every few seconds."),
    "migrate": _Place("cli.migrate", _PROCESSES, "Bring the database to this version's schema."),
    "check": _Place(
        "cli.check", _PROCESSES, "Try the settings, the database, the broker and the model servers."
    ),
}


class _CommandsOnCall(TyperGroup):
    """Lists commands from the table above; imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  # Click's signature
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002  # Click's signature
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        return TyperCommand(cmd_name, help=place.summary, rich_help_panel=place.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # Where typer looks for what a misspelt name may have meant.
        self.commands = {name: self.get_command(ctx, name) for name in COMMANDS}
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = load_command(name)
        return name, command, rest


def load_command(name: str) -> Any:
    """Import the command of this name, or its group of commands, and make it one of Click's."""
    function: Callable[..., None] | typer.Typer = getattr(
        importlib.import_module(COMMANDS[name].module), name
    )
    if isinstance(function, typer.Typer):
        return typer.main.get_command(function)
    alone = typer.Typer(add_completion=False)
    alone.command(name)(function)
    return typer.main.get_command(alone)


app = typer.Typer(
    cls=_CommandsOnCall,
    no_args_is_help=True,
    # A traceback with the values of local variables would show keys.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"overnight {version()}")
        raise typer.Exit


def version() -> str:
    """This version's number."""
    try:
        return importlib.metadata.version("overnight")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


@app.callback()
def overnight(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """OpenAI's Batches API on your own machine, in front of any OpenAI-compatible model server.

    Nothing is lost: a batch goes on after a crash, a restart or an outage of the model server.
    """


def main() -> None:
    """Run the command; say mistakes in a sentence and end with the exit status that fits."""
    try:
        app(prog_name="overnight")
    except CommandError as error:
        typer.echo(f"overnight: {error}", err=True)
        sys.exit(error.status)
    except ValidationError as error:
        # A module that reads its settings while it is imported.
        typer.echo(f"overnight: {' '.join(explain_settings(error))}", err=True)
        sys.exit(ExitStatus.USAGE)
    except KeyboardInterrupt:
        sys.exit(ExitStatus.INTERRUPTED)


if __name__ == "__main__":
    main()
