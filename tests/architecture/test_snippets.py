"""What the pages tell people to write is what there is: commands, options, settings, files, lines."""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cli.main import app
from models.lines import Endpoint, LineChecker
from models.upstreams import ModelServer
from models.upstreams_file import read_upstreams
from tests.snippets import (
    PYTHON,
    ROOT,
    SHELL,
    Snippet,
    all_pages,
    commands_of,
    overnight_commands,
    run_pages,
    snippets_of,
)

_LANGUAGES = {SHELL, PYTHON, "toml", "yaml", "json", "jsonl", "text", "mermaid"}
_FALLBACK = ModelServer(
    name="", url="", call_timeout_seconds=600, connect_timeout_seconds=10, max_response_bytes=2**26
)
_SNIPPETS = [snippet for page in run_pages() for snippet in snippets_of(page)]


def of_language(*languages: str) -> pytest.MarkDecorator:
    """Parametrize a test by the snippets of these languages."""
    snippets = [snippet for page in all_pages() for snippet in snippets_of(page)]
    chosen = [snippet for snippet in snippets if snippet.language in languages]
    return pytest.mark.parametrize("snippet", chosen, ids=lambda snippet: snippet.place)


def test_every_fence_says_what_is_in_it() -> None:
    assert [each.place for each in _SNIPPETS if each.language not in _LANGUAGES] == []


def test_what_the_shell_reads_is_right() -> None:
    """All of them in one shell: each is a function that is never called."""
    shell = [snippet for snippet in _SNIPPETS if snippet.language == SHELL]
    assert len(shell) > 20
    text = "\n".join(f"f{n}() {{ :\n{each.text}\n}}" for n, each in enumerate(shell))
    read = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")


@of_language(PYTHON)
def test_python_compiles(snippet: Snippet) -> None:
    compile(snippet.text, snippet.place, "exec")


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_are_there(page: Path) -> None:
    for place, words in overnight_commands(page):
        assert understood(words) is None, f"{place}: overnight {' '.join(words)}"


def understood(words: list[str]) -> Exception | None:
    """What the command line says against these words, without running anything."""
    command: Any = get_command(app)
    context = None
    try:
        while True:
            context = command.make_context("overnight", list(words), parent=context)
            if not hasattr(command, "resolve_command"):
                return None
            words = [*context._protected_args, *context.args]
            _, command, words = command.resolve_command(context, words)
    except SystemExit:
        return None  # --help
    except Exception as error:  # noqa: BLE001  # whatever it says is the finding
        return error


def test_an_option_that_is_not_there_is_noticed() -> None:
    assert understood(["run", "x.jsonl", "--no-such-option"]) is not None
    assert understood(["no-such-command"]) is not None
    assert understood(["keys", "create", "--project", "team-a"]) is None


def test_words_of_make_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = [
        (snippet.place, word)
        for snippet in _SNIPPETS
        if snippet.language == SHELL and re.search(r"^make ", snippet.text, re.MULTILINE)
        for words in commands_of(snippet.text)
        if words[0] == "make"
        for word in words[1:]
        if word not in {"-C", "overnight"} and "=" not in word
    ]
    assert told
    assert [each for each in told if each[1] not in targets] == []


@of_language("toml")
def test_files_of_model_servers_are_right(snippet: Snippet, tmp_path: Path) -> None:
    assert tomllib.loads(snippet.text)
    file = tmp_path / "overnight.toml"
    file.write_text(snippet.text)
    environment = {"HOSTED_API_KEY": "sk-example-0123456789"}
    assert read_upstreams(file, _FALLBACK, environment).servers


@of_language("json")
def test_json_is_json(snippet: Snippet) -> None:
    assert json.loads(snippet.text)


@of_language("jsonl")
def test_lines_pass_the_servers_own_check(snippet: Snippet) -> None:
    lines = snippet.text.splitlines()
    checker = LineChecker(Endpoint(json.loads(lines[0])["url"]))
    assert [checker.check(line.encode(), no) for no, line in enumerate(lines, 1)] == [None] * len(
        lines
    )
