"""How commands print what they found: facts, tables, JSON; and times as a person reads them.

Promises: everything here goes to standard output; nothing in it is cut where that is no terminal.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def show_moment(moment: datetime | None, otherwise: str) -> str:
    """A time as a person reads it, here."""
    return otherwise if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M}"


def show_unix(seconds: int | None, otherwise: str = "") -> str:
    """A time of the API as a person reads it, here."""
    return show_moment(None if seconds is None else datetime.fromtimestamp(seconds, UTC), otherwise)


def show_duration(seconds: float) -> str:
    """A duration in its two largest units: `45 s`, `3 min 20 s`, `2 h`."""
    left = max(round(seconds), 0)
    parts = []
    for size, unit in _UNITS:
        if left >= size:
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2]) or "0 s"


def show_bytes(size: float) -> str:
    """A size in decimal units."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def show_json(value: Any) -> None:
    """Print one JSON value, on one line."""
    typer.echo(json.dumps(value))


def show_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: on a terminal as wide as that is, elsewhere as wide as it needs to be."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, title in enumerate(titles):
        # The first is what one copies into the next command.
        table.add_column(title, no_wrap=number == 0)
    for row in rows:
        # As text: what looks like markup in a name is a part of the name.
        table.add_row(*map(Text, row))
    _print(table)


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print some facts, one a line."""
    table = Table.grid("", "", padding=(0, 2, 0, 0))
    for title, words in facts:
        table.add_row(Text(title), Text(words, overflow="fold"))
    _print(table)


def _print(table: Table) -> None:
    width = None if sys.stdout.isatty() else 10_000
    console = Console(file=sys.stdout, width=width, highlight=False)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        typer.echo(line.rstrip())
