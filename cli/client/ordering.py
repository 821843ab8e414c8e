"""Putting results into the order of the requests, for servers that write them as they come."""

import tempfile
from pathlib import Path
from typing import IO

from cli.client.source import open_source
from models.lines import custom_id_of

_COPY_BYTES = 1024 * 1024


def order_like(source: Path, results: IO[bytes]) -> None:
    """Rewrite a file of results in the order of the file of requests; what is in order stays as it is.

    Only the places of the lines are in memory. Results that belong to no request come last.
    """
    places = {}
    with open_source(source) as requests:
        for number, line in enumerate(requests):
            if line.strip():
                places[_custom_id(line.removeprefix(b"\xef\xbb\xbf"))] = number
    results.seek(0)
    offset, lines = 0, []
    for line in results:
        lines.append((places.get(_custom_id(line), len(places)), offset, len(line)))
        offset += len(line)
    if lines == sorted(lines):
        return
    with tempfile.TemporaryFile() as ordered:
        for _, start, length in sorted(lines):
            results.seek(start)
            ordered.write(results.read(length).rstrip(b"\n") + b"\n")
        ordered.seek(0)
        results.seek(0)
        results.truncate()
        while piece := ordered.read(_COPY_BYTES):
            results.write(piece)


def _custom_id(line: bytes) -> str | None:
    try:
        return custom_id_of(line)
    except ValueError:
        # Whatever it is, it has no place.
        return None
