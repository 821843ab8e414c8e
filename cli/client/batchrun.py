"""A batch from file to files: upload, create, watch, download; `overnight run` and `demo` tell it.

Promises: a result file is whole or not there; a file of an earlier run never passes for one of
this run, nor is it touched before this one has results.
"""

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cli.client.http import BatchClient
from cli.client.ordering import order_like
from cli.client.progress import ShowsProgress
from cli.client.source import STANDARD_STREAM, open_source, read_endpoint
from cli.console import UsageError
from cli.tables import show_bytes

FINAL = frozenset({"completed", "failed", "expired", "cancelled"})
_FIRST_POLL_SECONDS = 0.2


@dataclass(kw_only=True)
class BatchRun:
    """What to run, and what became of it."""

    #: None for a batch that is taken up without its file.
    source: Path | None
    output: Path
    errors: Path
    #: What the source is called; its file may be a copy.
    name: str = ""
    endpoint: str | None = None
    window: str = "24h"
    metadata: dict[str, str] = field(default_factory=dict)
    poll_seconds: float = 2.0
    #: Whether to put the results into the order of the requests, should the server not have.
    is_ordered: bool = False
    #: Whether to stay until its end; else it is over when the batch was created.
    waits: bool = True
    #: Shown with its progress, where there are several.
    label: str = ""
    #: Set when the batch was created, or beforehand to take up one that exists.
    batch_id: str | None = None
    batch: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    is_resumed: bool = False
    _began: float = 0.0

    async def go(self, client: BatchClient, progress: ShowsProgress) -> None:
        """Run it to its end. Cancelled, it leaves the batch running."""
        await self.begin(client, progress)
        await self.finish(client, progress)

    async def begin(self, client: BatchClient, progress: ShowsProgress) -> None:
        """Create the batch, unless one is taken up."""
        self._began = time.monotonic()
        self.is_resumed = self.batch_id is not None
        if self.waits:
            # Better to fail now than after a night.
            for path in (self.output, self.errors):
                with written_aside(path):
                    pass
        if not self.is_resumed:
            await self._create(client, progress)

    async def finish(self, client: BatchClient, progress: ShowsProgress) -> None:
        """Follow the batch to its end and download what came of it; nothing if that is not awaited."""
        if not self.waits:
            return
        with ExitStack() as files:
            output = files.enter_context(written_aside(self.output))
            errors = files.enter_context(written_aside(self.errors))
            places = ((self.output, output), (self.errors, errors))
            self.batch = await watch_batch(
                client,
                str(self.batch_id),
                progress,
                poll_seconds=self.poll_seconds,
                label=self.label,
                has_answered=not self.is_resumed,
            )
            await _download(client, self.batch.get("output_file_id"), output)
            await _download(client, self.batch.get("error_file_id"), errors)
            if self.is_ordered and self.source is not None:
                for _, file in places:
                    order_like(self.source, file)
            left_over = [path for path, file in places if file.seek(0, 2) == 0]
        # Of a batch that failed its check nothing was run: what an earlier run left stays good.
        if self.batch["status"] != "failed":
            for path in left_over:
                if path != STANDARD_STREAM:
                    path.unlink(missing_ok=True)
        self.seconds = time.monotonic() - self._began

    async def _create(self, client: BatchClient, progress: ShowsProgress) -> None:
        source = self.source
        if source is None:
            raise UsageError("Which file? Name one, or a batch with --resume.")
        name = self.name or source.name
        endpoint = self.endpoint or read_endpoint(source, self.name or None)
        start = f"{self.label}: " if self.label else ""
        with open_source(source) as file:
            size = show_bytes(source.stat().st_size)
            progress.say(f"{start}Uploading {Path(name).name} ({size}) …")
            input_file_id = await client.upload(Path(name).name, file)
        self.batch = await client.create(
            input_file_id=input_file_id,
            endpoint=endpoint,
            window=self.window,
            metadata=self.metadata,
        )
        self.batch_id = str(self.batch["id"])
        # Who does not wait gets it as the result.
        if self.waits:
            progress.say(f"{start}Batch {self.batch_id}")


async def watch_batch(
    client: BatchClient,
    batch_id: str,
    progress: ShowsProgress,
    *,
    poll_seconds: float,
    label: str = "",
    has_answered: bool = False,
) -> dict[str, Any]:
    """Show how a batch goes until it has ended; the batch then. An outage does not end the watch.

    Until the server has answered once, it may be the wrong one, and a few tries are enough.
    """
    # A small batch is done before a long first pause would be over.
    pause = min(_FIRST_POLL_SECONDS, poll_seconds)
    while True:
        batch = await client.retrieve(batch_id, is_patient=has_answered)
        has_answered = True
        told = await client.progress(batch_id) if batch["status"] == "in_progress" else None
        progress.show_batch(batch, told, label)
        if batch["status"] in FINAL:
            return batch
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, poll_seconds)


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


@contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when the block ends well, unless it is empty."""
    if path == STANDARD_STREAM:
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        return
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
