"""The commands on batches, as a person calls them, against a scripted server."""

import io
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.client import refusals, server
from cli.client.completion import complete_batch_id, complete_status
from cli.client.estimate import rate_of
from cli.client.http import BatchClient
from cli.client.ordering import order_like
from cli.client.outcome import worst
from cli.client.pace import Pace
from cli.client.server import settle_base_url
from cli.console import ExitStatus, UsageError
from cli.main import main
from cli.tables import show_duration
from tests.factories import input_file, input_line, json_lines
from tests.unit.test_cli_main import Done

Overnight = Callable[..., Done]
BATCH = {
    "id": "batch_1",
    "status": "in_progress",
    "endpoint": "/v1/chat/completions",
    "model": "m",
    "request_counts": {"total": 10, "completed": 3, "failed": 1},
    "input_file_id": "file-in",
    "created_at": 1_700_000_000,
    "expires_at": 4_000_000_000,
    "output_file_id": None,
    "error_file_id": None,
}
ENDED = BATCH | {"status": "completed", "output_file_id": "file-out", "error_file_id": "file-err"}
GOOD = b'{"custom_id": "a", "response": {"status_code": 200, "body": {"choices": [{"message": {"content": "Yes."}}]}}}\n'  # noqa: E501  # one line
ASKED = b'{"custom_id": "a", "body": {"model": "m", "messages": [{"role": "user", "content": "Is it?"}]}}'
BAD = b'{"custom_id": "b", "response": null, "error": {"code": "batch_expired", "message": "Late."}}\n'
PROGRESS = {"request_counts": BATCH["request_counts"], "paused": True, "retries": 7, "in_flight": 2}


class Script:
    """Answers by method and path; what it does not know is not found."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.get(f"{request.method} {request.url.path.removeprefix('/v1/')}")
        if isinstance(answer, httpx.Response):
            return answer
        if isinstance(answer, bytes):
            return httpx.Response(200, content=answer)
        if answer is None:
            words = {"error": {"message": f"No such thing: {request.url.path}"}}
            return httpx.Response(404, json=words)
        return httpx.Response(200, json=answer)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """The server that commands called by `overnight` talk to."""
    found = Script()
    client = partial(BatchClient, transport=httpx.MockTransport(found))
    monkeypatch.setattr(server, "BatchClient", client)
    monkeypatch.setattr(refusals, "_FIRST_PAUSE_SECONDS", 0.001)
    return found


@pytest.fixture
def overnight(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Overnight:
    """Run a command in this process, with nothing of this machine's own lying about."""
    monkeypatch.setenv("OVERNIGHT_DATA_DIR", str(tmp_path / "data"))
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OVERNIGHT_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object, **settings: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["overnight", *map(str, arguments)])
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        return Done(int(caught.value.code or 0), said.out, said.err)

    return call


def test_batches_are_listed(script: Script, overnight: Overnight) -> None:
    script.answers["GET batches"] = {"data": [BATCH], "has_more": False}
    done = overnight("ls", "--status", "in_progress", "--metadata", "team=a")
    assert done.status == 0
    assert "batch_1" in done.stdout
    assert "4/10" in done.stdout
    assert "\x1b" not in done.stdout
    assert dict(script.requests[0].url.params) == {
        "limit": "20",
        "status": "in_progress",
        "metadata[team]": "a",
    }
    assert json.loads(overnight("ls", "--json").stdout) == [BATCH]


def test_a_batch_is_shown_with_its_progress(script: Script, overnight: Overnight) -> None:
    script.answers |= {"GET batches/batch_1": BATCH, "GET batches/batch_1/progress": PROGRESS}
    done = overnight("show", "batch_1")
    assert "in_progress, paused" in done.stdout
    assert "2 calls, 7 retries" in done.stdout
    shown = json.loads(overnight("show", "batch_1", "--json").stdout)
    assert shown == {"batch": BATCH, "progress": PROGRESS}


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "retry"])
def test_an_order_is_given(script: Script, overnight: Overnight, verb: str) -> None:
    script.answers[f"POST batches/batch_1/{verb}"] = BATCH | {"id": "batch_2"}
    done = overnight(verb, "batch_1", "--json")
    assert (done.status, json.loads(done.stdout)["id"]) == (0, "batch_2")
    assert ("idempotency-key" in script.requests[0].headers) == (verb == "retry")


