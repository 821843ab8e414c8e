"""`overnight demo`: everything, once, in a minute: start, upload 1,000 requests, watch, download.

Promises: exits with 0 only if all 1,000 succeeded; leaves nothing running and nothing behind but
the results; says plainly that the model server is simulated when it is.
"""

import asyncio
import importlib.resources
import json
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.address import settle_upstream
from cli.client.batchrun import BatchRun
from cli.client.http import BatchClient
from cli.client.outcome import summary
from cli.client.pace import counts
from cli.client.progress import Bar, Lines
from cli.console import CommandError, ExitStatus, Terminal, UsageError, is_terminal
from cli.engine import EngineOptions, running_engine
from cli.simulator.server import SimulatedServer
from cli.simulator.settings import SimulatorSettings
from cli.stopping import StopSignals

_EXAMPLE = "chat-1000.jsonl"
# Enough that the bar can be watched, and that there is something to run at the same time.
_LATENCY_SECONDS = 0.6
_LATENCY_SIGMA = 0.35
# Twenty times what it should take on a small machine: something is wrong, and CI should not hang.
_SIMULATED_SECONDS = 300.0
_SHOWN_RESULTS = 3
_SHOWN_CHARACTERS = 76


def demo(
    *,
    upstream: Annotated[
        str | None,
        typer.Option(
            help="Your own model server's base URL, ending in /v1.", show_default="simulated"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --upstream: the model to ask, by its name there.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show everything that the processes say.")
    ] = False,
) -> None:
    """Run 1,000 requests as a batch, from upload to results."""
    terminal = Terminal(verbose=verbose)
    if upstream and not model:
        raise UsageError(
            "Which model shall it ask? Add --model NAME; the names: curl YOUR-SERVER/v1/models."
        )
    if model and not upstream:
        raise UsageError("--model is for --upstream; the simulated server answers to any name.")
    url = settle_upstream(upstream, terminal) if upstream else None
    finished = asyncio.run(_show(terminal, upstream=url, model=model))
    if finished is None:
        typer.echo("Stopped; nothing was left behind.", err=True)
        raise typer.Exit(ExitStatus.INTERRUPTED)
    if not _is_success(finished):
        raise typer.Exit(ExitStatus.FAILED)


def _is_success(batch: dict[str, Any]) -> bool:
    total, completed, _ = counts(batch)
    return total > 0 and completed == total


async def _show(
    terminal: Terminal, *, upstream: str | None, model: str | None
) -> dict[str, Any] | None:
    """Run the demonstration. Returns the batch at its end; nothing if it was cut short."""
    began = time.monotonic()
    kept = Path(tempfile.mkdtemp(prefix="overnight-demo-"))
    source = kept / _EXAMPLE
    job = BatchRun(
        source=source,
        output=kept / "output.jsonl",
        errors=kept / "errors.jsonl",
        poll_seconds=0.25,
    )
    where = upstream or "a simulated model server (every answer is made up)"
    limit = None if upstream else _SIMULATED_SECONDS
    signals = StopSignals(lambda: terminal.say("Stopping …"))
    with _removed_if_empty(kept), tempfile.TemporaryDirectory(prefix="overnight-") as data:
        _write_input(source, model)
        async with (
            signals,
            _model_server(upstream) as upstream_url,
            running_engine(
                EngineOptions(
                    host="127.0.0.1",
                    port=0,
                    data_folder=Path(data),
                    upstream_url=upstream_url,
                    greeting=f"Starting Overnight in a temporary folder, in front of {where} …",
                ),
                terminal=terminal,
                signals=signals,
            ) as engine,
        ):
            terminal.say(
                f"Overnight is up at {engine.base_url} ({time.monotonic() - began:.1f} s)."
            )
            with Bar() if is_terminal() else Lines(every_seconds=1) as progress:
                async with BatchClient(
                    engine.base_url, engine.api_key, on_trouble=progress.say
                ) as client:
                    await _go_within(limit, job.go(client, progress))
        source.unlink()
    if signals.received and not job.seconds:
        return None
    typer.echo(f"\n{summary(job)}")
    if not _is_success(job.batch):
        return job.batch
    _show_results(job.output)
    typer.echo(
        f"\nStart, run and stop took {time.monotonic() - began:.1f} s. Now with your own model server:\n"
        f"\n  {_this_command()} up --upstream http://localhost:8000/v1\n"
        "\nand, in another terminal, the two `export` lines that it prints; then any OpenAI client,"
        f"\nor `{_this_command()} run requests.jsonl`, talks to it."
    )
    return job.batch


def _this_command() -> str:
    """How to call this program from here: it may stand in an environment that is not active."""
    called = sys.argv[0]
    is_hidden = shutil.which("overnight") is None and Path(called).name == "overnight"
    return called if is_hidden else "overnight"


async def _go_within(seconds: float | None, going: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(seconds):
            await going
    except TimeoutError as error:
        raise CommandError(
            f"The demonstration did not end within {seconds:,.0f} s. --verbose shows what is going on."
        ) from error


@asynccontextmanager
async def _model_server(upstream: str | None) -> AsyncGenerator[str]:
    """The model server to ask: the given one, or a simulated one for as long as the block runs."""
    if upstream:
        yield upstream
        return
    server = SimulatedServer(
        SimulatorSettings(port=0, latency=_LATENCY_SECONDS, latency_sigma=_LATENCY_SIGMA)
    )
    await server.start()
    try:
        yield server.url
    finally:
        await server.stop()


def _write_input(target: Path, model: str | None) -> None:
    """Copy the bundled requests, for another model if one is named."""
    lines = _example().read_text(encoding="utf-8").splitlines()
    if model:
        requests = [json.loads(line) for line in lines]
        for request in requests:
            request["body"]["model"] = model
        lines = [json.dumps(request, ensure_ascii=False) for request in requests]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _example() -> Path:
    package = importlib.resources.files("cli")
    for place in (package / "examples" / _EXAMPLE, package / ".." / "examples" / _EXAMPLE):
        path = Path(str(place))
        if path.is_file():
            return path
    raise CommandError(f"This installation lacks examples/{_EXAMPLE}: install it again.")


def _show_results(output: Path) -> None:
    typer.echo("\nThe first results:")
    with output.open(encoding="utf-8") as file:
        for _, line in zip(range(_SHOWN_RESULTS), file, strict=False):
            result = json.loads(line)
            typer.echo(f"  {result['custom_id']}  {_answer(result)}")


def _answer(result: dict[str, Any]) -> str:
    body = (result.get("response") or {}).get("body") or {}
    choices = body.get("choices") or [{}]
    text = " ".join(str((choices[0].get("message") or {}).get("content") or "").split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


@contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    """Results are kept; a folder in which there are none is not."""
    try:
        yield
    finally:
        for part in folder.glob("*.jsonl"):
            if part.name == _EXAMPLE:
                part.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
