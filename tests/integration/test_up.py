"""`overnight up` and `overnight run` as a person has them: real processes, real servers."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from cli.program import child_environment
from tests.factories import input_file, input_line, json_lines
from tests.fixtures.engine import KEY, Engine, engine_in, wait_for

pytestmark = pytest.mark.timeout(240)

_NAMES = {"api", "beat", "control", "postgres", "run", "valkey"}


def overnight(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "cli.main", *(str(each) for each in arguments)],
        env=child_environment(**settings),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def run(engine: Engine, *arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """`overnight run` against the engine."""
    base_url = json.loads(engine.ready_file.read_text())["base_url"]
    given = {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": KEY} | settings
    return overnight("run", *arguments, "--poll", "0.2", **given)


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """A file of good requests."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(input_file(120))
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_of_requests_becomes_a_file_of_results(engine: Engine, requests: Path) -> None:
    done = run(engine, requests, "--metadata", "night=one")
    assert done.returncode == 0, done.stderr
    assert "120 of 120 requests succeeded, 0 failed" in done.stdout
    results = lines_of(requests.parent / "requests-output.jsonl")
    assert {each["custom_id"] for each in results} == {f"request-{n}" for n in range(1, 121)}
    # Nothing half-written, and no file of errors when there is none.
    assert sorted(path.name for path in requests.parent.iterdir()) == [
        "requests-output.jsonl",
        "requests.jsonl",
    ]


def test_failed_requests_go_into_a_file_of_their_own(engine: Engine, requests: Path) -> None:
    engine.upstream.settings.bad_request_marker = 'question 7"'
    try:
        done = run(engine, requests, "--json", "--no-progress")
    finally:
        engine.upstream.settings.bad_request_marker = None
    assert done.returncode == 3, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["batch"]["request_counts"] == {"total": 120, "completed": 119, "failed": 1}
    [error] = lines_of(Path(outcome["errors"]))
    assert error["custom_id"] == "request-7"

    again = run(engine, requests)
    assert again.returncode == 0, again.stderr
    assert not Path(outcome["errors"]).exists(), (
        "an earlier run's errors must not pass for this one's"
    )


def test_a_batch_that_fails_its_check_names_the_lines(engine: Engine, tmp_path: Path) -> None:
    source = tmp_path / "requests.jsonl"
    source.write_bytes(json_lines(input_line(1), input_line(2) | {"method": "GET"}, input_line(1)))
    done = run(engine, source)
    assert done.returncode == 4
    assert "line 2: " in done.stdout
    assert "line 3: The custom_id 'request-1'" in done.stdout


def test_a_watch_can_be_left_and_taken_up(engine: Engine, tmp_path: Path) -> None:
    source = tmp_path / "requests.jsonl"
    source.write_bytes(input_file(400))
    base_url = json.loads(engine.ready_file.read_text())["base_url"]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "cli.main", "run", str(source)],
        env=child_environment(OPENAI_BASE_URL=base_url, OPENAI_API_KEY=KEY),
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stderr is not None
        said = ""
        while "Batch batch_" not in said:
            said = watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
        said += watching.communicate(timeout=30)[1]
    assert watching.returncode == 130
    assert "the batch goes on" in said
    batch_id = said.split("--resume ")[1].split()[0]

    done = run(engine, source, "--resume", batch_id)
    assert done.returncode == 0, done.stderr
    assert "400 of 400" in done.stdout


def test_a_wrong_key_is_a_sentence(engine: Engine, requests: Path) -> None:
    done = run(engine, requests, OPENAI_API_KEY="wrong")
    assert done.returncode == 1
    assert "401" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_is_made_while_it_runs(engine: Engine) -> None:
    """Beside it, without its lock, by its data folder alone."""
    done = overnight(
        "keys", "create", "--project", "night", "--json", "--data-dir", engine.data_folder
    )
    assert done.returncode == 0, done.stderr
    key = json.loads(done.stdout)
    batch_id = engine.create_batch(1)
    with engine.client as client:
        theirs = {"authorization": f"Bearer {key['key']}"}
        assert client.get("batches", headers=theirs).json()["data"] == []
        assert client.get(f"batches/{batch_id}", headers=theirs).status_code == 404
        revoked = overnight("keys", "revoke", key["id"], "--data-dir", engine.data_folder)
        assert revoked.returncode == 0, revoked.stderr
        assert client.get("batches", headers=theirs).status_code == 401
    for log in (engine.data_folder / "logs").iterdir():
        assert key["key"] not in log.read_text()
    engine.wait_for_end(batch_id)


def test_where_nothing_runs_is_a_sentence(tmp_path: Path) -> None:
    done = overnight("keys", "create", "--project", "p", "--data-dir", tmp_path / "nothing")
    assert done.returncode == 1
    assert "No `overnight up` is running on" in done.stderr
    assert not (tmp_path / "nothing").exists()


def test_no_secret_is_on_a_command_line_or_in_a_log(engine: Engine) -> None:
    assert all(KEY not in " ".join(each.cmdline()) for each in engine.processes())
    for log in (engine.data_folder / "logs").iterdir():
        assert KEY not in log.read_text()


def test_the_database_is_durable_and_not_on_the_network(engine: Engine) -> None:
    [api] = engine.processes("cli.main", "api")
    with psycopg.connect(api.environ()["OVERNIGHT_DATABASE_URL"]) as connection:
        found = {
            name: connection.execute(f"SHOW {name}").fetchone()
            for name in ("fsync", "synchronous_commit", "full_page_writes", "listen_addresses")
        }
    assert found == {
        "fsync": ("on",),
        "synchronous_commit": ("on",),
        "full_page_writes": ("on",),
        "listen_addresses": ("",),
    }


