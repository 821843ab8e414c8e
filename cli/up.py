"""`overnight up`: everything on one machine, with nothing installed but the Python environment.

Promises: the data outlive it; stopped in the middle of a batch, it finishes that batch when it is
started again; however it ends, it leaves no process behind.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from cli.console import Terminal, UsageError
from cli.datafolder import default_data_folder
from cli.engine import Engine, EngineOptions, running_engine
from cli.stopping import StopSignals

_NO_UPSTREAM = """\
Which model server shall the requests go to? Say it with --upstream (or OVERNIGHT_UPSTREAM_URL):
  vLLM       overnight up --upstream http://localhost:8000/v1
  Ollama     overnight up --upstream http://localhost:11434/v1
  llama.cpp  overnight up --port 8081 --upstream http://localhost:8080/v1
No server at hand? `overnight demo` shows everything with a simulated one, and `overnight simulate`
starts just that one."""


def up(
    *,
    upstream: Annotated[
        str | None,
        typer.Option(
            envvar="OVERNIGHT_UPSTREAM_URL",
            help="Base URL of your model server, ending in /v1. Its key, if it needs one, goes into"
            " OVERNIGHT_UPSTREAM_API_KEY.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(envvar="OVERNIGHT_HOST", help="The address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            envvar="OVERNIGHT_PORT",
            min=0,
            max=65535,
            help="The port to listen on; 0 picks a free one.",
        ),
    ] = 8080,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="OVERNIGHT_DATA_DIR",
            help="Where data, key and logs are kept.",
            show_default="~/.local/share/overnight",
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            help="Processes that call the model server; each keeps up to OVERNIGHT_MAX_IN_FLIGHT"
            " (128) calls in flight.",
        ),
    ] = 1,
    database_url: Annotated[
        str | None,
        typer.Option(
            envvar="OVERNIGHT_DATABASE_URL",
            help="A Postgres of your own (postgresql://…) instead of the embedded one. A URL with a"
            " password is better given by the environment variable.",
        ),
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(
            envvar="OVERNIGHT_REDIS_URL",
            help="A Redis or Valkey of your own (redis://…) instead of the embedded one.",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show everything that the processes say.")
    ] = False,
    ready_file: Annotated[
        Path | None,
        typer.Option(
            help="When ready, write {base_url, pid, data_dir} as JSON to this file; for scripts."
        ),
    ] = None,
) -> None:
    """Start everything on this machine and keep it running until Ctrl-C."""
    terminal = Terminal(verbose=verbose)
    options = EngineOptions(
        host=host,
        port=port,
        data_folder=data_dir or default_data_folder(),
        upstream_url=settle_upstream(upstream, terminal),
        workers=workers,
        database_url=database_url or None,
        redis_url=redis_url or None,
    )
    if ready_file:
        ready_file.unlink(missing_ok=True)  # an earlier one is no longer true
    try:
        asyncio.run(_keep_up(options, terminal, ready_file))
    finally:
        if ready_file:
            ready_file.unlink(missing_ok=True)
    terminal.say("Stopped. What was not finished goes on at the next start.")


async def _keep_up(options: EngineOptions, terminal: Terminal, ready_file: Path | None) -> None:
    def say_stopping() -> None:
        terminal.say("Stopping: calls in flight may finish. (Ctrl-C again stops at once.)")

    began = time.monotonic()
    async with (
        StopSignals(say_stopping) as signals,
        running_engine(options, terminal=terminal, signals=signals) as engine,
    ):
        terminal.say(f"Ready after {time.monotonic() - began:.1f} s.")
        _show_ready(terminal, engine, options)
        if ready_file:
            _write_ready_file(ready_file, engine)
        # Until a signal, or a child that does not stay up, cancels this.
        await asyncio.Event().wait()


def settle_upstream(given: str | None, terminal: Terminal) -> str:
    """The model server's base URL, ending in /v1, from what a person may well have written."""
    url = (given or "").strip().rstrip("/")
    if not url:
        raise UsageError(_NO_UPSTREAM)
    if ":/" not in url and not url.endswith(":"):
        url = f"http://{url}"
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(
            f"The model server's URL is not one: {given}. It looks like http://localhost:8000/v1."
        )
    if not parts.path:
        url = f"{url}/v1"
    elif "/v1/" in f"{parts.path}/" and not parts.path.endswith("/v1"):
        # The address of one endpoint, as in …/v1/chat/completions.
        url = url[: url.rindex("/v1/") + len("/v1")]
    elif not parts.path.endswith("/v1"):
        raise UsageError(
            f"The model server's URL must end in /v1, as in {parts.scheme}://{parts.netloc}/v1;"
            f" got {given}."
        )
    if url != (given or "").strip().rstrip("/"):
        terminal.say(f"Note: the model server's base URL is taken to be {url}.")
    return url


def _show_ready(terminal: Terminal, engine: Engine, options: EngineOptions) -> None:
    terminal.show(
        f"\n  export OPENAI_BASE_URL={engine.base_url}"
        f"\n  export OPENAI_API_KEY={_key_for_export(engine)}\n"
        f"\nModel server  {options.upstream_url}"
        f"\nData          {engine.data_folder}"
        f"\nLogs          {engine.logs}"
        f"\n\nTry           overnight run requests.jsonl"
        f"\nStop          Ctrl-C; unfinished batches go on at the next start.\n"
    )


def _key_for_export(engine: Engine) -> str:
    """The key for people to copy; never the key itself where it would end up in a log."""
    if sys.stdout.isatty():
        return engine.api_key
    return f'"$(cat {engine.key_file})"' if engine.key_file else '"$OVERNIGHT_API_KEY"'


def _write_ready_file(path: Path, engine: Engine) -> None:
    """Written aside and moved: who sees the file sees all of it."""
    facts = {"base_url": engine.base_url, "pid": os.getpid(), "data_dir": str(engine.data_folder)}
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise UsageError(f"Cannot write the ready file {path} ({error.strerror}).") from error
