"""Which file of model servers a command uses.

Promises: what a person says outright comes before what only lies about: a file that is named, then a
model server that is named, then an `overnight.toml` in the data folder, then one in the current folder.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from pydantic import ValidationError

from cli.console import Terminal, UsageError, explain_settings

if TYPE_CHECKING:
    from models.upstreams import ModelServer

CONFIG_VARIABLE = "OVERNIGHT_CONFIG"
FILE_NAME = "overnight.toml"

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        envvar=CONFIG_VARIABLE,
        help="A file of several model servers (docs/model-servers.md); it wins over one by its URL.",
    ),
]


class ConfigFile(NamedTuple):
    """A file of model servers that makes sense."""

    path: Path
    """Whole from the root."""

    urls: Mapping[str, str]
    """Of each server, by its name."""


def settle_config(
    named: Path | None, upstream: str | None, *, data_folder: Path, terminal: Terminal
) -> ConfigFile | None:
    """The file to use; null for the model server of that URL. Says which it is, and what is left aside."""
    has_url = bool((upstream or "").strip())
    file = _find(data_folder) if named is None else _whole(named)
    if file is None:
        return None
    if named is None and has_url:
        terminal.say(f"Note: {file} is not used, because a model server is named by its URL.")
        return None
    servers = _read_servers(file)
    aside = "; the model server that is named by its URL is not used" if has_url else ""
    terminal.say(f"Model servers are those of {file}{aside}.")
    for name, server in servers.items():
        if server.active_hours is not None:
            terminal.say(
                f"Note: {name} is called in its active hours alone: {server.active_hours}."
            )
    return ConfigFile(file, {name: each.url for name, each in servers.items()})


def _read_servers(file: Path) -> "Mapping[str, ModelServer]":
    # Imported only for a file: the settings take a quarter of a second.
    from models.settings import UpstreamSettings  # noqa: PLC0415

    try:
        return UpstreamSettings(config=file, upstream_url=None).upstreams().servers
    except ValidationError as error:
        raise UsageError(" ".join(explain_settings(error))) from error


def _find(data_folder: Path) -> Path | None:
    candidates = [_whole(folder / FILE_NAME) for folder in (data_folder, Path())]
    return next((each for each in candidates if each.is_file()), None)


def _whole(path: Path) -> Path:
    # The processes are started in a folder of their own.
    try:
        return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100  # a link stays what it is
    except RuntimeError as error:
        raise UsageError(f"{path}: there is no such home folder.") from error
