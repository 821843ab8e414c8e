"""`overnight up`: everything on one machine, with nothing installed but the Python environment.

Promises: the data outlive it; stopped in the middle of a batch, it finishes that batch when it is
started again; however it ends, it leaves no process behind.
"""

import asyncio
import os
import shlex
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from api.settings import ApiSettings
from cli.address import is_answered, settle_upstream
from cli.config import ConfigOption, settle_config
from cli.console import Terminal
from cli.datafolder import default_data_folder
from cli.engine import Engine, EngineOptions, running_engine
from cli.readyfile import ReadyFile
from cli.stopping import StopSignals

_ANSWER_SECONDS = 3.0


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
    config: ConfigOption = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            help="Processes that call the model server; they share what it takes.",
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
    ready = ReadyFile(ready_file)
    data_folder = data_dir or default_data_folder()
    file = settle_config(config, upstream, data_folder=data_folder, terminal=terminal)
    options = EngineOptions(
        host=host,
        port=port,
        data_folder=data_folder,
        upstream_url=None if file else settle_upstream(upstream, terminal),
        config=file.path if file else None,
        workers=workers,
        database_url=database_url or None,
        redis_url=redis_url or None,
        on_locked=ready.remove_earlier,
    )
    servers = file.urls if file else {"": options.upstream_url or ""}
    if file is None and (hours := os.environ.get("OVERNIGHT_UPSTREAM_ACTIVE_HOURS", "").strip()):
        terminal.say(f"Note: the model server is called in its active hours alone: {hours}.")
    try:
        asyncio.run(_keep_up(options, servers, terminal, ready))
    finally:
        ready.remove()
    terminal.say("Stopped. What was not finished goes on at the next start.")


async def _keep_up(
    options: EngineOptions, servers: Mapping[str, str], terminal: Terminal, ready: ReadyFile
) -> None:
    def say_stopping() -> None:
        terminal.say("Stopping: calls in flight may finish. (Ctrl-C again stops at once.)")

    began = time.monotonic()
    async with (
        StopSignals(say_stopping) as signals,
        running_engine(options, terminal=terminal, signals=signals) as engine,
    ):
        terminal.say(f"Ready after {time.monotonic() - began:.1f} s.")
        _show_ready(terminal, engine, servers)
        ready.write(engine)
        # A thread that nobody waits for: a stop need not wait for a silent server either.
        threading.Thread(target=_note_silences, args=(servers, terminal), daemon=True).start()
        # Until a signal, or a child that does not stay up, cancels this.
        await asyncio.Event().wait()


def _note_silences(servers: Mapping[str, str], terminal: Terminal) -> None:
    for url in servers.values():
        _note_silence(url, terminal)


def _note_silence(upstream_url: str, terminal: Terminal) -> None:
    """Say so if the model server does not answer; that is no error, requests just wait."""
    if not is_answered(f"{upstream_url}/models", seconds=_ANSWER_SECONDS):
        terminal.say(
            f"Note: the model server does not answer yet at {urlsplit(upstream_url).netloc};"
            " requests wait until it does."
        )


def _show_ready(terminal: Terminal, engine: Engine, servers: Mapping[str, str]) -> None:
    shown = "\n              ".join(f"{name} {url}".strip() for name, url in servers.items())
    terminal.show(
        f"\n  export OPENAI_BASE_URL={shlex.quote(engine.base_url)}"
        f"\n  export OPENAI_API_KEY={_key_for_export(engine)}\n"
        f"\n{_dashboard(engine)}Model server  {shown}"
        f"\nData          {engine.data_folder}"
        f"\nLogs          {engine.logs}"
        f"\n\nTry           overnight run requests.jsonl"
        f"\nOther people  overnight keys create --project NAME{_data_dir_option(engine)}"
        f"\nStop          Ctrl-C; unfinished batches go on at the next start.\n"
    )


def _dashboard(engine: Engine) -> str:
    """Where the dashboard is; nothing if it is turned off."""
    if not ApiSettings().dashboard:
        return ""
    return f"Dashboard     {engine.base_url.removesuffix('v1')} (sign in with an API key)\n"


def _data_dir_option(engine: Engine) -> str:
    """How another command finds this engine's data folder; nothing where it looks by itself."""
    if engine.data_folder == default_data_folder().expanduser().resolve():
        return ""
    return f" --data-dir {shlex.quote(str(engine.data_folder))}"


def _key_for_export(engine: Engine) -> str:
    """The key for people to copy; never the key itself where it would end up in a log."""
    if sys.stdout.isatty():
        return shlex.quote(engine.api_key)
    if engine.key_file:
        return f'"$(cat {shlex.quote(str(engine.key_file))})"'
    return '"$OVERNIGHT_API_KEY"'
