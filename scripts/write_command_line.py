"""Write `docs/cli.md` from the commands themselves: run it after changing one.

A test compares the file with `render()`, so the two cannot drift.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The workers' module reads its settings when it is imported.
os.environ.setdefault("OVERNIGHT_REDIS_URL", "redis://localhost:6379/0")

from cli.console import ExitStatus  # after the line above
from cli.main import COMMANDS, load_command  # after the line above

PATH = Path(__file__).parents[1] / "docs" / "cli.md"
_HEAD = """\
# The command line

`overnight COMMAND --help` says what is here. This page is written by `scripts/write_command_line.py`.

    overnight validate requests.jsonl             # would it run? offline
    overnight estimate requests.jsonl             # how much, how long?
    overnight run requests.jsonl                  # upload, watch, download
    overnight run a.jsonl b.jsonl -o results/     # several at once
    cat requests.jsonl | overnight run - > results.jsonl
    overnight run requests.jsonl --no-wait        # print the batch's id
    overnight ls                                  # which batches there are
    overnight results batch_… --failed --short    # what failed, a line each
    overnight retry batch_…                       # once more, those that failed

**Which server, which key.** Commands on batches speak the public API, so they work with an engine on
any machine: `--url` or `OPENAI_BASE_URL` (else `http://127.0.0.1:8080/v1`), `--api-key-file` or
`OPENAI_API_KEY`. On the machine of an `overnight up` its key is found by itself. None of them takes a
key as an option: other users of a machine can read command lines.

**For scripts.** Results go to standard output, everything else to standard error. `--json` prints JSON,
one value a line. Colours and bars are for terminals: they are off elsewhere, and colours with
`NO_COLOR` set.

**After Ctrl-C** a batch goes on. `overnight run` prints the command that takes it up: the same with
`--resume BATCH_ID`.

**Completion.** `overnight --install-completion` teaches the shell the commands, their options and the
ids of the newest batches.
"""


def render() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_statuses(), *_commands()])


def _statuses() -> Iterator[str]:
    yield "## Exit statuses\n"
    yield "Of several batches the highest counts; 1 before all.\n"
    yield "| status | |\n|---|---|"
    yield from (f"| {status.value} | {status.meaning} |" for status in ExitStatus)


def _commands() -> Iterator[str]:
    panel = ""
    for name, place in COMMANDS.items():
        if place.panel != panel:
            panel = place.panel
            yield f"\n## {panel}"
        yield from _command(f"overnight {name}", load_command(name), "###")


def _command(title: str, command: Any, level: str) -> Iterator[str]:
    yield f"\n{level} {title}\n"
    yield "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    rows = [_row(each) for each in command.params if each.name != "help"]
    if rows:
        yield "\n| | default | |\n|---|---|---|"
        yield from rows
    for name, inner in getattr(command, "commands", {}).items():
        yield from _command(f"{title} {name}", inner, f"{level}#")


def _row(param: Any) -> str:
    if param.param_type_name == "argument":
        names, words = f"`{param.metavar or param.name.upper()}`", getattr(param, "help", "") or ""
    else:
        names = ", ".join(f"`{each}`" for each in (*param.opts, *param.secondary_opts))
        words = param.help or ""
    envvar = getattr(param, "envvar", None)
    return f"| {names} | {_default(param)} | {words}{f' (`{envvar}`)' if envvar else ''} |"


def _default(param: Any) -> str:
    if param.required:
        return "*required*"
    shown = getattr(param, "show_default", None)
    if isinstance(shown, str):
        return shown
    value = param.default
    if value is None or callable(value) or isinstance(value, bool) or value in ((), []):
        return "on" if value is True else ""
    return f"`{getattr(value, 'value', value)}`"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
