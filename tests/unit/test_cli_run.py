"""`overnight run` against a scripted server: tries, refusals, broken downloads, outcomes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.client import refusals
from cli.client.batchrun import BatchRun, first_error
from cli.client.http import BatchClient
from cli.client.outcome import exit_status, summary
from cli.client.progress import Lines, Silence
from cli.client.run import how_to_go_on, plan
from cli.client.server import LOCAL_BASE_URL, Server, choose_key
from cli.client.source import read_endpoint
from cli.console import CommandError, UsageError

URL = "http://server.example/v1"
LINE = '{"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": {}}\n'
OUTPUT = b'{"custom_id": "1"}\n' * 1000


def batch(status: str = "completed", **changes: Any) -> dict[str, Any]:
    counts = {"total": 2, "completed": 2, "failed": 0}
    return {"id": "batch_1", "status": status, "request_counts": counts} | changes


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def job(tmp_path: Path) -> BatchRun:
    source = tmp_path / "in.jsonl"
    source.write_text(LINE)
    return BatchRun(
        source=source,
        output=tmp_path / "out.jsonl",
        errors=tmp_path / "err.jsonl",
        poll_seconds=0.001,
    )


class Scripted:
    """Answers as scripted, path by path; the last answer of a path is repeated."""

    def __init__(self, **script: list[Any]) -> None:
        self.requests: list[httpx.Request] = []
        self._script = {
            "upload": [httpx.Response(200, json={"id": "file-1"})],
            "list": [httpx.Response(200, json={"data": []})],
            "create": [httpx.Response(200, json=batch("validating"))],
            "retrieve": [httpx.Response(200, json=batch(output_file_id="file-2"))],
            "content": [httpx.Response(200, content=OUTPUT)],
        } | script

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        answers = self._script[self.step(request)]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = answer(request)
        assert isinstance(answer, httpx.Response)
        return answer

    @staticmethod
    def step(request: httpx.Request) -> str:
        path = request.url.path
        if path.endswith("/content"):
            return "content"
        if path.endswith("/files"):
            return "upload"
        if path.endswith("/batches"):
            return "create" if request.method == "POST" else "list"
        return "retrieve"

    def steps(self) -> list[str]:
        return [self.step(request) for request in self.requests]

    async def run(self, job: BatchRun) -> None:
        transport = httpx.MockTransport(self)
        async with BatchClient(URL, "key", transport=transport) as client:
            await job.go(client, Silence())


async def test_the_whole_way(job: BatchRun) -> None:
    job.metadata = {"night": "one"}
    server = Scripted()
    await server.run(job)
    assert server.steps() == ["upload", "create", "retrieve", "content"]
    upload, create = server.requests[:2]
    assert b'name="purpose"\r\n\r\nbatch\r\n' in upload.content
    assert LINE.encode() in upload.content
    assert upload.headers["authorization"] == "Bearer key"
    assert json.loads(create.content) == {
        "input_file_id": "file-1",
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
        "metadata": {"night": "one"},
    }
    assert job.output.read_bytes() == OUTPUT
    assert sorted(path.name for path in job.output.parent.iterdir()) == ["in.jsonl", "out.jsonl"]


async def test_an_outage_does_not_end_the_watch(job: BatchRun) -> None:
    trouble = [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.Response(503)] * 4
    server = Scripted(retrieve=[*trouble, httpx.Response(200, json=batch())])
    await server.run(job)
    assert server.steps().count("retrieve") == 13


async def test_a_batch_is_never_created_twice(job: BatchRun) -> None:
    server = Scripted(create=[httpx.ReadTimeout("no answer")])
    with pytest.raises(CommandError, match="does not answer"):
        await server.run(job)
    assert server.steps().count("create") == 1


async def test_a_creation_that_surely_failed_is_tried_again(job: BatchRun) -> None:
    busy = httpx.Response(429, headers={"retry-after-ms": "1"})
    server = Scripted(
        create=[httpx.ConnectError("refused"), busy, httpx.Response(200, json=batch("validating"))]
    )
    await server.run(job)
    assert server.steps().count("create") == 3


OTHERS = batch(input_file_id="file-0") | {"id": "batch_0"}


async def test_a_creation_in_doubt_is_looked_for(job: BatchRun) -> None:
    made = batch("validating", input_file_id="file-1")
    server = Scripted(
        create=[httpx.Response(503)], list=[httpx.Response(200, json={"data": [OTHERS, made]})]
    )
    await server.run(job)
    assert job.batch_id == "batch_1"
    assert server.steps() == ["upload", "create", "list", "retrieve", "content"]


async def test_a_creation_in_doubt_that_is_not_there_is_tried_again(job: BatchRun) -> None:
    server = Scripted(
        create=[httpx.Response(503), httpx.Response(200, json=batch("validating"))],
        list=[httpx.Response(503), httpx.Response(200, json={"data": [OTHERS]})],
    )
    await server.run(job)
    assert server.steps()[:5] == ["upload", "create", "list", "list", "create"]


async def test_a_refusal_is_in_the_servers_words(job: BatchRun) -> None:
    body = {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}
    server = Scripted(upload=[httpx.Response(401, json=body)])
    with pytest.raises(CommandError) as caught:
        await server.run(job)
    assert "The server said 401: Incorrect API key provided." in str(caught.value)
    assert "--api-key" in str(caught.value)
    assert server.steps() == ["upload"]


class Broken(httpx.AsyncByteStream):
    """A body that ends in the middle."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield OUTPUT[:100]
        await asyncio.sleep(0)
        raise httpx.ReadError("cut")


