"""`overnight results`: what came of the requests of a batch, so far or at its end.

Promises: lines are given as the server has them, byte for byte, streamed; a batch that still runs is
answered with what there is, and that is said.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Annotated, Any
from urllib.parse import quote

import typer

from cli.client.answers import beginning_of, pretty
from cli.client.batchrun import FINAL, written_aside
from cli.client.http import BatchClient, StopReading
from cli.client.listing import BatchId
from cli.client.outcome import faults_of
from cli.client.refusals import ServerSaidNo
from cli.client.server import ApiKeyFile, Url, find_server, on_server
from cli.client.source import STANDARD_STREAM
from cli.console import CommandError, ExitStatus, UsageError
from cli.tables import AsJson, show_json

Take = Callable[[bytes], object]


def results(
    batch_id: BatchId,
    *,
    failed: Annotated[
        bool, typer.Option("--failed", help="Only the requests that failed or never ran.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Those that succeeded, then those that failed.")
    ] = False,
    custom_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Only this request's, and the request, laid out for reading."
        ),
    ] = None,
    short: Annotated[
        bool,
        typer.Option(
            "--short", help="A line each: custom_id, status and the beginning of the answer."
        ),
    ] = False,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Write to this file.", show_default="standard output"),
    ] = STANDARD_STREAM,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Print a batch's results.

    They are JSON lines; of a batch that still runs, those so far.
    """
    if short and (as_json or custom_id is not None):
        raise UsageError("--short goes with neither --json nor --custom-id.")
    kinds = ("output", "errors") if every or custom_id is not None else ("output",)
    if failed:
        kinds = ("errors",)
    server = find_server(url, api_key_file)

    if custom_id is not None:
        request, line = on_server(server, lambda client: _find(client, batch_id, kinds, custom_id))
        if as_json:
            show_json(line | {"request": request})
        else:
            typer.echo(pretty(line, request))
        return

    async def read(client: BatchClient) -> None:
        batch = await _batch_with_lines(client, batch_id)
        count = 0
        with _written(output, shortened=short) as write:

            def take(piece: bytes) -> None:
                nonlocal count
                count += len(piece)
                write(piece)

            for kind in kinds:
                await _read_lines(client, batch, kind, take)
        if not count:
            what = "No request has failed" if kinds == ("errors",) else "There is no result"
            typer.echo(f"{what}{'' if batch['status'] in FINAL else ' yet'}.", err=True)

    on_server(server, read)


async def _batch_with_lines(client: BatchClient, batch_id: str) -> dict[str, Any]:
    batch = await client.retrieve(batch_id)
    if batch["status"] == "failed":
        words = "\n".join([f"{batch_id} failed its check; nothing was run.", *faults_of(batch, 20)])
        raise CommandError(words, status=ExitStatus.BATCH_FAILED)
    if batch["status"] not in FINAL:
        typer.echo(f"{batch_id} is {batch['status']}: these are the results so far.", err=True)
    return batch


async def _read_lines(client: BatchClient, batch: dict[str, Any], kind: str, take: Take) -> None:
    """Hand over the bytes of the batch's results of one kind, so far or at its end."""
    if batch["status"] not in FINAL:
        path = f"batches/{quote(str(batch['id']), safe='')}/{kind}"
        try:
            # Lines of a batch that ends meanwhile are in another order: what breaks is not continued.
            await client.read_content(path, take, tries=1)
        except ServerSaidNo as error:
            if error.status_code != 404:
                raise
            raise CommandError(
                "This server gives results only when a batch has ended:"
                f" `overnight watch {batch['id']}` says when."
            ) from error
        return
    file_id = batch.get("output_file_id" if kind == "output" else "error_file_id")
    if file_id is None:
        return
    try:
        await client.read_content(_content_path(file_id), take)
    except ServerSaidNo as error:
        if error.status_code != 404:
            raise
        raise CommandError(
            f"The results of {batch['id']} are gone: its file {file_id} has expired or was deleted."
            " Results live for 30 days unless the server or the batch says otherwise; to have them"
            " again, run the requests again."
        ) from error


async def _find(
    client: BatchClient, batch_id: str, kinds: tuple[str, ...], custom_id: str
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """One request, unless its file is gone, and its result."""
    batch = await _batch_with_lines(client, batch_id)
    search = _Search(custom_id)
    for kind in kinds:
        await _read_lines(client, batch, kind, search.take)
        search.end()
        if search.found is not None:
            return await _find_request(client, batch, custom_id), search.found
    raise CommandError(
        f"No {'failed ' if kinds == ('errors',) else ''}result of {batch_id} has the custom_id"
        f" {custom_id!r}{'' if batch['status'] in FINAL else ' yet'}."
    )


async def _find_request(
    client: BatchClient, batch: dict[str, Any], custom_id: str
) -> dict[str, Any] | None:
    search = _Search(custom_id)
    try:
        await client.read_content(_content_path(batch.get("input_file_id")), search.take)
    except ServerSaidNo as error:
        if error.status_code != 404:
            raise
        return None
    search.end()
    return search.found


def _content_path(file_id: object) -> str:
    return f"files/{quote(str(file_id), safe='')}/content"


class _Lines:
    """Cuts what comes in pieces into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, piece: bytes) -> None:
        *whole, self._rest = (self._rest + piece).split(b"\n")
        for line in whole:
            self.take_line(line)

    def end(self) -> None:
        """Take the last line, which may lack its newline; to be called outside of a download."""
        rest, self._rest = self._rest, b""
        with suppress(StopReading):
            self.take_line(rest)

    def take_line(self, line: bytes) -> None:
        raise NotImplementedError


class _Search(_Lines):
    """Stops at the line of one request."""

    def __init__(self, custom_id: str) -> None:
        super().__init__()
        self.found: dict[str, Any] | None = None
        self._custom_id = custom_id
        # Most lines are another's, which a look at the bytes can tell.
        self._sign = json.dumps(custom_id, ensure_ascii=False).encode()

    def take_line(self, line: bytes) -> None:
        if self.found is not None or (self._sign not in line and b"\\" not in line):
            return
        try:
            found = json.loads(line)
        except ValueError:
            return
        if isinstance(found, dict) and found.get("custom_id") == self._custom_id:
            self.found = found
            raise StopReading


class _Shortened(_Lines):
    """Writes a short line for each."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def take_line(self, line: bytes) -> None:
        if line.strip():
            self._file.write(beginning_of(line).encode() + b"\n")


@contextmanager
def _written(place: Path, *, shortened: bool) -> Iterator[Take]:
    """Where the bytes go; shortened if so wished."""
    with _opened(place) as file:
        if not shortened:
            yield file.write
            return
        lines = _Shortened(file)
        yield lines.take
        lines.end()


def _opened(place: Path) -> AbstractContextManager[IO[bytes]]:
    # What is piped on may be read as it comes.
    return nullcontext(sys.stdout.buffer) if place == STANDARD_STREAM else written_aside(place)
