"""Which server a command talks to, with which key: options, environment, what lies about.

Promises: a key is never part of a command line; the one that `overnight up` keeps on this machine is
sent to this machine alone. What is named outright wins over the environment.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar
from urllib.parse import urlsplit

import typer

from cli.address import is_loopback, shown_url
from cli.client.http import BatchClient
from cli.console import UsageError
from cli.datafolder import default_data_folder, read_key

LOCAL_BASE_URL = "http://127.0.0.1:8080/v1"

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        "--base-url",
        envvar="OPENAI_BASE_URL",
        show_envvar=True,
        help="The API's base URL.",
        show_default=LOCAL_BASE_URL,
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        help="A file that holds its key. Without it, OPENAI_API_KEY; on this machine, the key that"
        " `overnight up` has kept is used by itself.",
    ),
]


Answer = TypeVar("Answer")


class Server(NamedTuple):
    """Where the API is, and the key that it wants."""

    base_url: str
    api_key: str | None
    #: The options that name it again, for a command that is shown to a person.
    options: tuple[str, ...] = ()


def find_server(url: str | None, api_key_file: Path | None) -> Server:
    """The server that the options and the environment name."""
    base_url = settle_base_url(url) if url else None
    options = [] if base_url is None else ["--url", base_url]
    if api_key_file is not None:
        options += ["--api-key-file", str(api_key_file)]
        key: str | None = _read_key_file(api_key_file)
    else:
        key = choose_key(os.environ.get("OPENAI_API_KEY"), base_url)
    return Server(base_url or LOCAL_BASE_URL, key, tuple(options))


def connect(server: Server, on_trouble: Callable[[str], None] | None = None) -> BatchClient:
    """A client of the server; what goes wrong on the way and is tried again is told on standard error."""
    return BatchClient(server.base_url, server.api_key, on_trouble=on_trouble or _say)


def on_server(server: Server, work: Callable[[BatchClient], Awaitable[Answer]]) -> Answer:
    """Do some work with a client of the server."""

    async def go() -> Answer:
        async with connect(server) as client:
            return await work(client)

    return asyncio.run(go())


def settle_base_url(written: str) -> str:
    """The base URL, from what a person may well have written: `host:8080` will do."""
    url = written.strip().rstrip("/")
    if ":/" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # A bracket that is not closed, a port that is no number.
        is_whole = False
    if not is_whole or parts.query or parts.fragment:
        raise UsageError("The server's URL is not one: it looks like http://127.0.0.1:8080/v1.")
    if "@" in parts.netloc:
        raise UsageError(
            f"The server's URL must hold no user and no password: {shown_url(url)} with the key in"
            " OPENAI_API_KEY."
        )
    return url if parts.path else f"{url}/v1"


def choose_key(given: str | None, base_url: str | None) -> str | None:
    """The key to send: the one given, or the one that `overnight up` on this machine has kept.

    Without a base URL the server is ours, and an OpenAI key in the environment of no use to it.
    """
    own = os.environ.get("OVERNIGHT_API_KEY", "").split(",")[0].strip() or None
    if base_url is None or is_loopback(urlsplit(base_url).hostname or ""):
        own = own or read_key(default_data_folder().expanduser() / "api-key")
    return own or given if base_url is None else given or own


def _read_key_file(path: Path) -> str:
    try:
        key = path.expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UsageError(f"Cannot read the key file {path} ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} holds no key: it should be one line of text.") from error
    if not key:
        raise UsageError(f"The key file {path} is empty.")
    return key


def _say(text: str) -> None:
    typer.echo(text, err=True)
