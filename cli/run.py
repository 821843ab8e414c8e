"""`overnight run`: a file of requests in, a file of results out.

Exit statuses: 0 every request succeeded; 3 the batch completed, but some requests failed; 4 the
batch failed its check; 5 it expired; 6 it was cancelled; 1 the server did not do its part; 2 the
command line is wrong; 130 stopped by Ctrl-C, the batch goes on.
"""

import asyncio
import json
import os
import shlex
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from cli.address import is_loopback
from cli.batchrun import BatchRun, first_error
from cli.client import BatchClient
from cli.console import INTERRUPTED, UsageError
from cli.datafolder import default_data_folder, read_key
from cli.progress import choose_progress, counts
from cli.stopping import StopSignals

LOCAL_BASE_URL = "http://127.0.0.1:8080/v1"

SOME_FAILED = 3
STATUS_OF = {"failed": 4, "expired": 5, "cancelled": 6}
_MOST_ERRORS_SHOWN = 20


def run(
    source: Annotated[
        Path,
        typer.Argument(metavar="INPUT.jsonl", help="The requests, one JSON object a line."),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Where the results go.", show_default="INPUT-output.jsonl"
        ),
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option(
            "--errors",
            "-e",
            help="Where the requests that failed go; not there when none did.",
            show_default="INPUT-errors.jsonl",
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="Such as /v1/chat/completions.", show_default="the first line's url"),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            envvar="OPENAI_BASE_URL", help="The API to send to.", show_default=LOCAL_BASE_URL
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="OPENAI_API_KEY",
            show_envvar=True,
            help="Its key. On this machine, `overnight up` has kept one that is used by itself.",
        ),
    ] = None,
    completion_window: Annotated[str, typer.Option(help="How long the batch may take.")] = "24h",
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Noted on the batch; may be given several times."),
    ] = None,
    poll: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks at the batch.")
    ] = 2.0,
    resume: Annotated[
        str | None,
        typer.Option(metavar="BATCH_ID", help="Watch and download this batch; upload nothing."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the outcome as one JSON object.")
    ] = False,
    progress: Annotated[bool, typer.Option(help="Show how it goes, on standard error.")] = True,
) -> None:
    """Run a file of requests as a batch and download the results.

    Exit status: 0 every request succeeded, 3 some failed, 4 the batch failed its check, 5 it expired,
    6 it was cancelled, 1 the server failed, 2 wrong usage, 130 Ctrl-C (the batch goes on).
    """
    job = BatchRun(
        source=source,
        output=output or _usual_place(source, "output"),
        errors=errors or _usual_place(source, "errors"),
        endpoint=endpoint,
        window=completion_window,
        metadata=_pairs(metadata or []),
        poll_seconds=poll,
        batch_id=resume,
    )
    places = [path.absolute() for path in (source, job.output, job.errors)]
    if len(set(places)) < len(places):
        raise UsageError("Input, output and errors must be three different files.")
    url = base_url or LOCAL_BASE_URL
    key = choose_key(api_key, base_url or None)
    interrupted = asyncio.run(_run_until_signal(job, url, key, shows_progress=progress))
    if interrupted:
        typer.echo(how_to_go_on(job, url), err=True)
        raise typer.Exit(INTERRUPTED)
    typer.echo(json.dumps(_outcome(job)) if as_json else summary(job))
    raise typer.Exit(exit_status(job.batch))


async def _run_until_signal(
    job: BatchRun, base_url: str, api_key: str | None, *, shows_progress: bool
) -> bool:
    """Run the batch. Returns whether a signal cut the watch short."""
    async with StopSignals() as signals:
        with choose_progress(wanted=shows_progress) as progress:
            async with BatchClient(base_url, api_key, on_trouble=progress.say) as client:
                await job.go(client, progress)
    return signals.received is not None and not job.seconds


