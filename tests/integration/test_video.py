"""Calls for videos: begun once, asked for until they have ended, and what is recorded then."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from cli.simulator import SimulatedServer
from models import Batch
from models.lifecycle import BatchStatus
from models.lines import Endpoint
from models.queries import advance
from tests.factories import input_line, json_lines
from tests.fixtures.runtime import (
    Reply,
    Request,
    ScriptedServer,
    in_flight,
    results_of,
    run_shards,
    shards_of,
    started_batch,
    wait_until,
)
from tests.running import finished, with_settings
from worker import video as video_module
from worker.runtime import Runtime

SOON = {"openai-poll-after-ms": "100"}
QUEUED = Reply(body=b'{"id":"video_1","object":"video","status":"queued"}', headers=SOON)
IN_PROGRESS = Reply(body=b'{"id":"video_1","object":"video","status":"in_progress"}', headers=SOON)
COMPLETED = Reply(body=b'{"id":"video_1","object":"video","status":"completed"}')
FAILED = Reply(body=b'{"id":"video_1","status":"failed","error":{"code":"c","message":"m"}}')


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for without a wait by the server is asked for soon."""
    monkeypatch.setattr(video_module, "_FIRST_POLL_SECONDS", 0.01)
    monkeypatch.setattr(video_module, "_POLL_CAP_SECONDS", 0.02)
    monkeypatch.setattr(video_module, "_SHORTEST_POLL_SECONDS", 0.001)


async def started(runtime: Runtime, count: int = 1) -> Batch:
    lines = [
        input_line(number, url="/v1/videos", body={"model": "m", "prompt": f"question {number}"})
        for number in range(1, count + 1)
    ]
    return await started_batch(runtime, json_lines(*lines), endpoint=Endpoint.VIDEOS.value)


async def run_one(runtime: Runtime) -> dict[str, Any]:
    return (await finished(runtime, await started(runtime)))[1]


def begun(server: ScriptedServer) -> list[Request]:
    """The requests that begin a video; the others ask for one."""
    return [request for request in server.requests if request.path == "/v1/videos"]


