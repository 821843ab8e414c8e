"""What every single process does first: settle its logging, read its settings, wait for its gate.

Promises: a wrong setting is a sentence and exit status 2; a line of the log never holds a prompt, a
completion or a key, and nothing in it can begin a line of its own.
"""

import logging
import os
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError

from cli.console import UsageError, explain_settings
from models.logline import log_to_standard_error

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_QUIET_LOGGERS = (
    # One line for every call, shard and sweep would bury all others.
    "aiohttp.access",
    "celery.app.trace",
    "celery.beat",
    "celery.worker.strategy",
    "httpx",
)

T = TypeVar("T")

#: A file descriptor that `overnight up` hands down; nothing for people.
HandedDown = Annotated[int | None, typer.Option(hidden=True)]


def start_logging() -> int:
    """Log to standard error, from OVERNIGHT_LOG_LEVEL (INFO) upwards. Returns the level.

    OVERNIGHT_LOG_FORMAT is `console`, which is for people, or `json`, an object a line.
    """
    name = os.environ.get("OVERNIGHT_LOG_LEVEL", "INFO").upper()
    level = logging.getLevelNamesMapping().get(name)
    if level is None:
        raise UsageError(f"OVERNIGHT_LOG_LEVEL: {name} is none of DEBUG, INFO, WARNING, ERROR.")
    form = os.environ.get("OVERNIGHT_LOG_FORMAT") or "console"
    if form not in {"console", "json"}:
        raise UsageError(f"OVERNIGHT_LOG_FORMAT: {form} is neither console nor json.")
    log_to_standard_error(level, _FORMAT, as_json=form == "json")
    for quiet in _QUIET_LOGGERS:
        logging.getLogger(quiet).setLevel(max(level, logging.WARNING))
    return level


def read_settings(read: Callable[[], T]) -> T:
    """What `read` returns; a sentence for each setting that is missing or wrong."""
    try:
        return read()
    except ValidationError as error:
        raise UsageError(" ".join(explain_settings(error))) from error


def wait_at_gate(gate_fd: int | None) -> None:
    """Wait until `overnight up` says that database and broker are there, by closing its pipe.

    By then everything is imported: half of a start is reading Python modules, and that need not
    wait for the servers.
    """
    if gate_fd is not None:
        os.read(gate_fd, 1)
        os.close(gate_fd)