def choose_key(given: str | None, base_url: str | None) -> str | None:
    """The key to send: the one given, or the one that `overnight up` on this machine has kept.

    Without a base URL the server is ours, and an OpenAI key in the environment of no use to it.
    """
    own = os.environ.get("OVERNIGHT_API_KEY", "").split(",")[0].strip() or None
    if base_url is None or is_loopback(urlsplit(base_url).hostname or ""):
        own = own or read_key(default_data_folder().expanduser() / "api-key")
    return own or given if base_url is None else given or own


def exit_status(batch: dict[str, Any]) -> int:
    """What the batch's end means for scripts; listed at the top of this module."""
    status = str(batch["status"])
    if status in STATUS_OF:
        return STATUS_OF[status]
    total, completed, _ = counts(batch)
    return 0 if completed == total else SOME_FAILED


def summary(job: BatchRun) -> str:
    """What became of the batch, for people."""
    batch = job.batch
    total, completed, failed = counts(batch)
    status = str(batch["status"])
    lines = []
    if status == "failed":
        lines.append("The batch failed its check; nothing was run.")
        found = (batch.get("errors") or {}).get("data") or []
        lines += [f"  {_where(each)}{each.get('message')}" for each in found[:_MOST_ERRORS_SHOWN]]
        if len(found) > _MOST_ERRORS_SHOWN:
            lines.append(f"  … and {len(found) - _MOST_ERRORS_SHOWN:,} more.")
    else:
        how = "" if status == "completed" else f" The batch {_ENDED[status]}."
        # Of a batch that was taken up half-way, the time says nothing.
        rate = f" ({total / job.seconds:,.0f}/s)" if job.seconds and not job.is_resumed else ""
        lines.append(
            f"{completed:,} of {total:,} requests succeeded, {failed:,} failed,"
            f" in {job.seconds:,.1f} s{rate}.{how}"
        )
    usage = batch.get("usage") or {}
    if usage.get("total_tokens"):
        lines.append(
            f"Tokens   {usage.get('input_tokens', 0):,} in, {usage.get('output_tokens', 0):,} out"
        )
    if batch.get("output_file_id"):
        lines.append(f"Results  {job.output}")
    if batch.get("error_file_id"):
        first = first_error(job.errors)
        lines.append(f"Errors   {job.errors}" + (f"\n         the first: {first}" if first else ""))
    return "\n".join(lines)


_ENDED = {"expired": "expired", "cancelled": "was cancelled"}


def _where(error: dict[str, Any]) -> str:
    return f"line {error['line']:,}: " if error.get("line") else ""


def _outcome(job: BatchRun) -> dict[str, Any]:
    return {
        "batch": job.batch,
        "output": str(job.output) if job.batch.get("output_file_id") else None,
        "errors": str(job.errors) if job.batch.get("error_file_id") else None,
        "seconds": round(job.seconds, 3),
    }


def _usual_place(source: Path, kind: str) -> Path:
    return source.with_name(f"{source.stem}-{kind}.jsonl")


def _pairs(given: list[str]) -> dict[str, str]:
    pairs = dict(each.partition("=")[::2] for each in given if "=" in each)
    if len(pairs) < len(given):
        raise UsageError("Metadata is given as --metadata key=value, each key once.")
    return pairs


def how_to_go_on(job: BatchRun, base_url: str) -> str:
    """What somebody who has stopped watching may do next, as commands for a shell."""
    if job.batch_id is None:
        return "Stopped. No batch was created."
    resume = ["overnight", "run", str(job.source), "--resume", job.batch_id]
    if base_url != LOCAL_BASE_URL:
        resume += ["--base-url", base_url]
    if job.output != _usual_place(job.source, "output"):
        resume += ["-o", str(job.output)]
    if job.errors != _usual_place(job.source, "errors"):
        resume += ["-e", str(job.errors)]
    cancel = shlex.quote(f"{base_url.rstrip('/')}/batches/{job.batch_id}/cancel")
    return (
        "Stopped watching; the batch goes on."
        f"\n  watch and download  {shlex.join(resume)}"
        f'\n  cancel              curl -X POST -H "Authorization: Bearer $OPENAI_API_KEY" {cancel}'
    )
