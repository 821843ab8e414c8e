"""A project's limits as they are given on a command line, and as they are told."""

import re

from cli.console import UsageError
from models.project import MAX_WEIGHT, Project

LIMIT_WORDS = "a number, `none` for no limit, or `default` for that of the settings."

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_NUMBER = re.compile(r"([0-9]{1,19})(|[kmgt]b)", re.ASCII | re.IGNORECASE)
_MOST = {"max_batches_per_hour": 2**31 - 1}
_MOST_OF_OTHERS = 2**63 - 1


def read_limit(limit: str, text: str) -> int | None:
    """A limit from the command line: 0 is none, null that of the settings."""
    option = f"--{limit.replace('_', '-')}"
    word = text.strip().lower().replace(",", "").replace("_", "")
    if word in {"none", "default"}:
        return 0 if word == "none" else None
    match = _NUMBER.fullmatch(word)
    if match is None or (match[2] and limit != "max_stored_bytes"):
        raise UsageError(f"{option}: give {LIMIT_WORDS}")
    value = int(match[1]) * _UNITS[match[2]]
    most = _MOST.get(limit, _MOST_OF_OTHERS)
    if value > most:
        raise UsageError(f"{option}: at most {most:,}; `none` is no limit.")
    return value


def read_weight(text: str) -> float:
    """A weight from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_WEIGHT:
        raise UsageError(f"--weight: give a number above 0, at most {MAX_WEIGHT:,}.")
    return value


def limit_words(project: Project, limit: str) -> str:
    """One limit of a project, for people."""
    value: int | None = getattr(project, limit)
    return "the default" if value is None else f"{value:,}" if value else "no limit"


def own_limits(project: Project) -> str:
    """The limits that a project has for itself, for people."""
    names = (
        "max_batches_per_hour",
        "max_enqueued_lines",
        "max_enqueued_tokens",
        "max_stored_bytes",
    )
    own = [
        f"{name} {limit_words(project, name)}"
        for name in names
        if getattr(project, name) is not None
    ]
    return ", ".join(own) or "the defaults"