def test_every_process_has_a_log(engine: Engine) -> None:
    names = {path.stem for path in (engine.data_folder / "logs").glob("*.log")}
    assert names >= _NAMES - {"beat"}  # which has nothing to say while all is well


def test_the_api_tells_the_metrics_of_all_processes(engine: Engine) -> None:
    def told() -> str:
        with engine.client as client:
            return client.get("../metrics").raise_for_status().text

    def calls(text: str) -> int:
        found = re.search(r"^overnight_upstream_calls_total.*2xx.* (\d+)", text, re.MULTILINE)
        return int(found[1]) if found else 0

    before = calls(told())
    engine.wait_for_end(engine.create_batch(3))
    text = wait_for("three more calls are told", lambda: calls(t := told()) >= before + 3 and t)
    # Of the run process, of a control process, and of the API's own.
    assert 'overnight_lines_total{model="",outcome="succeeded",upstream="default"}' in text
    assert 'overnight_batches_ended_total{status="completed"}' in text
    assert 'overnight_http_requests_total{method="POST",route="/v1/batches",status="200"}' in text


def test_a_second_one_on_the_same_data_is_refused(engine: Engine) -> None:
    done = overnight(
        *("up", "--upstream", engine.upstream.url, "--port", 0),
        *("--data-dir", engine.data_folder, "--ready-file", engine.ready_file),
    )
    assert done.returncode == 1
    assert engine.ready_file.exists(), "it is the first one's"
    assert engine.process is not None
    assert f"(process {engine.process.pid})" in done.stderr
    assert "--data-dir" in done.stderr


def test_a_taken_port_is_found_before_anything_is_started(engine: Engine, tmp_path: Path) -> None:
    port = httpx.URL(json.loads(engine.ready_file.read_text())["base_url"]).port
    done = overnight(
        "up", "--upstream", engine.upstream.url, "--port", port, "--data-dir", tmp_path / "data"
    )
    assert done.returncode == 1
    assert f"Port {port}" in done.stderr
    assert not (tmp_path / "data" / "postgres").exists()


def test_while_the_api_restarts_callers_wait_and_are_not_refused(engine: Engine) -> None:
    [api] = engine.processes("cli.main", "api")
    api.send_signal(signal.SIGKILL)
    with engine.client as client:
        assert client.get("batches").status_code == 200
    wait_for("the API runs again", lambda: engine.processes("cli.main", "api"))


def test_killed_children_are_started_again(engine: Engine) -> None:
    for words in (("beat",), ("--only", "control"), ("valkey-server",)):
        [child] = _leaders(engine, *words)
        forked = child.children(recursive=True)
        child.kill()
        wait_for(f"{words} is started again", partial(_other_leader, engine, words, child.pid))
        _, alive = psutil.wait_procs(forked, timeout=10)
        assert not alive
    wait_for("all is ready", lambda: _is_ready(engine))


def test_killed_it_leaves_nothing_behind_and_starts_again_with_the_same_key(tmp_path: Path) -> None:
    # Also: a folder whose path is too long, and too odd, for a socket.
    folder = tmp_path / f"it's, as one says, a folder {'x' * 100}"
    folder.mkdir()
    with engine_in(folder, OVERNIGHT_API_KEY="") as engine:
        assert engine.process is not None
        key = _kept_key(engine)
        processes = engine.processes()
        assert len(processes) > len(_NAMES)
        engine.process.kill()
        engine.process.wait()
        _, alive = psutil.wait_procs(processes, timeout=30)
        assert not alive

        engine.start()
        assert _kept_key(engine) == key
        # Its socket is elsewhere, and found all the same.
        listed = overnight("projects", "list", "--data-dir", engine.data_folder)
        assert "proj_default" in listed.stdout, listed.stderr
        base_url = json.loads(engine.ready_file.read_text())["base_url"]
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(f"{base_url}/batches", headers=headers, trust_env=False).is_success
        processes = engine.processes()
        assert engine.stop() == 0
        assert not any(each.is_running() for each in processes)
        stopped = overnight("projects", "list", "--data-dir", engine.data_folder)
        assert stopped.returncode == 1
        assert "`overnight up`" in stopped.stderr
        assert not engine.ready_file.exists()
        others = stat.S_IRWXG | stat.S_IROTH | stat.S_IWOTH
        assert not engine.data_folder.stat().st_mode & others
    said = (folder / "up.log").read_text()
    assert "export OPENAI_API_KEY=" in said
    assert key not in said, "what is not a terminal may be a log"
    assert "does not answer yet" not in said


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = overnight("up", "--upstream", "http://localhost:9/v1", "--data-dir", tmp_path / "data")
    assert done.returncode == 2
    assert "--data-dir" in done.stderr


def _leaders(engine: Engine, *words: str) -> list[psutil.Process]:
    """The supervised processes, without what they have forked."""
    assert engine.process is not None
    return [each for each in engine.processes(*words) if each.ppid() == engine.process.pid]


def _other_leader(engine: Engine, words: tuple[str, ...], pid: int) -> bool:
    return any(each.pid != pid for each in _leaders(engine, *words))


def _is_ready(engine: Engine) -> bool:
    with engine.client as client:
        try:
            return bool(client.get("../readyz").status_code == 200)
        except httpx.TransportError:
            return False


def _kept_key(engine: Engine) -> str:
    key_file = engine.data_folder / "api-key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    return key_file.read_text().strip()
