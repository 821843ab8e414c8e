"""`overnight watch`: how batches go, until they have ended."""

import asyncio
import shlex
from typing import Annotated, Any

import typer

from cli.client.batchrun import watch_batch
from cli.client.completion import complete_batch_id
from cli.client.outcome import end_of, exit_status, worst
from cli.client.progress import choose_progress
from cli.client.run import Poll, ShowsHow
from cli.client.server import ApiKeyFile, Server, Url, connect, find_server
from cli.console import ExitStatus
from cli.stopping import StopSignals
from cli.tables import AsJson, show_json


def watch(
    batch_ids: Annotated[
        list[str],
        typer.Argument(
            metavar="BATCH_ID…", help="The batches' ids.", autocompletion=complete_batch_id
        ),
    ],
    *,
    poll: Poll = 2.0,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
    progress: ShowsHow = True,
) -> None:
    """Show how batches go until they have ended.

    Nothing is downloaded, and Ctrl-C ends the watch alone. The exit status is that of `overnight run`.
    """
    server = find_server(url, api_key_file)
    ended = asyncio.run(_watch(batch_ids, server, poll_seconds=poll, shows_progress=progress))
    if ended is None:
        again = shlex.join(["overnight", "watch", *batch_ids, *server.options])
        typer.echo(f"Stopped watching; what runs goes on. To watch again: {again}", err=True)
        raise typer.Exit(ExitStatus.INTERRUPTED)
    for batch in ended:
        if as_json:
            show_json(batch)
        else:
            start = f"{batch['id']}: " if len(ended) > 1 else ""
            typer.echo(f"{start}{end_of(batch)}")
            if batch.get("output_file_id") or batch.get("error_file_id"):
                typer.echo(f"To see the results: overnight results {batch['id']}", err=True)
    raise typer.Exit(worst([exit_status(batch) for batch in ended]))


async def _watch(
    batch_ids: list[str], server: Server, *, poll_seconds: float, shows_progress: bool
) -> list[dict[str, Any]] | None:
    """The batches as they ended; nothing if a signal came first."""
    ended: list[dict[str, Any]] | None = None
    async with StopSignals():
        with choose_progress(wanted=shows_progress) as progress:
            async with connect(server, progress.say) as client:
                watches = (
                    watch_batch(
                        client,
                        batch_id,
                        progress,
                        poll_seconds=poll_seconds,
                        label=batch_id if len(batch_ids) > 1 else "",
                    )
                    for batch_id in batch_ids
                )
                ended = await asyncio.gather(*watches)
    return ended