def test_what_cannot_be_is_not_asked_twice(script: Script, overnight: Overnight) -> None:
    words = {"error": {"message": "Cannot pause a batch with status 'completed'."}}
    script.answers["POST batches/batch_1/pause"] = httpx.Response(409, json=words)
    done = overnight("pause", "batch_1")
    assert done.status == 1
    assert "Cannot pause a batch" in done.stderr
    assert len(script.requests) == 1


def test_a_watch_ends_as_its_batch_does(script: Script, overnight: Overnight) -> None:
    script.answers["GET batches/batch_1"] = BATCH | {"status": "expired"}
    done = overnight("watch", "batch_1", "--no-progress")
    assert done.status == ExitStatus.EXPIRED
    assert "3 of 10 requests succeeded" in done.stdout


def test_results_are_given_as_they_are(script: Script, overnight: Overnight) -> None:
    script.answers |= {
        "GET batches/batch_1": ENDED,
        "GET files/file-out/content": GOOD,
        "GET files/file-err/content": BAD,
    }
    assert overnight("results", "batch_1").stdout.encode() == GOOD
    assert overnight("results", "batch_1", "--failed").stdout.encode() == BAD
    assert overnight("results", "batch_1", "--all").stdout.encode() == GOOD + BAD
    assert overnight("results", "batch_1", "--short").stdout == "a  200  Yes.\n"
    missing = overnight("results", "batch_1", "--custom-id", "c")
    assert missing.status == 1
    assert "custom_id 'c'" in missing.stderr


def test_a_request_is_shown_beside_its_result(script: Script, overnight: Overnight) -> None:
    script.answers |= {
        "GET batches/batch_1": ENDED,
        "GET files/file-out/content": GOOD,
        "GET files/file-err/content": BAD,
    }
    # Its file may be gone.
    found = overnight("results", "batch_1", "--custom-id", "b", "--json").stdout
    assert json.loads(found) == json.loads(BAD) | {"request": None}
    script.answers["GET files/file-in/content"] = b'{"custom_id": "z"}\n' + ASKED
    assert overnight("results", "batch_1", "--custom-id", "a").stdout == (
        'a  200\n\nRequest\n{"model": "m"}\nuser: Is it?\n\nAnswer\nYes.\n'
    )
    found = overnight("results", "batch_1", "--custom-id", "a", "--json").stdout
    assert json.loads(found)["request"] == json.loads(ASKED)


def test_results_so_far(script: Script, overnight: Overnight) -> None:
    script.answers |= {"GET batches/batch_1": BATCH, "GET batches/batch_1/output": GOOD}
    done = overnight("results", "batch_1")
    assert done.stdout.encode() == GOOD
    assert "so far" in done.stderr


def test_results_that_have_expired(script: Script, overnight: Overnight) -> None:
    script.answers["GET batches/batch_1"] = ENDED
    done = overnight("results", "batch_1")
    assert done.status == 1
    assert "has expired or was deleted" in done.stderr


def test_mistakes_are_told_with_what_to_do(
    script: Script, overnight: Overnight, tmp_path: Path
) -> None:
    assert "`overnight ls` lists" in overnight("show", "batch_9").stderr
    script.answers["GET batches"] = httpx.Response(401, json={"error": {"message": "No key."}})
    assert "OPENAI_API_KEY" in overnight("ls").stderr
    script.answers["GET batches"] = httpx.Response(200, text="<html>")
    assert "right base URL" in overnight("ls").stderr
    assert overnight("ls", "--api-key-file", tmp_path / "none").status == ExitStatus.USAGE
    assert overnight("run", tmp_path / "none.jsonl").status == ExitStatus.USAGE
    assert overnight("run", tmp_path).status == ExitStatus.USAGE


