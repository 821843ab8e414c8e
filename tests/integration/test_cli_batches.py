"""The commands on batches, one after the other, as a person uses them on a running engine."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.console import ExitStatus
from cli.main import main
from tests.factories import input_file
from tests.fixtures.engine import KEY, Engine

pytestmark = pytest.mark.timeout(240)

_LINES = 300


@dataclass
class Done:
    """What a command left."""

    status: int
    stdout: str
    stderr: str


Overnight = Callable[..., Done]


@pytest.fixture
def overnight(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Overnight:
    """Run a command in this process, against the engine."""
    base_url = json.loads(engine.ready_file.read_text())["base_url"]
    monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OVERNIGHT_API_KEY", "OVERNIGHT_DATABASE_URL", "OVERNIGHT_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object, status: ExitStatus = ExitStatus.OK) -> Done:
        monkeypatch.setattr(sys, "argv", ["overnight", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        done = Done(int(caught.value.code or 0), said.out, said.err)
        assert done.status == status, done
        return done

    return call


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """A file of good requests."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(input_file(_LINES))
    return path


def test_a_batch_is_steered_to_its_end_and_once_more(
    engine: Engine, overnight: Overnight, requests: Path
) -> None:
    overnight("validate", requests)
    engine.upstream.settings.bad_request_marker = 'question 7"'
    try:
        batch_id = overnight("run", requests, "--no-wait").stdout.strip()
        overnight("pause", batch_id)
        told = json.loads(overnight("show", batch_id, "--json").stdout)
        assert told["progress"]["paused"] is True
        overnight("resume", batch_id)
        watched = overnight("watch", batch_id, "--poll", "0.2", status=ExitStatus.SOME_FAILED)
    finally:
        engine.upstream.settings.bad_request_marker = None
    assert f"{_LINES - 1} of {_LINES} requests succeeded, 1 failed" in watched.stdout

    assert overnight("results", batch_id, "--failed", "--short").stdout.startswith("request-7  400")
    assert len(overnight("results", batch_id, "--all").stdout.splitlines()) == _LINES
    one = json.loads(overnight("results", batch_id, "--custom-id", "request-3", "--json").stdout)
    assert one["request"]["custom_id"] == one["custom_id"] == "request-3"
    assert one["request"]["body"]["messages"]
    assert one["response"]["status_code"] == 200

    again = overnight("retry", batch_id).stdout.strip()
    overnight("watch", again, "--poll", "0.2")
    assert json.loads(overnight("show", again, "--json").stdout)["batch"]["request_counts"] == {
        "total": 1,
        "completed": 1,
        "failed": 0,
    }
    listed = json.loads(overnight("ls", "--json").stdout)
    assert [batch["id"] for batch in listed[:2]] == [again, batch_id]
    assert json.loads(overnight("estimate", requests, "--json").stdout)["lines_per_second"] > 0
    overnight("doctor")


def test_a_batch_is_cancelled_once(overnight: Overnight, requests: Path) -> None:
    batch_id = overnight("run", requests, "--no-wait").stdout.strip()
    overnight("cancel", batch_id)
    overnight("watch", batch_id, "--poll", "0.2", status=ExitStatus.CANCELLED)
    refused = overnight("pause", batch_id, status=ExitStatus.FAILED)
    assert "Cannot pause a batch with status 'cancelled'" in refused.stderr