async def test_the_video_that_has_ended_is_what_is_recorded(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    first = Reply(body=QUEUED.body, headers=SOON | {"x-request-id": "req_began"})
    last = Reply(body=COMPLETED.body, headers={"x-request-id": "req_polled"})
    scripted.replies = [first, QUEUED, IN_PROGRESS, last]

    line = await run_one(scripted_runtime)

    assert line["error"] is None
    assert line["response"] == {
        "status_code": 200,
        "request_id": "req_began",
        "body": json.loads(COMPLETED.body),
    }
    assert [request.path for request in scripted.requests] == [
        "/v1/videos",
        *["/v1/videos/video_1"] * 3,
    ]
    for poll in scripted.requests[1:]:
        assert poll.headers["authorization"] == "Bearer upstream-own-key"
        assert "idempotency-key" not in poll.headers
        assert poll.body == b""


@pytest.mark.parametrize("status", ["queued", "in_progress", "pending", "processing", "running"])
async def test_what_is_waited_for(
    scripted_runtime: Runtime, scripted: ScriptedServer, status: str
) -> None:
    body = json.dumps({"id": "video_1", "status": status}).encode()
    scripted.replies = [Reply(body=body, headers=SOON), COMPLETED]
    line = await run_one(scripted_runtime)
    assert line["response"]["body"]["status"] == "completed"
    assert len(scripted.requests) == 2


@pytest.mark.parametrize(
    "body",
    [
        COMPLETED.body,
        FAILED.body,
        b'{"id": "video_1", "status": "cancelled"}',
        b'{"id": "video_1", "status": 5}',
        b'{"id": "video_1", "status": {"queued": []}}',
        b'{"data": [{"url": "http://models/video.mp4"}]}',
    ],
)
async def test_what_has_ended_at_once_is_not_asked_for(
    scripted_runtime: Runtime, scripted: ScriptedServer, body: bytes
) -> None:
    scripted.replies = [Reply(body=body)]
    line = await run_one(scripted_runtime)
    assert line["response"]["body"] == json.loads(body)
    assert len(scripted.requests) == 1


async def test_a_failed_video_is_an_answer(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    """It is what a client would retrieve: a 200 for the output file."""
    scripted.replies = [QUEUED, FAILED]
    batch = await started(scripted_runtime)
    results = await finished(scripted_runtime, batch)
    assert results[1]["response"]["status_code"] == 200
    assert results[1]["response"]["body"]["status"] == "failed"
    [shard] = await shards_of(scripted_runtime.database, batch)
    assert (shard.succeeded, shard.failed) == (1, 0)


async def test_an_answer_with_half_an_emoji_is_read_too(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    body = rb'{"prompt": "\ud83d", "id": "video_1", "status": "queued"}'
    scripted.replies = [Reply(body=body, headers=SOON), COMPLETED]
    line = await run_one(scripted_runtime)
    assert line["response"]["body"]["status"] == "completed"


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "trouble",
    [
        *(Reply(status) for status in (408, 409, 429, 500, 502, 503, 504)),
        Reply(503, headers={"retry-after-ms": "20"}),
        Reply(400, headers={"x-should-retry": "true"}),
        Reply(body=b"{broken"),
        Reply(raw=HEAD + b'content-length: 100\r\n\r\n{"half":', closes=True),
        Reply(raw=b"", closes=True),
    ],
    ids=lambda reply: f"{reply.status}-{(reply.raw or reply.body)[-12:]!r}",
)
async def test_a_poll_that_fails_is_made_again_and_begins_no_second_video(
    scripted_runtime: Runtime, scripted: ScriptedServer, trouble: Reply
) -> None:
    # More than the tries after which a call is given up.
    most = scripted_runtime.run_settings.line_max_tries
    scripted.replies = [QUEUED, *[trouble] * (most + 2), IN_PROGRESS, trouble, COMPLETED]
    line = await run_one(scripted_runtime)
    assert line["response"]["body"]["status"] == "completed"
    assert len(begun(scripted)) == 1
    assert len(scripted.requests) == most + 6


async def test_a_video_that_the_server_has_forgotten_is_begun_again(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    second = Reply(body=QUEUED.body.replace(b"video_1", b"video_2"), headers=SOON)
    scripted.replies = [QUEUED, Reply(404), second, COMPLETED]
    line = await run_one(scripted_runtime)
    assert line["response"]["body"]["status"] == "completed"
    assert [request.path for request in scripted.requests] == [
        "/v1/videos",
        "/v1/videos/video_1",
        "/v1/videos",
        "/v1/videos/video_2",
    ]
    keys = {request.headers["idempotency-key"] for request in begun(scripted)}
    assert keys == {line["id"]}


async def test_a_server_that_forgets_every_video_is_not_paid_for_ever(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    """Though no line has ever succeeded there, as in an outage: it is seen to be well."""

    async def script(request: Request) -> Reply:
        is_new = request.path == "/v1/videos"
        return QUEUED if is_new else Reply(404, b'{"error": {"message": "no such video"}}')

    scripted.script = script
    runtime = with_settings(scripted_runtime, line_max_tries=3)
    line = await run_one(runtime)
    assert line["response"]["status_code"] == 404
    assert line["response"]["body"] == {"error": {"message": "no such video"}}
    assert len(begun(scripted)) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 405])
async def test_a_poll_that_is_refused_is_final(
    scripted_runtime: Runtime, scripted: ScriptedServer, status: int
) -> None:
    scripted.replies = [QUEUED, Reply(status, b'{"error": {"message": "no"}}')]
    line = await run_one(scripted_runtime)
    assert line["response"]["status_code"] == status
    assert line["response"]["body"] == {"error": {"message": "no"}}
    assert len(begun(scripted)) == 1


@pytest.mark.parametrize(
    "video_id",
    [
        None,
        "",
        5,
        ["video_1"],
        ".",
        "..",
        "../files",
        "a/b",
        "a\\b",
        "%2e%2e",
        "a?b",
        "a#b",
        "a b",
        "a\r\nx: y",
        "http://elsewhere/",
        "vidéo",
        "a\0",
        "x" * 1001,
        "x" * 10_000,
    ],
)
async def test_no_id_becomes_another_path(
    scripted_runtime: Runtime, scripted: ScriptedServer, video_id: object
) -> None:
    scripted.replies = [Reply(body=json.dumps({"id": video_id, "status": "queued"}).encode())]
    line = await run_one(scripted_runtime)
    assert len(scripted.requests) == 1
    assert line["response"] is None
    assert line["error"]["code"] == "upstream_broken_answer"


@pytest.mark.parametrize(
    "video_id", ["video_1", "task-7f:2", "dmlkZW8=", "a.b~c@d+e", "video..1", "x" * 1000]
)
async def test_ids_of_other_servers(
    scripted_runtime: Runtime, scripted: ScriptedServer, video_id: str
) -> None:
    begin = Reply(body=json.dumps({"id": video_id, "status": "queued"}).encode(), headers=SOON)
    scripted.replies = [begin, COMPLETED]
    await run_one(scripted_runtime)
    assert unquoted(scripted.requests[1].path) == f"/v1/videos/{video_id}"


def unquoted(path: str) -> str:
    assert "%2F" not in path
    return path.replace("%3A", ":").replace("%3D", "=").replace("%40", "@").replace("%2B", "+")


async def test_a_video_that_takes_too_long_is_given_up(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    async def script(_: Request) -> Reply:
        return IN_PROGRESS

    scripted.script = script
    line = await run_one(with_settings(scripted_runtime, video_timeout_seconds=0.3))
    assert line["response"] is None
    assert line["error"] == {
        "code": "upstream_timeout",
        "message": "The model server did not finish the video in time.",
    }
    assert len(begun(scripted)) == 1
    assert len(scripted.requests) > 2


async def test_an_outage_that_outlasts_a_video_fails_no_line(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    async def script(request: Request) -> Reply:
        if request.path != "/v1/videos":
            return COMPLETED if len(begun(scripted)) > 3 else Reply(502)
        return QUEUED

    scripted.script = script
    runtime = with_settings(scripted_runtime, video_timeout_seconds=0.02, line_max_tries=1)
    line = await run_one(runtime)
    assert line["response"]["body"]["status"] == "completed"
    assert len(begun(scripted)) == 4


class Studio:
    """A server whose videos are in progress until it is told to complete them."""

    def __init__(self, server: ScriptedServer) -> None:
        self.is_open = False
        self._server = server
        server.script = self._answer

    @property
    def polled(self) -> set[str]:
        """The videos that have been asked for."""
        return {request.path for request in self._server.requests} - {"/v1/videos"}

    async def _answer(self, request: Request) -> Reply:
        if request.path == "/v1/videos":
            name = json.loads(request.body)["prompt"].replace(" ", "-")
            body = {"id": name, "status": "queued"}
        else:
            status = "completed" if self.is_open else "in_progress"
            body = {"id": request.path.rpartition("/")[2], "status": status}
        return Reply(body=json.dumps(body).encode(), headers={"retry-after-ms": "10"})


async def test_a_stopped_worker_lets_its_videos_end_and_begins_none(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    studio = Studio(scripted)
    runtime = with_settings(scripted_runtime, max_in_flight=5)
    batch = await started(runtime, 7)
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: len(studio.polled) == 5)
    runtime.draining.set()
    studio.is_open = True
    await asyncio.wait_for(running, timeout=10)
    assert len(begun(scripted)) == 5
    assert len(await results_of(runtime.database, batch)) == 5


async def test_videos_that_outlast_the_drain_time_are_left_to_another_worker(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    studio = Studio(scripted)
    runtime = with_settings(scripted_runtime, drain_seconds=0.1)
    batch = await started(runtime, 2)
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: len(studio.polled) == 2)
    runtime.draining.set()
    await asyncio.wait_for(running, timeout=10)
    assert in_flight(runtime) == 0
    assert await results_of(runtime.database, batch) == {}
    [shard] = await shards_of(runtime.database, batch)
    assert (shard.state, shard.lease_owner) == ("queued", None)

    studio.is_open = True
    runtime.draining.clear()
    results = await finished(runtime, batch)
    assert {line["response"]["body"]["status"] for line in results.values()} == {"completed"}
    # The same videos by the same names, for a server that knows them.
    keys = [request.headers["idempotency-key"] for request in begun(scripted)]
    assert sorted(keys) == sorted([line["id"] for line in results.values()] * 2)


async def test_a_cancel_gives_up_videos_after_the_grace_period(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    studio = Studio(scripted)
    runtime = with_settings(scripted_runtime, cancel_grace_seconds=0.1)
    batch = await started(runtime, 2)
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: len(studio.polled) == 2)
    async with runtime.database.begin() as session:
        assert await advance(session, batch.pk, BatchStatus.CANCELLING)
    await asyncio.wait_for(running, timeout=10)
    assert await results_of(runtime.database, batch) == {}
    asked = len(scripted.requests)
    await asyncio.sleep(0)
    assert len(scripted.requests) == asked


async def test_a_video_in_the_making_is_no_stall(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    """Its first try failed, another batch waits: yet the server is at work on it."""
    studio = Studio(scripted)
    answer = scripted.script
    assert answer is not None

    async def busy_at_first(request: Request) -> Reply:
        return Reply(429) if len(begun(scripted)) <= 1 else await answer(request)

    scripted.script = busy_at_first
    runtime = with_settings(scripted_runtime, stall_seconds=0.05)
    batch = await started(runtime)
    running = asyncio.create_task(run_shards(runtime))
    await wait_until(lambda: len(scripted.requests) > 40)
    assert (await shards_of(runtime.database, batch))[0].claims == 1
    studio.is_open = True
    await asyncio.wait_for(running, timeout=10)
    assert len(await results_of(runtime.database, batch)) == 1
    assert len(begun(scripted)) == 2


async def test_the_simulated_server_s_videos(
    runtime: Runtime, model_server: SimulatedServer
) -> None:
    model_server.settings.video_seconds = 0.1
    model_server.settings.video_fail_marker = '"question 3"'
    model_server.settings.poll_error_rate = 0.3
    batch = await started(runtime, 7)
    await asyncio.gather(*(run_shards(runtime) for _ in range(2)))
    results = await results_of(runtime.database, batch)
    statuses = {
        number: line["response"]["body"]["status"] for number, line in sorted(results.items())
    }
    assert statuses == dict.fromkeys(range(1, 8), "completed") | {3: "failed"}
    assert model_server.stats().calls == 7


Wait = Callable[[int, float | None], float]


def test_waits_grow_and_are_never_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    wait: Wait = video_module._wait_seconds
    for polls, longest in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (500, 10)]:
        assert longest / 2 <= wait(polls, None) <= longest
    assert 30 <= wait(1, 30) <= 33
    assert wait(1, 0.001) == 0.1
