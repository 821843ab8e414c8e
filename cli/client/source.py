"""The file of requests on this side: opened, taken from standard input, looked into.

Promises: what cannot be a file of requests is refused by a sentence, before anything is sent.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cli.console import UsageError

STANDARD_STREAM = Path("-")
"""Standard input, or standard output."""

_LONGEST_LINE_BYTES = 64 * 1024 * 1024
_EXAMPLE = '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {…}}'


def open_source(source: Path) -> IO[bytes]:
    """Open the file of requests, or say why that cannot be."""
    try:
        if source.is_dir():
            raise UsageError(f"{source} is a folder: name the .jsonl files in it.")
        return source.open("rb")
    except FileNotFoundError as error:
        raise UsageError(f"Cannot read {source}: there is no such file.") from error
    except OSError as error:
        raise UsageError(f"Cannot read {source} ({error.strerror}).") from error


@contextmanager
def on_disk(source: Path) -> Iterator[Path]:
    """The file of requests as one that can be read again; standard input is kept in one meanwhile."""
    if source != STANDARD_STREAM:
        yield source
        return
    if sys.stdin.isatty():
        raise UsageError("Standard input is a terminal: give a file, or pipe one in (< FILE).")
    with tempfile.TemporaryDirectory(prefix="overnight-") as folder:
        kept = Path(folder) / "stdin.jsonl"
        with kept.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield kept


def shown_name(source: Path) -> str:
    """The file's name as a person knows it."""
    return "standard input" if source == STANDARD_STREAM else str(source)


def read_endpoint(source: Path, name: str | None = None) -> str:
    """The endpoint that the first request in the file is for."""
    name = name or str(source)
    with open_source(source) as file:
        line = b""
        while not line.strip():
            line = file.readline(_LONGEST_LINE_BYTES)
            if not line:
                raise UsageError(
                    f"{name} is empty: it should hold one request a line, as in\n  {_EXAMPLE}"
                )
    try:
        url = json.loads(line.decode("utf-8-sig"))["url"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{name}: the first line is no request. It should look like\n  {_EXAMPLE}\n"
            f"`overnight validate {name if source.exists() else 'FILE'}` says more."
        ) from error
    if not isinstance(url, str):
        raise UsageError(
            f'{name}: the `url` of the first line must be a string, such as "/v1/chat/completions".'
        )
    return url
