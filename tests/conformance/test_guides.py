"""What the README, the guides and the examples tell people to run, run as they say, on a running engine.

A page's snippets are run in their order, in one folder, with the two variables that `overnight up` prints.
Commands of `overnight` itself are not run here but checked, by `tests/architecture/test_snippets.py`.
"""

import json
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.engine import KEY, Engine
from tests.snippets import PYTHON, ROOT, SHELL, Snippet, commands_of, run_pages, snippets_of

pytestmark = pytest.mark.timeout(240)

# What a snippet may call: nothing that installs, starts or changes anything outside its folder.
_PROGRAMS = ("bash", "cat", "cp", "curl", "grep", "head", "ls", "python3", "sed", "tail", "wc")
_MOST_LINES = 30
_EXAMPLES = {
    "classify_csv.py": ["reviews.csv", "gpt-4o-mini"],
    "embed_folder.py": ["texts", "text-embedding-3-small"],
    "structured_outputs.py": ["reviews.csv", "gpt-4o-mini"],
    "judge.py": ["answers.jsonl", "gpt-4o-mini"],
}


def is_run(snippet: Snippet) -> bool:
    """Whether a snippet is run here."""
    if snippet.not_run or snippet.language not in {SHELL, PYTHON}:
        return False
    if snippet.language == PYTHON:
        return True
    checked = {"overnight", "make"}
    return not all(Path(words[0]).name in checked for words in commands_of(snippet.text))


_PAGES = [page for page in run_pages() if any(map(is_run, snippets_of(page)))]


@pytest.fixture
def user(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder and environment; the folder holds the examples, as a clone would."""
    with engine.client as client:
        monkeypatch.setenv("OPENAI_BASE_URL", str(client.base_url).rstrip("/"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in _PROGRAMS:
        # The python3 of the path may be a version manager's, which needs its own path to start.
        found = sys.executable if name == "python3" else shutil.which(name)
        assert found, f"{name} is needed by this test"
        (programs / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.chdir(tmp_path)
    # People may wait a second between two looks; a test need not.
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.1)))
    return tmp_path


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_of(page: Path, user: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for snippet in filter(is_run, snippets_of(page)):
        if snippet.language == PYTHON:
            with naming(snippet):
                exec(compile(snippet.text, snippet.place, "exec"), names)  # noqa: S102  # our own pages
        else:
            run_in_shell(snippet, user)
    if "client" in names:
        names["client"].close()


def run_in_shell(snippet: Snippet, folder: Path) -> None:
    """Run a snippet as a person's shell would, but stop at the first command that fails."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", snippet.text],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{snippet.place}\n{done.stdout}\n{done.stderr}"


@contextmanager
def naming(snippet: Snippet) -> Iterator[None]:
    """Say which snippet it was that failed."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the snippet at {snippet.place}")
        raise


def of_classify(output: str) -> None:
    rows = output.splitlines()
    assert rows[0] == "id,review,label"
    assert len(rows) == 21
    assert all(len(row.rpartition(",")[2]) > 2 for row in rows)


def of_embed(output: str) -> None:
    vectors = {line["file"]: line["embedding"] for line in map(json.loads, output.splitlines())}
    assert set(vectors) == {"one.txt", "deep/two.md"}
    assert vectors["one.txt"] != vectors["deep/two.md"]


def of_structured(output: str) -> None:
    rows = [json.loads(line) for line in output.splitlines()]
    assert [row["id"] for row in rows] == [f"review-{number:04}" for number in range(1, 21)]
    assert {row["mood"] for row in rows} <= {"good", "bad", "mixed"}


def of_judge(output: str) -> None:
    assert output.startswith("10 answers, mean grade ")


_RIGHT: dict[str, Callable[[str], None]] = {
    "classify_csv.py": of_classify,
    "embed_folder.py": of_embed,
    "structured_outputs.py": of_structured,
    "judge.py": of_judge,
}


def test_examples(
    user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is short, and does what its first line says."""
    monkeypatch.chdir(user / "examples")
    Path("texts/deep").mkdir(parents=True)
    Path("texts/one.txt").write_text("A text about lamps.")
    Path("texts/deep/two.md").write_text("A text about tents.")
    for name, arguments in _EXAMPLES.items():
        code = [line for line in Path(name).read_text().splitlines() if line.strip()]
        assert len(code) <= _MOST_LINES, name
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capsys.readouterr()
        runpy.run_path(name, run_name="__main__")["client"].close()
        _RIGHT[name](capsys.readouterr().out)


def test_no_example_is_left_out() -> None:
    programs = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert programs == {*_EXAMPLES, "make_requests.py", "openai_sdk.py"}
