"""A batch from file to files: upload, create, watch, download; `overnight run` and `demo` tell it.

Promises: a result file is whole or not there; a file of an earlier run never passes for one of
this run, nor is it touched before this one has results.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cli.client import BatchClient
from cli.console import UsageError
from cli.progress import ShowsProgress

FINAL = frozenset({"completed", "failed", "expired", "cancelled"})
_FIRST_POLL_SECONDS = 0.2
_LONGEST_LINE_BYTES = 64 * 1024 * 1024
_EXAMPLE = '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {…}}'


@dataclass(kw_only=True)
class BatchRun:
    """What to run, and what became of it."""

    source: Path
    output: Path
    errors: Path
    endpoint: str | None = None
    window: str = "24h"
    metadata: dict[str, str] = field(default_factory=dict)
    poll_seconds: float = 2.0
    #: Set when the batch was created, or beforehand to take up one that exists.
    batch_id: str | None = None
    batch: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    is_resumed: bool = False

    async def go(self, client: BatchClient, progress: ShowsProgress) -> None:
        """Run it to its end. Cancelled, it leaves the batch running."""
        began = time.monotonic()
        self.is_resumed = self.batch_id is not None
        if not self.is_resumed:
            self.endpoint = self.endpoint or read_endpoint(self.source)
        with ExitStack() as files:
            # Opened first: better to fail now than after a night.
            output = files.enter_context(_written_aside(self.output))
            errors = files.enter_context(_written_aside(self.errors))
            if not self.is_resumed:
                await self._create(client, progress)
            await self._watch(client, progress)
            await _download(client, self.batch.get("output_file_id"), output)
            await _download(client, self.batch.get("error_file_id"), errors)
            places = ((self.output, output), (self.errors, errors))
            left_over = [path for path, file in places if file.seek(0, 2) == 0]
        # Of a batch that failed its check nothing was run: what an earlier run left stays good.
        if self.batch["status"] != "failed":
            for path in left_over:
                path.unlink(missing_ok=True)
        self.seconds = time.monotonic() - began

    async def _create(self, client: BatchClient, progress: ShowsProgress) -> None:
        with open_source(self.source) as file:
            size = self.source.stat().st_size
            progress.say(f"Uploading {self.source.name} ({size / 1e6:,.1f} MB) …")
            input_file_id = await client.upload(self.source.name, file)
        self.batch = await client.create(
            input_file_id=input_file_id,
            endpoint=str(self.endpoint),
            window=self.window,
            metadata=self.metadata,
        )
        self.batch_id = str(self.batch["id"])
        progress.say(f"Batch {self.batch_id}")

    async def _watch(self, client: BatchClient, progress: ShowsProgress) -> None:
        # A small batch is done before a long first pause would be over.
        pause = min(_FIRST_POLL_SECONDS, self.poll_seconds)
        while True:
            self.batch = await client.retrieve(str(self.batch_id))
            progress.show_batch(self.batch)
            if self.batch["status"] in FINAL:
                return
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, self.poll_seconds)


def read_endpoint(source: Path) -> str:
    """The endpoint that the first request in the file is for."""
    with open_source(source) as file:
        line = b""
        while not line.strip():
            line = file.readline(_LONGEST_LINE_BYTES)
            if not line:
                raise UsageError(
                    f"{source} is empty: it should hold one request a line, as in\n  {_EXAMPLE}"
                )
    try:
        url = json.loads(line.decode("utf-8-sig"))["url"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{source}: the first line is no request. It should look like\n  {_EXAMPLE}"
        ) from error
    if not isinstance(url, str):
        raise UsageError(
            f"{source}: the `url` of the first line must be a string, such as"
            ' "/v1/chat/completions".'
        )
    return url


def first_error(errors: Path) -> str | None:
    """What went wrong with the first request in the file of errors, if there is one."""
    try:
        with errors.open(encoding="utf-8") as file:
            line = json.loads(file.readline())
        response = line.get("response") or {}
        error = line.get("error") or (response.get("body") or {}).get("error") or {}
        code = response.get("status_code") or error.get("code")
        return f"{line['custom_id']}: {code} {error.get('message') or ''}".strip()[:200]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        # Any server may have written it.
        return None


def open_source(source: Path) -> IO[bytes]:
    """Open the file of requests, or say why that cannot be."""
    try:
        return source.open("rb")
    except OSError as error:
        raise UsageError(f"Cannot read {source} ({error.strerror}).") from error


@contextmanager
def _written_aside(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when the block ends well, unless it is empty."""
    part = path.with_name(f".{path.name}.part")
    try:
        file = part.open("w+b")
    except OSError as error:
        raise UsageError(f"Cannot write to {path.parent} ({error.strerror}).") from error
    try:
        with file:
            yield file
            empty = file.seek(0, 2) == 0
        if not empty:
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


async def _download(client: BatchClient, file_id: object, file: IO[bytes]) -> None:
    if file_id:
        await client.download(str(file_id), file)
