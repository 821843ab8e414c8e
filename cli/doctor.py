"""`overnight doctor`: what is wrong with a set-up, in sentences with the fix.

Looks as a user of the server does: does it answer, is the key good, do all of its parts work, which models
does it have. Where this machine also holds the engine's own settings, `overnight check` looks at those.

Promises: changes nothing, shows no key; ends with 1 if anything is wrong.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import typer

from cli.address import is_loopback
from cli.client.http import BatchClient
from cli.client.refusals import ServerSaidNo
from cli.client.server import ApiKeyFile, Server, Url, connect, find_server
from cli.console import CommandError, ExitStatus
from cli.tables import AsJson, show_json
from cli.trial import some

_ENGINE_VARIABLES = ("OVERNIGHT_DATABASE_URL", "OVERNIGHT_REDIS_URL")
_SECONDS = 10.0
# What each part that /readyz names is for, and what to do when it does not answer.
_PARTS = {
    "database": (
        "The database does not answer, or has not this version's schema: is Postgres running? Then"
        " `overnight migrate`."
    ),
    "broker": "Redis or Valkey does not answer: is it running? Batches go on, only later.",
    "control_workers": (
        "No control worker answers, so nothing is checked or finished: start"
        " `overnight worker --only control` (`overnight up` does)."
    ),
    "run_workers": (
        "No run worker answers, so nothing is called: start `overnight worker --only run`"
        " (`overnight up` does)."
    ),
    "sweep": (
        "The sweep has not come round, so what is lost is not mended: start `overnight beat`, one of"
        " them (`overnight up` does)."
    ),
}


class Sign(NamedTuple):
    """One thing that was looked at."""

    name: str
    words: str
    is_wrong: bool = False


def doctor(*, url: Url = None, api_key_file: ApiKeyFile = None, as_json: AsJson = False) -> None:
    """Say what is wrong with a set-up, and how to mend it."""
    signs = asyncio.run(_examine(find_server(url, api_key_file)))
    signs += list(_engine_signs())
    if as_json:
        show_json(
            [{"name": each.name, "ok": not each.is_wrong, "words": each.words} for each in signs]
        )
    else:
        for each in signs:
            typer.echo(f"{'✗' if each.is_wrong else '✓'} {each.name:<13} {each.words}")
        if not any(each.is_wrong for each in signs):
            typer.echo("Nothing is wrong.")
    if any(each.is_wrong for each in signs):
        raise typer.Exit(ExitStatus.FAILED)


async def _examine(server: Server) -> list[Sign]:
    """Look at the server as its user; what cannot be looked at after a fault is left out."""
    async with connect(server, lambda _: None) as client:
        try:
            await client.get("batches", {"limit": "1"}, tries=1)
        except ServerSaidNo as error:
            signs = [Sign("Server", f"{server.base_url} answers.")]
            if error.status_code == httpx.codes.UNAUTHORIZED:
                return [*signs, Sign("Key", _key_words(server, error), is_wrong=True)]
            if error.status_code == httpx.codes.NOT_FOUND:
                return [Sign("Server", str(error), is_wrong=True)]
            return [*signs, Sign("Batches", str(error), is_wrong=True), *await _parts(server)]
        except CommandError as error:
            # Who asks the doctor need not be sent there.
            words, _, _ = str(error).partition("`overnight doctor`")
            return [Sign("Server", f"{words.rstrip(' ;').rstrip('.')}.", is_wrong=True)]
        return [
            Sign("Server", f"{server.base_url} answers."),
            Sign(
                "Key",
                "It is accepted." if server.api_key else "None is sent, and none is asked for.",
            ),
            *await _parts(server),
            await _models(client),
        ]


def _key_words(server: Server, error: ServerSaidNo) -> str:
    if server.api_key is None:
        return f"No key is sent, and the server wants one. {error}"
    return (
        f"The key is refused. {error} `overnight up` prints the one that it has made;"
        " `overnight keys create --project NAME` makes another."
    )


async def _parts(server: Server) -> list[Sign]:
    """What Overnight's own /readyz says; another server of the contract has none."""
    root = server.base_url.removesuffix("/v1")
    is_here = is_loopback(httpx.URL(root).host)
    try:
        async with httpx.AsyncClient(timeout=_SECONDS, trust_env=not is_here) as http:
            parts: Any = (await http.get(f"{root}/readyz")).json()
    except (httpx.HTTPError, ValueError):
        parts = None
    if not isinstance(parts, dict) or "database" not in parts:
        return [Sign("Parts", "It does not say how its parts are, as Overnight does.")]
    away = [name for name in _PARTS if parts.get(name, "ok") != "ok"]
    if not away:
        return [Sign("Parts", "Database, broker, workers and sweep answer.")]
    return [Sign("Parts", _PARTS[name], is_wrong=True) for name in away]


async def _models(client: BatchClient) -> Sign:
    try:
        found = (await client.get("models", tries=1)).get("data") or []
    except CommandError as error:
        return Sign("Models", f"{error} Is the model server running?", is_wrong=True)
    if not found:
        words = (
            "It lists no model. If the model server is running, requests may still name any model it has;"
            " `overnight check`, run where the engine is, asks it."
        )
        return Sign("Models", words)
    return Sign("Models", f"It has {some([str(each.get('id')) for each in found])}.")


def _engine_signs() -> Iterator[Sign]:
    """The engine's own set-up, if this environment holds it."""
    folder = Path.cwd()
    if (folder / ".env").is_file() and not any(map(os.environ.get, _ENGINE_VARIABLES)):
        yield Sign(
            "Settings", "This folder's .env is read by docker compose; this command does not."
        )
    if any(os.environ.get(name) for name in _ENGINE_VARIABLES):
        # Imported only here: it brings the database's and the broker's clients.
        from cli.check import findings  # noqa: PLC0415

        yield from (Sign(each.name, each.words, each.is_wrong) for each in findings())