def test_several_files_are_run_and_one_may_fail(
    script: Script, overnight: Overnight, tmp_path: Path
) -> None:
    script.answers |= {
        "POST files": {"id": "file-in"},
        "POST batches": BATCH,
        "GET batches/batch_1": ENDED | {"error_file_id": None},
        "GET files/file-out/content": GOOD,
    }
    good, empty = tmp_path / "good.jsonl", tmp_path / "empty.jsonl"
    good.write_bytes(input_file(1))
    empty.touch()
    done = overnight("run", good, empty, "--json")
    assert done.status == ExitStatus.SOME_FAILED
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [outcome.get("output") for outcome in outcomes] == [
        str(tmp_path / "good-output.jsonl"),
        None,
    ]
    assert "is empty" in outcomes[1]["error"]
    assert (tmp_path / "good-output.jsonl").read_bytes() == GOOD


def test_standard_input_becomes_standard_output(
    script: Script, overnight: Overnight, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script.answers |= {
        "POST files": {"id": "file-in"},
        "POST batches": BATCH,
        "GET batches/batch_1": ENDED | {"error_file_id": None},
        "GET files/file-out/content": GOOD,
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input_file(1))))
    done = overnight("run", "-")
    assert done.stdout.encode() == GOOD
    assert "3 of 10 requests succeeded" in done.stderr
    assert list(tmp_path.glob("*.jsonl")) == []


def test_who_does_not_wait_gets_an_id(script: Script, overnight: Overnight, tmp_path: Path) -> None:
    script.answers |= {"POST files": {"id": "file-in"}, "POST batches": BATCH}
    source = tmp_path / "in.jsonl"
    source.write_bytes(input_file(1))
    done = overnight("run", source, "--no-wait")
    assert (done.status, done.stdout) == (0, "batch_1\n")


