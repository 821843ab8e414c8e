"""`overnight run`: files of requests in, files of results out.

Promises: stopped by Ctrl-C, it says the command that goes on from there; of several files, one that
fails does not hold up the others.
"""

import asyncio
import json
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from cli.client.batchrun import BatchRun
from cli.client.http import BatchClient
from cli.client.outcome import exit_status, outcome, summary, worst
from cli.client.progress import ShowsProgress, choose_progress
from cli.client.server import LOCAL_BASE_URL, ApiKeyFile, Server, Url, connect, find_server
from cli.client.source import STANDARD_STREAM, on_disk, open_source
from cli.console import CommandError, ExitStatus, UsageError
from cli.stopping import StopSignals
from cli.tables import AsJson

# Each holds a connection and a part of the line; more would not be faster.
_UPLOADS_AT_ONCE = 4

Poll = Annotated[
    float,
    typer.Option(min=0.1, metavar="SECONDS", help="Seconds between two looks at the batch."),
]
ShowsHow = Annotated[
    bool, typer.Option("--progress/--no-progress", help="Show how it goes, on standard error.")
]


def run(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="INPUT.jsonl…",
            help="The requests, one JSON object a line; - is standard input. One batch a file.",
            show_default=False,
        ),
    ] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where the results go: a file, a folder (for several inputs), or - for standard output.",
            show_default="INPUT-output.jsonl; standard output if the input is -",
        ),
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option(
            "--errors",
            "-e",
            help="Where the requests that failed go, a file or a folder; not there when none did.",
            show_default="INPUT-errors.jsonl",
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="Such as /v1/chat/completions.", show_default="the first line's url"),
    ] = None,
    completion_window: Annotated[str, typer.Option(help="How long the batch may take.")] = "24h",
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Noted on the batch; may be given several times."),
    ] = None,
    ordered: Annotated[
        bool,
        typer.Option(
            "--ordered",
            help="Put the results into the order of the requests. (Overnight's are; other servers' may"
            " not be.)",
        ),
    ] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait/--no-wait", help="Stay until the results are here, or only begin."),
    ] = True,
    resume: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BATCH_ID",
            help="Watch and download this batch; upload nothing. Once for each input, or without any.",
        ),
    ] = None,
    poll: Poll = 2.0,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
    progress: ShowsHow = True,
) -> None:
    """Run files of requests as batches and download the results.

    Exit status: 0 every request succeeded, 3 some failed, 4 the file failed its
    check, 5 the batch expired, 6 it was cancelled; of several files the highest.
    1 the server failed, 2 wrong usage, 130 Ctrl-C (the batches go on).
    """
    server = find_server(url, api_key_file)
    pairs = _pairs(metadata or [])
    jobs = plan(sources or [], resume or [], output, errors)
    _require_distinct(jobs, as_json=as_json, wait=wait)
    if ordered and any(job.source is None for job in jobs):
        raise UsageError("--ordered needs the file of requests: name it before --resume.")
    for job in jobs:
        job.endpoint, job.window, job.metadata = endpoint, completion_window, pairs
        job.poll_seconds, job.is_ordered, job.waits = poll, ordered, wait
    with ExitStack() as files:
        for job in jobs:
            if job.source is not None and (job.batch_id is None or job.is_ordered):
                job.source = files.enter_context(on_disk(job.source))
                open_source(job.source).close()
        failures = asyncio.run(_run_until_signal(jobs, server, shows_progress=progress))
    if failures is None:
        typer.echo(how_to_go_on(jobs, server), err=True)
        raise typer.Exit(ExitStatus.INTERRUPTED)
    raise typer.Exit(_tell(jobs, failures, as_json=as_json, wait=wait))


def plan(
    sources: list[Path], resume: list[str], output: Path | None, errors: Path | None
) -> list[BatchRun]:
    """What is to be run, and where its results go."""
    for folder in filter(Path.is_dir, sources):
        raise UsageError(f"{folder} is a folder: name the .jsonl files in it.")
    if not sources and not resume:
        raise UsageError(
            "Which file of requests? `overnight run INPUT.jsonl`; `overnight run --help` says more."
        )
    if sources and resume and len(sources) != len(resume):
        raise UsageError(
            f"--resume names {len(resume)} batches and the command line {len(sources)} files: give one"
            " for each file, in the same order, or no file at all."
        )
    count = max(len(sources), len(resume))
    for option, place in (("--output", output), ("--errors", errors)):
        if place is not None and count > 1 and not place.is_dir():
            raise UsageError(f"{option} must be an existing folder when there are several inputs.")
    jobs = []
    for number in range(count):
        source = sources[number] if sources else None
        batch_id = resume[number] if resume else None
        base = source or Path(f"{Path(str(batch_id)).name}.jsonl")
        jobs.append(
            BatchRun(
                source=source,
                name="" if source is None else _name_of(source),
                output=_place(output, base, "output"),
                errors=_place(errors, base, "errors"),
                batch_id=batch_id,
                label=base.stem if count > 1 else "",
            )
        )
    return jobs


def _name_of(source: Path) -> str:
    return "stdin.jsonl" if source == STANDARD_STREAM else str(source)


