"""How a record becomes a line of a log: one line, whatever its message holds, with the ids it belongs to.

Promises: no text of a client, a model server or a library can begin a line of its own and pass for
another record: control characters are shown as escapes, and the lines of a traceback are indented (in JSON,
they are one string). Ids are ours: of a batch, a shard or a request.
"""

import json
import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any

_CONTROL = (*range(0x20), 0x7F, *range(0x80, 0xA0), 0x2028, 0x2029)
_ESCAPES = {code: chr(code).encode("unicode_escape").decode("ascii") for code in _CONTROL}

_ids: ContextVar[dict[str, str | int]] = ContextVar("ids", default={})  # noqa: B039  # never changed in place


def bind_ids(**ids: str | int) -> None:
    """From here on, what this task logs belongs to these as well."""
    _ids.set(_ids.get() | ids)


@contextmanager
def bound_ids(**ids: str | int) -> Generator[None]:
    """Inside the block, what is logged belongs to these as well."""
    token = _ids.set(_ids.get() | ids)
    try:
        yield
    finally:
        _ids.reset(token)


def context_with_ids(**ids: str | int) -> Context:
    """A context for work that is begun from many places: what is logged there belongs to these alone."""
    context = copy_context()
    context.run(_ids.set, ids)
    return context


class OneLine(logging.Formatter):
    """A formatter like any other, but for the above. Ids that the message does not tell stand after it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        """The record's line."""
        line = super().formatMessage(record)
        untold = [f"{name}={id_}" for name, id_ in _ids.get().items() if str(id_) not in line]
        return " ".join((line, *untold)).translate(_ESCAPES)

    def formatException(self, ei: Any) -> str:  # noqa: N802  # the same
        """The traceback below it."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802  # the same
        """The stack below it."""
        return _indented(stack_info)


class JsonLine(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `message`, and the ids by their names."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_ids.get(),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            told["stack"] = record.stack_info
        return json.dumps(told)


def log_to_standard_error(level: int | str, form: str, *, as_json: bool = False) -> None:
    """Have this process log so; does nothing where it logs already."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLine() if as_json else OneLine(form))
    logging.basicConfig(handlers=[handler], level=level)


def _indented(text: str) -> str:
    return "\n".join("    " + line.translate(_ESCAPES) for line in text.splitlines())
