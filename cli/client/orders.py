"""`overnight cancel`, `pause`, `resume`, `retry`: what one tells a batch."""

import shlex
from typing import Any

import typer

from cli.client.listing import BatchId
from cli.client.pace import counts
from cli.client.server import ApiKeyFile, Server, Url, find_server, on_server
from cli.tables import AsJson, show_json


def cancel(
    batch_id: BatchId,
    *,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a batch.

    What has finished is kept.
    """
    batch, _ = _order(batch_id, "cancel", url, api_key_file, as_json=as_json)
    if not as_json:
        total, completed, failed = counts(batch)
        what = "is cancelled" if batch["status"] == "cancelled" else "is being cancelled"
        typer.echo(f"{batch_id} {what}: {completed + failed:,} of {total:,} requests had ended.")


def pause(
    batch_id: BatchId,
    *,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Pause a batch.

    Calls in flight end, no new one begins. Its window goes on.
    """
    _, server = _order(batch_id, "pause", url, api_key_file, as_json=as_json)
    if not as_json:
        typer.echo(f"{batch_id} is paused; its window goes on.")
        typer.echo(f"To go on: {_command(server, 'resume', batch_id)}", err=True)


def resume(
    batch_id: BatchId,
    *,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Let a paused batch go on."""
    _, server = _order(batch_id, "resume", url, api_key_file, as_json=as_json)
    if not as_json:
        typer.echo(f"{batch_id} goes on.")
        typer.echo(f"To see how: {_command(server, 'watch', batch_id)}", err=True)


def retry(
    batch_id: BatchId,
    *,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a new batch of the requests that failed.

    Also of those that never ran, of a batch that has ended. Prints the new batch's id.
    """
    batch, server = _order(batch_id, "retry", url, api_key_file, as_json=as_json)
    if not as_json:
        typer.echo(batch["id"])
        again = _command(server, "run", "--resume", str(batch["id"]))
        typer.echo(f"To watch and download it: {again}", err=True)


def _order(
    batch_id: str, verb: str, url: str | None, api_key_file: Any, *, as_json: bool
) -> tuple[dict[str, Any], Server]:
    server = find_server(url, api_key_file)
    batch = on_server(server, lambda client: client.act(batch_id, verb))
    if as_json:
        show_json(batch)
    return batch, server


def _command(server: Server, *words: str) -> str:
    return shlex.join(["overnight", *words, *server.options])