def _place(given: Path | None, base: Path, kind: str) -> Path:
    if given is None:
        if base == STANDARD_STREAM:
            return STANDARD_STREAM if kind == "output" else Path("stdin-errors.jsonl")
        return _usual_place(base, kind)
    if given != STANDARD_STREAM and given.is_dir():
        name = "stdin.jsonl" if base == STANDARD_STREAM else base.name
        return _usual_place(given / name, kind)
    return given


def _usual_place(source: Path, kind: str) -> Path:
    return source.with_name(f"{source.stem}-{kind}.jsonl")


def _require_distinct(jobs: list[BatchRun], *, as_json: bool, wait: bool) -> None:
    results = [path for job in jobs for path in (job.output, job.errors)]
    if as_json and wait and STANDARD_STREAM in results:
        raise UsageError("--json and the results both go to standard output: give --output FILE.")
    sources = [job.source for job in jobs if job.source and job.source != STANDARD_STREAM]
    places = [path.absolute() for path in (*sources, *results)]
    standard_inputs = sum(job.source == STANDARD_STREAM for job in jobs)
    if len(set(places)) < len(places) or standard_inputs > 1:
        raise UsageError("Input, output and errors must be different files, each named once.")


async def _run_until_signal(
    jobs: list[BatchRun], server: Server, *, shows_progress: bool
) -> list[CommandError | None] | None:
    """Run them all. Returns why each failed, if it did; nothing if a signal cut the watch short."""
    failures: list[CommandError | None] | None = None
    async with StopSignals() as signals:
        with choose_progress(wanted=shows_progress) as progress:
            async with connect(server, progress.say) as client:
                room = asyncio.Semaphore(_UPLOADS_AT_ONCE)
                failures = await asyncio.gather(*(_go(job, client, progress, room) for job in jobs))
    return None if signals.received is not None and failures is None else failures


async def _go(
    job: BatchRun, client: BatchClient, progress: ShowsProgress, room: asyncio.Semaphore
) -> CommandError | None:
    try:
        async with room:
            await job.begin(client, progress)
        await job.finish(client, progress)
    except CommandError as error:
        return error
    return None


def _tell(
    jobs: list[BatchRun], failures: list[CommandError | None], *, as_json: bool, wait: bool
) -> ExitStatus:
    """Print what became of each. Returns the exit status of all."""
    statuses = []
    # Standard output may hold the results.
    aside = any(STANDARD_STREAM in {job.output, job.errors} for job in jobs) and wait
    for job, failure in zip(jobs, failures, strict=True):
        start = f"{job.label}: " if job.label else ""
        if failure is not None:
            if len(jobs) == 1:
                raise failure
            statuses.append(failure.status)
            typer.echo(f"overnight: {start}{failure}", err=True)
            if as_json:
                typer.echo(json.dumps({"input": job.name, "error": str(failure)}))
            continue
        statuses.append(exit_status(job.batch) if wait else ExitStatus.OK)
        if as_json:
            typer.echo(json.dumps({"input": job.name or None} | outcome(job)))
        elif wait:
            typer.echo(f"{start}{summary(job)}", err=aside)
        else:
            typer.echo(job.batch_id)
    if not wait and not as_json and sys.stdout.isatty():
        typer.echo("They go on by themselves: `overnight watch BATCH_ID` shows how.", err=True)
    return worst(statuses)


def _pairs(given: list[str]) -> dict[str, str]:
    pairs = dict(each.partition("=")[::2] for each in given if "=" in each)
    if len(pairs) < len(given):
        raise UsageError("Metadata is given as --metadata key=value, each key once.")
    return pairs


def how_to_go_on(jobs: list[BatchRun], server: Server) -> str:
    """What somebody who has stopped watching may do next, as commands for a shell."""
    begun = [job for job in jobs if job.batch_id is not None]
    options = [] if server.base_url == LOCAL_BASE_URL else list(server.options)
    not_begun = [job.name for job in jobs if job.batch_id is None]
    if not begun:
        return "Stopped. No batch was created."
    named = [job.name for job in begun if job.name]
    resume = ["overnight", "run", *(name for name in named if name != "stdin.jsonl")]
    resume += [word for job in begun for word in ("--resume", str(job.batch_id))]
    resume += options
    if len(jobs) == 1:
        [job] = jobs
        base = Path(job.name or f"{job.batch_id}.jsonl")
        if job.name == "stdin.jsonl" or job.output != _usual_place(base, "output"):
            resume += ["-o", str(job.output)]
        if job.name == "stdin.jsonl" or job.errors != _usual_place(base, "errors"):
            resume += ["-e", str(job.errors)]
    lines = [
        "Stopped watching; the batch goes on."
        if len(begun) == 1
        else f"Stopped watching; the {len(begun)} batches go on.",
        f"  watch and download  {shlex.join(resume)}",
        *(
            f"  cancel              {shlex.join(['overnight', 'cancel', str(job.batch_id), *options])}"
            for job in begun
        ),
    ]
    if not_begun:
        lines.append(
            f"  not yet begun       {shlex.join(['overnight', 'run', *not_begun, *options])}"
        )
    return "\n".join(lines)