def from_where_it_broke(request: httpx.Request) -> httpx.Response:
    assert request.headers["range"] == "bytes=100-"
    return httpx.Response(206, content=OUTPUT[100:])


def from_the_start(request: httpx.Request) -> httpx.Response:
    assert "range" in request.headers
    return httpx.Response(200, content=OUTPUT)


@pytest.mark.parametrize("second", [from_where_it_broke, from_the_start])
async def test_a_broken_download_is_continued(
    job: BatchRun, second: Callable[[httpx.Request], httpx.Response]
) -> None:
    await Scripted(content=[httpx.Response(200, stream=Broken()), second]).run(job)
    assert job.output.read_bytes() == OUTPUT


async def test_a_download_that_fails_leaves_an_earlier_result_alone(job: BatchRun) -> None:
    job.output.write_text("from last night\n")
    server = Scripted(content=[httpx.Response(404, json={"error": {"message": "No such File"}})])
    with pytest.raises(CommandError, match="No such File"):
        await server.run(job)
    assert job.output.read_text() == "from last night\n"
    assert sorted(path.name for path in job.output.parent.iterdir()) == ["in.jsonl", "out.jsonl"]


async def test_an_earlier_runs_errors_do_not_stay(job: BatchRun) -> None:
    job.errors.write_text("from last night\n")
    await Scripted().run(job)
    assert not job.errors.exists()


async def test_a_batch_that_fails_its_check_leaves_earlier_results_alone(job: BatchRun) -> None:
    job.output.write_text("from last night\n")
    await Scripted(retrieve=[httpx.Response(200, json=batch("failed"))]).run(job)
    assert job.output.read_text() == "from last night\n"


async def test_results_that_cannot_be_kept_are_noticed_before_anything_is_sent(
    job: BatchRun,
) -> None:
    job.output = job.output.parent / "no such folder" / "out.jsonl"
    server = Scripted()
    with pytest.raises(UsageError, match="Cannot write"):
        await server.run(job)
    assert not server.requests


@pytest.mark.parametrize("url", ["nonsense", "ftp://server.example/v1", "http://"])
async def test_what_is_no_base_url_is_a_usage_error(job: BatchRun, url: str) -> None:
    async with BatchClient(url, None) as client:
        with pytest.raises(UsageError, match="is not a base URL"):
            await job.go(client, Silence())


async def test_a_key_from_a_file_ends_in_a_newline(job: BatchRun) -> None:
    server = Scripted()
    async with BatchClient(URL, " key\r\n", transport=httpx.MockTransport(server)) as client:
        await job.go(client, Silence())
    assert {each.headers["authorization"] for each in server.requests} == {"Bearer key"}


