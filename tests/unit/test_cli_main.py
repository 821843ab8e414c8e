"""The command as a whole: its list, its help, and how it says no."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from cli.address import is_answered, settle_upstream, shown_url
from cli.check import known_names
from cli.console import UsageError
from cli.engine import _API_STOP_SECONDS, Engine
from cli.main import COMMANDS, main
from cli.processes.api import _GRACE_SECONDS
from cli.processes.workers import DRAIN_SECONDS
from cli.program import child_environment
from cli.readyfile import ReadyFile
from cli.revision import newest_revision
from cli.simulator.hosting import simulated_server
from cli.up import _data_dir_option, _key_for_export, _note_silence
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
        (["estimat"], "Did you mean 'estimate'"),
        (["run", "/"], "/ is a folder"),
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
    ("command", "name"), [("api", "OVERNIGHT_DATABASE_URL"), ("worker", "OVERNIGHT_REDIS_URL")]
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


def test_check_speaks_json(overnight: Overnight) -> None:
    done = overnight("check", "--json", OVERNIGHT_NO_SUCH_THING="1")
    found = json.loads(done.stdout)
    assert done.status == 1
    assert [each["name"] for each in found if not each["ok"]] == [
        "Settings",
        "Database",
        "Broker",
        "Model server",
    ]
    warned = [each["words"] for each in found if each.get("warning")]
    assert any("OVERNIGHT_NO_SUCH_THING" in words for words in warned)


def test_check_points_out_a_variable_that_nothing_reads(overnight: Overnight) -> None:
    done = overnight("check", OVERNIGHT_MAX_INFLIGHT="1", OVERNIGHT_QQ="", OVERNIGHT_MAX_LINES="7")
    warnings = [line[16:] for line in done.stdout.splitlines() if line.startswith("! Settings")]
    assert warnings == [
        "OVERNIGHT_MAX_INFLIGHT is not a setting; did you mean OVERNIGHT_MAX_IN_FLIGHT?",
        "OVERNIGHT_QQ is not a setting.",
        (
            "`overnight up` needs neither OVERNIGHT_DATABASE_URL nor OVERNIGHT_REDIS_URL: it brings a"
            " database and a broker of its own."
        ),
    ]


def test_check_knows_every_setting_and_every_options_variable() -> None:
    read = json.loads(
        python(
            "import json, sys, pydantic_settings; from cli.main import COMMANDS, load_command;"
            "options = [p.envvar for name in COMMANDS for p in load_command(name).params];"
            "classes = pydantic_settings.BaseSettings.__subclasses__();"
            "fields = ['OVERNIGHT_' + field.upper() for each in classes"
            " if each.__module__ in ('models.settings', 'worker.settings', 'api.settings')"
            " for field in each.model_fields];"
            "print(json.dumps([each for each in options if each] + fields))",
            OVERNIGHT_REDIS_URL="redis://localhost:1/0",
        )
    )
    ours = {name.removeprefix("OVERNIGHT_") for name in read if name.startswith("OVERNIGHT_")}
    assert len(ours) > 30
    assert ours <= known_names()


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


@pytest.mark.parametrize(
    "given",
    [
        "",
        "  ",
        "ftp://host/v1",
        "http://",
        "http://host/v1?key=secret",
        "http://[::1/v1",
        "http://localhost:80a0/v1",
        "http://localhost:0/v1",
        "http://user:secret@host/v1",
        "user:secret@host:8000",
        "http://user:secret@[::1/v1",
        "http://user:secret@host:80a0/v1",
        "http://user:sec?secret@host/v1",
    ],
)
def test_what_is_no_model_servers_url_is_refused(given: str) -> None:
    with pytest.raises(UsageError) as caught:
        settle_upstream(given, Listening())
    assert "sec" not in str(caught.value).replace("second", "")


def test_a_key_in_the_model_servers_url_is_sent_elsewhere() -> None:
    with pytest.raises(UsageError, match="OVERNIGHT_UPSTREAM_API_KEY"):
        settle_upstream("http://user:pw@host/v1", Listening())


def test_of_a_url_only_what_is_no_secret_is_shown() -> None:
    assert shown_url("https://u:secret@host:1/a/v1?key=secret#secret") == "https://host:1/a/v1"


def test_any_http_answer_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is on this machine is asked without a proxy.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with simulated_server(api_key="key") as server:
        assert is_answered(f"{server.url}/models", seconds=3)
        assert is_answered(f"{server.url}/nowhere", seconds=3)
    assert not is_answered(f"{server.url}/models", seconds=3)


def test_a_model_server_that_is_silent_is_no_error() -> None:
    terminal = Listening()
    _note_silence("http://127.0.0.1:1/v1", terminal)
    assert terminal.said == [
        "Note: the model server does not answer yet at 127.0.0.1:1; requests wait until it does."
    ]


def test_the_keys_place_is_safe_to_paste_into_a_shell(tmp_path: Path) -> None:
    key_file = tmp_path / "it's $(mine)" / "api-key"
    key_file.parent.mkdir()
    key_file.write_text("ovn-1\n")
    engine = Engine(
        base_url="", api_key="x", key_file=key_file, data_folder=tmp_path, logs=tmp_path
    )
    script = f'export KEY={_key_for_export(engine)}; printf %s "$KEY"'
    assert subprocess.check_output(["sh", "-c", script], text=True) == "ovn-1"


def test_the_hint_for_others_names_the_data_folder_where_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = (tmp_path / "it's mine").resolve()
    engine = Engine(base_url="", api_key="x", key_file=None, data_folder=folder, logs=tmp_path)
    assert shlex.split(_data_dir_option(engine)) == ["--data-dir", str(folder)]
    monkeypatch.setenv("OVERNIGHT_DATA_DIR", str(folder))
    assert _data_dir_option(engine) == ""


def test_only_a_ready_file_that_was_written_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    engine = Engine(base_url="", api_key="x", key_file=None, data_folder=tmp_path, logs=tmp_path)
    first, second = ReadyFile(path), ReadyFile(path)
    first.write(engine)
    second.remove()
    assert path.exists()
    path.write_text("another's")
    first.remove()
    assert path.read_text() == "another's"
    first.write(engine)
    first.remove()
    assert not path.exists()


def test_the_newest_revision_is_the_one_that_alembic_finds() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[2] / "migrations"))
    assert newest_revision() == ScriptDirectory.from_config(config).get_current_head()


def test_the_supervisor_knows_the_workers_drain_time() -> None:
    assert RunSettings.model_fields["drain_seconds"].default == DRAIN_SECONDS


def test_the_supervisor_is_more_patient_than_the_api() -> None:
    assert _API_STOP_SECONDS > _GRACE_SECONDS
