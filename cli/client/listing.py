"""`overnight ls` and `overnight show`: which batches there are, and what is known of one."""

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from cli.client.batchrun import FINAL
from cli.client.completion import complete_batch_id, complete_status
from cli.client.http import BatchClient
from cli.client.outcome import faults_of
from cli.client.pace import Pace, counts
from cli.client.server import ApiKeyFile, Url, find_server, on_server
from cli.console import UsageError
from cli.tables import AsJson, show_duration, show_facts, show_json, show_table, show_unix

BatchId = Annotated[
    str,
    typer.Argument(
        metavar="BATCH_ID", help="The batch's id: batch_….", autocompletion=complete_batch_id
    ),
]

_MOMENTS = {
    "created_at": "Created",
    "in_progress_at": "Began",
    "finalizing_at": "Lines ended",
    "completed_at": "Completed",
    "failed_at": "Failed",
    "expired_at": "Expired",
    "cancelling_at": "Cancelled at",
    "cancelled_at": "Cancelled",
}


def ls(
    *,
    status: Annotated[
        list[str] | None,
        typer.Option(
            "--status",
            metavar="STATUS",
            help="Only with this status; may be given several times.",
            autocompletion=complete_status,
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Only with this metadata; may be given several times."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, help="Show so many at most; 0 shows all.")
    ] = 20,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """List batches, newest first.

    How far they are, and until when they may take.
    """
    query: dict[str, str | list[str]] = {}
    if status:
        query["status"] = ",".join(status)
    for pair in metadata or []:
        key, sign, value = pair.partition("=")
        if not sign:
            raise UsageError("Metadata is given as --metadata key=value.")
        query[f"metadata[{key}]"] = value
    if limit:
        query["limit"] = str(min(limit, 100))

    async def read(client: BatchClient) -> list[dict[str, Any]]:
        found = []
        async for batch in client.list_batches(query):
            found.append(batch)
            if len(found) == limit:
                break
        return found

    batches = on_server(find_server(url, api_key_file), read)
    if as_json:
        show_json(batches)
        return
    if not batches:
        typer.echo("There is no such batch. `overnight run INPUT.jsonl` begins one.", err=True)
        return
    show_table(
        ["ID", "STATUS", "LINES", "FAILED", "CREATED", "TIME LEFT", "MODEL", "ENDPOINT"],
        [_row(batch) for batch in batches],
    )


def _row(batch: dict[str, Any]) -> tuple[str, ...]:
    total, completed, failed = counts(batch)
    done = completed + failed
    return (
        str(batch["id"]),
        str(batch["status"]),
        f"{done:,}/{total:,}" if done != total else f"{total:,}",
        f"{failed:,}",
        show_unix(batch.get("created_at")),
        _time_left(batch),
        str(batch.get("model") or ""),
        str(batch.get("endpoint") or ""),
    )


def _time_left(batch: dict[str, Any]) -> str:
    if batch["status"] in FINAL or not batch.get("expires_at"):
        return ""
    return show_duration(batch["expires_at"] - time.time())


def show(
    batch_id: BatchId,
    *,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what is known of a batch.

    How far it is, how fast, what it used, what is wrong with it.
    """

    async def read(client: BatchClient) -> tuple[dict[str, Any], dict[str, Any] | None]:
        batch = await client.retrieve(batch_id)
        is_over = batch["status"] in FINAL
        return batch, None if is_over else await client.progress(batch_id)

    batch, told = on_server(find_server(url, api_key_file), read)
    if as_json:
        show_json({"batch": batch, "progress": told})
        return
    show_facts(_facts(batch, told))
    if batch["status"] == "failed":
        typer.echo("\n".join(["What is wrong with its lines:", *faults_of(batch, 100)]))


def _facts(batch: dict[str, Any], told: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    sight = Pace().see(batch, told, now=0)
    yield "Id", str(batch["id"])
    yield "Status", f"{batch['status']}{', paused' if sight.is_paused else ''}"
    yield "Endpoint", str(batch.get("endpoint") or "")
    if batch.get("model"):
        yield "Model", str(batch["model"])
    yield "Lines", f"{sight.done:,} of {sight.total:,} done, {sight.failed:,} failed"
    if told:
        yield "In flight", f"{told.get('in_flight') or 0:,} calls, {sight.retries or 0:,} retries"
        if sight.lines_per_second:
            left = sight.seconds_left
            about = "" if left is None else f", about {show_duration(left)} left"
            yield "Rate", f"{sight.lines_per_second:,.1f} lines/s{about}"
        if told.get("forecast_in_window") is False:
            yield "Forecast", "at this rate, it does not end within its window"
    usage = (told or {}).get("usage") or batch.get("usage") or {}
    if usage.get("total_tokens"):
        yield (
            "Tokens",
            f"{usage.get('input_tokens', 0):,} in, {usage.get('output_tokens', 0):,} out",
        )
    for key, title in _MOMENTS.items():
        if batch.get(key):
            yield title, show_unix(batch[key])
    if left_words := _time_left(batch):
        yield "Window", f"{batch.get('completion_window')}, {left_words} left"
    for key, title in (
        ("input_file_id", "Input"),
        ("output_file_id", "Results"),
        ("error_file_id", "Errors"),
    ):
        if batch.get(key):
            yield title, str(batch[key])
    for key, value in (batch.get("metadata") or {}).items():
        yield "Metadata", f"{key}={value}"