@pytest.mark.parametrize("key", ["sec\nret", "sécret", "sec\x00ret"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(UsageError, match="visible ASCII characters only") as caught:
        BatchClient(URL, key)
    assert "ret" not in str(caught.value)


@pytest.mark.parametrize("start", ["", "\n\r\n", "\ufeff"])
def test_the_endpoint_is_that_of_the_first_request(tmp_path: Path, start: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(start + LINE, encoding="utf-8")
    assert read_endpoint(source) == "/v1/embeddings"


@pytest.mark.parametrize("text", ["", "\n\n", "{}", "[1]", "not json", '{"url": 7}', "null"])
def test_a_file_without_a_first_request_is_refused(tmp_path: Path, text: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(text)
    with pytest.raises(UsageError, match=r"in\.jsonl"):
        read_endpoint(source)


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        (batch(), 0),
        (batch(request_counts={"total": 2, "completed": 1, "failed": 1}), 3),
        (batch("failed"), 4),
        (batch("expired"), 5),
        (batch("cancelled"), 6),
    ],
)
def test_the_exit_status_tells_the_outcome(ended: dict[str, Any], status: int) -> None:
    assert exit_status(ended) == status


def test_a_failed_batch_is_explained_line_by_line(job: BatchRun) -> None:
    entries = [{"line": n, "message": f"bad {n}"} for n in range(1, 31)]
    job.name, job.endpoint = "in.jsonl", "/v1/embeddings"
    job.batch = batch("failed", errors={"data": [{"line": None, "message": "all bad"}, *entries]})
    text = summary(job)
    assert "nothing was run" in text
    assert "\n  all bad\n  line 1: bad 1\n" in text
    assert "… and 11 more.\n" in text
    assert text.endswith("overnight validate in.jsonl --endpoint /v1/embeddings")


def test_faults_of_one_kind_are_told_once(job: BatchRun) -> None:
    entries = [{"line": n, "message": "bad" if n != 3 else "worse"} for n in (1, 2, 3, 5)]
    job.batch = batch("failed", errors={"data": entries})
    told = "  line 1 and 1 more after it: bad\n  line 3: worse\n  line 5: bad"
    assert told in summary(job)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            {"response": {"status_code": 400, "body": {"error": {"message": "Too long"}}}},
            "r-1: 400 Too long",
        ),
        ({"error": {"code": "batch_expired", "message": "Late"}}, "r-1: batch_expired Late"),
        ({"response": {"status_code": 502, "body": "<html>"}}, None),
    ],
)
def test_the_first_error_is_quoted(job: BatchRun, line: dict[str, Any], said: str | None) -> None:
    whole = {"id": "x", "custom_id": "r-1", "response": None, "error": None} | line
    job.errors.write_text(json.dumps(whole) + "\n")
    assert first_error(job.errors) == said


def test_the_key_is_chosen_for_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OVERNIGHT_DATA_DIR", str(tmp_path))
    assert choose_key("given", None) == "given"
    (tmp_path / "api-key").write_text("kept\n")
    # Ours, when nothing says otherwise: an OpenAI key in the environment is not for it.
    assert choose_key("given", None) == "kept"
    assert choose_key(None, "http://127.0.0.1:9/v1") == "kept"
    assert choose_key("given", "http://127.0.0.1:9/v1") == "given"
    # Never the kept one to somebody else's server.
    assert choose_key(None, "https://api.openai.com/v1") is None
    monkeypatch.setenv("OVERNIGHT_API_KEY", "first, second")
    assert choose_key(None, None) == "first"


def test_the_hint_repeats_what_is_not_usual() -> None:
    [job] = plan([Path("a b.jsonl")], ["batch_1"], None, None)
    here, there = Server(LOCAL_BASE_URL, None), Server(URL, None, ("--url", URL))
    assert "overnight run 'a b.jsonl' --resume batch_1\n" in how_to_go_on([job], here)
    job.output, job.errors = Path("out.jsonl"), Path("err.jsonl")
    assert f"batch_1 --url {URL} -o out.jsonl -e err.jsonl\n" in how_to_go_on([job], there)
    assert f"overnight cancel batch_1 --url {URL}" in how_to_go_on([job], there)


def test_several_files_are_taken_up_by_one_command() -> None:
    jobs = plan([Path("a.jsonl"), Path("b.jsonl"), Path("c.jsonl")], [], None, None)
    here = Server(LOCAL_BASE_URL, None)
    assert how_to_go_on(jobs, here) == "Stopped. No batch was created."
    jobs[0].batch_id, jobs[1].batch_id = "batch_1", "batch_2"
    said = how_to_go_on(jobs, here)
    assert "overnight run a.jsonl b.jsonl --resume batch_1 --resume batch_2\n" in said
    assert said.endswith("overnight run c.jsonl")


def test_lines_tell_counts_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines(every_seconds=0) as lines:
        lines.show_batch(batch("validating", request_counts=None))
        for done in (0, 10, 20):
            counts = {"total": 100, "completed": done, "failed": 1}
            lines.show_batch(batch("in_progress", request_counts=counts))
        lines.show_batch(batch("finalizing"))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "Checking the file …"
    assert "21 of 100 done, 1 failed" in said[-2]
    assert "s left" in said[-2]
    assert said[-1] == "Writing the results …"
