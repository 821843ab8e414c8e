"""The command as a whole: its list, its help, and how it says no."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from cli.console import FAILED, INTERRUPTED, USAGE, UsageError
from cli.main import COMMANDS, main
from cli.processes.workers import DRAIN_SECONDS
from cli.program import child_environment
from cli.revision import newest_revision
from cli.run import SOME_FAILED, STATUS_OF, run
from cli.up import settle_upstream
from tests.unit.test_supervisor import Listening
from worker.settings import RunSettings


@dataclass
class Done:
    """What a command left."""

    status: int
    stdout: str
    stderr: str


Overnight = Callable[..., Done]


@pytest.fixture
def overnight(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Overnight:
    """Run a command in this process."""

    def call(*arguments: str, **settings: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["overnight", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        return Done(int(caught.value.code or 0), said.out, said.err)

    return call


def python(code: str, **settings: str) -> str:
    """Run code in a process of its own; what it prints."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(**settings),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_list_is_shown_without_importing_what_it_lists() -> None:
    shown = python(
        "import sys; from cli.main import app; app(['--help'], standalone_mode=False);"
        "print([name for name in ('celery', 'sqlalchemy', 'httpx', 'uvicorn') if name in sys.modules])"
    )
    assert shown.splitlines()[-1] == "[]"
    assert all(name in shown for name in COMMANDS)


def test_a_commands_summary_in_the_list_is_its_own() -> None:
    # In a process of its own: the workers' module keeps the settings that it was imported with.
    helps = json.loads(
        python(
            "import json; from cli.main import COMMANDS, load_command;"
            "print(json.dumps({name: load_command(name).help for name in COMMANDS}))",
            OVERNIGHT_REDIS_URL="redis://localhost:1/0",
        )
    )
    for name, place in COMMANDS.items():
        own = " ".join(helps[name].split("\n\n")[0].split())
        assert own.startswith(place.summary.rstrip("."))


def test_the_version_is_told(overnight: Overnight) -> None:
    done = overnight("--version")
    assert done.status == 0
    assert done.stdout.startswith("overnight ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["upp"], "No such command 'upp'"),
        (["up", "--port", "eighty"], "--port"),
        (["up"], "http://localhost:11434/v1"),
        (["up", "--upstream", "http://localhost:8000/api"], "must end in /v1"),
        (["run"], "INPUT.jsonl"),
        (["run", "/no/such/file.jsonl"], "Cannot read /no/such/file.jsonl"),
        (["demo", "--upstream", "http://localhost:8000/v1"], "--model"),
        (["demo", "--model", "m"], "--upstream"),
        (["worker", "--concurrency", "2"], "--only"),
        (["migrate"], "OVERNIGHT_DATABASE_URL is not set"),
        (["check", "--all"], "--all"),
    ],
)
def test_a_mistake_is_answered_by_a_sentence(
    overnight: Overnight, arguments: list[str], words: str
) -> None:
    done = overnight(*arguments)
    assert done.status == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "name"), [("api", "OVERNIGHT_API_KEY"), ("worker", "OVERNIGHT_REDIS_URL")]
)
def test_a_missing_setting_is_named(command: str, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cli.main", command],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"overnight: {name} is not set" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_names_everything_that_is_wrong_and_shows_no_secret(overnight: Overnight) -> None:
    done = overnight(
        "check",
        OVERNIGHT_API_KEY="secret-key",
        OVERNIGHT_DATABASE_URL="postgresql://u:secret-password@127.0.0.1:1/x",
        OVERNIGHT_REDIS_URL="redis://:secret-password@127.0.0.1:1/0",
        OVERNIGHT_UPSTREAM_URL="http://127.0.0.1:1/v1",
        OVERNIGHT_UPSTREAM_API_KEY="secret-key",
    )
    assert done.status == 1
    marks = {line[2:15].strip(): line[0] for line in done.stdout.splitlines()}
    assert marks == {"Settings": "✓", "Database": "✗", "Broker": "✗", "Model server": "✗"}
    assert "secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("localhost:11434", "http://localhost:11434/v1"),
        ("https://models.example/openai/v1", "https://models.example/openai/v1"),
        ("http://localhost:8000/v1/chat/completions", "http://localhost:8000/v1"),
    ],
)
def test_a_model_servers_url_is_understood_as_people_write_it(given: str, taken: str) -> None:
    terminal = Listening()
    assert settle_upstream(given, terminal) == taken
    # A change is never made silently; a slash at the end is none.
    assert bool(terminal.said) == (given.rstrip("/") != taken)


@pytest.mark.parametrize("given", ["", "  ", "ftp://host/v1", "http://", "http://host/v1?key=x"])
def test_what_is_no_model_servers_url_is_refused(given: str) -> None:
    with pytest.raises(UsageError):
        settle_upstream(given, Listening())


def test_the_newest_revision_is_the_one_that_alembic_finds() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[2] / "migrations"))
    assert newest_revision() == ScriptDirectory.from_config(config).get_current_head()


def test_the_supervisor_knows_the_workers_drain_time() -> None:
    assert RunSettings.model_fields["drain_seconds"].default == DRAIN_SECONDS


def test_run_documents_its_exit_statuses() -> None:
    documented = set(re.findall(r"\b\d+\b", (run.__doc__ or "").split("Exit status:")[1]))
    used = {0, FAILED, USAGE, INTERRUPTED, SOME_FAILED, *STATUS_OF.values()}
    assert documented == {str(status) for status in used}