def test_a_file_is_checked_with_lines_and_hints(overnight: Overnight, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(json_lines(input_line(1)) + b"\n{'a': 1}\n" + json_lines(input_line(1)))
    done = overnight("validate", source)
    assert done.status == ExitStatus.BATCH_FAILED
    assert "line 3: This line is not parseable" in done.stdout
    assert "json.dumps" in done.stdout
    assert "line 4: The custom_id 'request-1'" in done.stdout
    found = json.loads(overnight("validate", source, "--json").stdout)
    assert [each["code"] for each in found["errors"]] == [
        "invalid_json_line",
        "duplicate_custom_id",
    ]
    source.write_bytes(input_file(3))
    assert "is good: 3 requests of m" in overnight("validate", source).stdout
    limited = overnight("validate", source, OVERNIGHT_MAX_LINES="2")
    assert "too many requests" in limited.stdout


def test_an_estimate_says_where_its_rate_is_from(
    script: Script, overnight: Overnight, tmp_path: Path
) -> None:
    done = ENDED | {"in_progress_at": 100, "finalizing_at": 105}
    script.answers["GET batches"] = {"data": [BATCH, done], "has_more": False}
    source = tmp_path / "in.jsonl"
    source.write_bytes(input_file(4))
    found = json.loads(overnight("estimate", source, "--json").stdout)
    assert (found["lines"], found["lines_per_second"], found["seconds"]) == (4, 2.0, 2.0)
    assert rate_of([done], model="other", endpoint="/v1/chat/completions") is None


def test_a_file_that_would_fail_is_no_good_to_estimate(
    script: Script, overnight: Overnight, tmp_path: Path
) -> None:
    script.answers["GET batches"] = {"data": [], "has_more": False}
    source = tmp_path / "in.jsonl"
    source.write_text("{\n")
    done = overnight("estimate", source)
    assert done.status == ExitStatus.BATCH_FAILED
    assert f"overnight validate {source}" in done.stderr


@pytest.mark.parametrize(
    ("path", "status", "said", "words"),
    [
        ("GET batches", 404, "Unknown request URL", "is this the model server's address?"),
        ("POST batches/batch_1/retry", 404, "No batch found with id 'batch_1'.", "overnight ls"),
        ("POST batches/batch_1/retry", 404, "Not Found", "other servers do not have them"),
        (
            "GET batches",
            401,
            "Incorrect API key provided: ****. You can find",
            "one of this server's",
        ),
    ],
)
def test_a_refusal_says_what_to_do(
    script: Script, overnight: Overnight, path: str, status: int, said: str, words: str
) -> None:
    script.answers[path] = httpx.Response(status, json={"error": {"message": said}})
    arguments = ("ls",) if path.startswith("GET") else ("retry", "batch_1")
    assert words in overnight(*arguments, OPENAI_API_KEY="sk-wrong").stderr


def test_the_doctor_names_what_is_wrong(script: Script, overnight: Overnight) -> None:
    script.answers["GET batches"] = httpx.Response(401, json={"error": {"message": "Wrong."}})
    done = overnight("doctor", "--json", OPENAI_API_KEY="secret")
    assert done.status == 1
    signs = {each["name"]: each for each in json.loads(done.stdout)}
    assert (signs["Server"]["ok"], signs["Key"]["ok"]) == (True, False)
    assert "secret" not in done.stdout + done.stderr


def test_results_take_the_order_of_the_requests(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(input_file(3))
    lines = [b'{"custom_id": "request-%d"}' % number for number in (3, 1, 2)]
    results = io.BytesIO(b"\n".join([b'{"custom_id": "who"}', *lines]))
    order_like(source, results)
    found = [json.loads(line)["custom_id"] for line in results.getvalue().splitlines()]
    assert found == ["request-1", "request-2", "request-3", "who"]


def test_the_pace_is_that_of_the_last_seconds() -> None:
    pace = Pace(window_seconds=10)

    def see(now: float, done: int, tokens: int) -> Any:
        counts = {"total": 100, "completed": done, "failed": 0}
        told = {"request_counts": counts, "usage": {"total_tokens": tokens}}
        return pace.see(BATCH, told, now=now)

    assert see(0, 0, 0).lines_per_second is None
    assert see(10, 10, 1000).tokens_per_second == 100
    sight = see(20, 60, 1500)
    assert (sight.lines_per_second, sight.tokens_per_second, sight.seconds_left) == (5, 50, 8)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("host:8080", "http://host:8080/v1"),
        ("https://host/openai/v1/", "https://host/openai/v1"),
    ],
)
def test_a_servers_url_may_be_short(given: str, taken: str) -> None:
    assert settle_base_url(given) == taken


@pytest.mark.parametrize("given", ["ftp://host", "http://u:secret@host/v1", "http://[::1"])
def test_what_is_no_url_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(UsageError) as caught:
        settle_base_url(given)
    assert "secret" not in str(caught.value)


def test_the_shell_offers_ids_of_the_server_that_the_environment_names(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://other:1/v1")
    script.answers["GET batches"] = {"data": [BATCH], "has_more": False}
    assert complete_batch_id("batch_") == [("batch_1", "in_progress")]
    assert complete_batch_id("file") == []
    assert script.requests[0].url.host == "other"
    assert complete_status("cancel") == ["cancelling", "cancelled"]
    script.answers.clear()
    assert complete_batch_id("") == []


def test_of_several_the_worst_counts() -> None:
    assert worst([ExitStatus.OK, ExitStatus.SOME_FAILED]) == ExitStatus.SOME_FAILED
    assert worst([ExitStatus.EXPIRED, ExitStatus.FAILED]) == ExitStatus.FAILED


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (61, "1 min 1 s"), (7200, "2 h"), (90_061, "1 d 1 h")]
)
def test_durations_are_told_in_two_units(seconds: float, words: str) -> None:
    assert show_duration(seconds) == words
