"""docs/cli.md says what the commands and their exit statuses are."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cli.console import ExitStatus
from cli.program import child_environment

# They run until they are stopped, or are for looking at.
_UNTIL_STOPPED = ["api", "beat", "demo", "simulate", "up", "worker"]
PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_every_command_option_and_status_is_documented() -> None:
    """Run `python -m scripts.write_command_line` when this fails."""
    # In a process of its own: the workers' module keeps the settings that it was imported with.
    code = "from scripts.write_command_line import render; print(render(), end='')"
    rendered = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(),
        cwd=PAGE.parents[1],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert PAGE.read_text(encoding="utf-8") == rendered
    assert sorted(_commands_without_json(rendered)) == sorted(_UNTIL_STOPPED)
    for status in ExitStatus:
        assert f"| {status.value} | {status.meaning} |" in rendered


def _commands_without_json(page: str) -> Iterator[str]:
    sections = re.split(r"^#{3,4} overnight ", page, flags=re.MULTILINE)[1:]
    names = [section.splitlines()[0] for section in sections]
    for name, section in zip(names, sections, strict=True):
        is_group = any(other.startswith(f"{name} ") for other in names)
        if not is_group and "`--json`" not in section:
            yield name
