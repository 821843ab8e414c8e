"""Several model servers: each line goes where its model is, from validating to the output files."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from models import Batch
from models.database import Database
from models.lifecycle import BatchStatus
from models.lines import Endpoint
from models.settings import UpstreamSettings
from models.upstreams import Upstreams
from tests.factories import input_line, json_lines, make_batch, make_file
from tests.fixtures.runtime import (
    Reply,
    Request,
    ScriptedServer,
    all_lines_of,
    end_dispatchers,
    in_flight,
    make_runtime,
    reload,
    results_of,
    run_shards,
    run_to_end,
    started_batch,
    upstream_settings_for,
    wait_until,
)
from tests.running import GOOD, with_settings
from worker.dispatch import dispatcher_of
from worker.router import Router
from worker.runtime import NeighboursByModel, Runtime
from worker.stages.validate import validate_batch
from worker.upstream import Upstream

MODELS = """
[models.small]
upstream = "left"
aliases = ["tiny", "gpt-4o-mini"]

[models.big]
upstream = "right"
upstream_model = "org/big-1"
aliases = ["huge"]
"""


@dataclass
class Setup:
    """A worker in front of two scripted servers, `left` and `right`."""

    runtime: Runtime
    left: ScriptedServer
    right: ScriptedServer
    folder: Path

    def read(self, text: str = MODELS, *, left: str = "", right: str = "") -> Upstreams:
        """The servers of a file; `left` and `right` are further lines of their tables."""
        top = text if text.startswith("default") else f"\n{text}"
        default, _, models = top.partition("\n")
        path = self.folder / "overnight.toml"
        path.write_text(
            f'{default}\n[upstreams.left]\nurl = "{self.left.url}"\nmetrics = "off"\n{left}\n'
            f'[upstreams.right]\nurl = "{self.right.url}"\nmetrics = "off"\n{right}\n{models}'
        )
        return UpstreamSettings(config=path, call_timeout_seconds=10).upstreams()

    def use(self, upstreams: Upstreams) -> None:
        """Start the worker again with these servers."""
        settings = self.runtime.run_settings
        self.runtime = replace(
            self.runtime,
            router=Router.connect(upstreams),
            neighbours=NeighboursByModel(settings, upstreams),
        )

    async def failed(self, *lines: object, endpoint: str = "/v1/chat/completions") -> list[Any]:
        """The errors of a batch of these lines, which must fail validation."""
        database = self.runtime.database
        file = await make_file(database, json_lines(*lines))
        batch = await make_batch(database, input_file_id=file.id, endpoint=endpoint)
        await validate_batch(self.runtime, batch.pk)
        batch = await reload(database, batch)
        assert batch.status == BatchStatus.FAILED
        assert self.left.requests == self.right.requests == []
        assert batch.errors is not None
        return list(batch.errors)

    async def ran(self, *lines: object, **values: Any) -> dict[str, dict[str, Any]]:
        """The output lines of a batch that must complete, by custom id."""
        batch = await started_batch(self.runtime, json_lines(*lines), **values)
        batch = await run_to_end(self.runtime, batch)
        assert batch.status == BatchStatus.COMPLETED
        assert in_flight(self.runtime) == 0
        return await all_lines_of(self.runtime.database, batch)


@pytest.fixture
async def setup(database: Database, tmp_path: Path) -> AsyncIterator[Setup]:
    left, right = ScriptedServer(), ScriptedServer()
    await left.start()
    await right.start()
    runtime = make_runtime(database, Upstream.connect(upstream_settings_for(left.url)))
    setup = Setup(runtime, left, right, tmp_path)
    yield setup
    await end_dispatchers()
    await setup.runtime.router.aclose()
    await left.stop()
    await right.stop()


def line(number: int, model: str | None, **members: Any) -> dict[str, Any]:
    """An input line for a model."""
    body = {"model": model, "messages": [{"role": "user", "content": f"question {number}"}]}
    return input_line(number, body={k: v for k, v in body.items() if v is not None} | members)


def models_of(server: ScriptedServer) -> list[str]:
    return [json.loads(request.body)["model"] for request in server.requests]


async def test_each_model_s_lines_go_to_its_server_with_its_key(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEFT_KEY", "left-secret")
    (setup.folder / "right-key").write_text("right-secret\n")
    setup.use(
        setup.read(
            left='api_key_env = "LEFT_KEY"\nheaders = { x-team = "night" }',
            right='api_key_file = "right-key"',
        )
    )
    await setup.ran(line(1, "small"), line(2, "small"))
    await setup.ran(line(1, "big"))
    assert models_of(setup.left) == ["small", "small"]
    assert models_of(setup.right) == ["org/big-1"]
    for request in setup.left.requests:
        assert request.headers["authorization"] == "Bearer left-secret"
        assert request.headers["x-team"] == "night"
    [request] = setup.right.requests
    assert request.headers["authorization"] == "Bearer right-secret"
    assert "x-team" not in request.headers
    assert request.headers["host"] == setup.right.url.split("/")[2]


async def test_a_line_goes_as_it_was_written_unless_its_server_has_another_name(
    setup: Setup,
) -> None:
    setup.use(setup.read())
    content = (
        b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",'
        b' "body": {"n":1.0000000000000000000001,"model":"%b" , "messages":[{"model":"x"}]}}\n'
    )
    for model in (b"small", b"gpt-4o-mini", b"huge"):
        batch = await started_batch(setup.runtime, content % model)
        await run_to_end(setup.runtime, batch)
    assert [request.body for request in setup.left.requests] == [
        b'{"n":1.0000000000000000000001,"model":"small" , "messages":[{"model":"x"}]}',
        b'{"n": 1.0000000000000000000001, "model": "small", "messages": [{"model":"x"}]}',
    ]
    assert [request.body for request in setup.right.requests] == [
        b'{"n": 1.0000000000000000000001, "model": "org/big-1", "messages": [{"model":"x"}]}'
    ]


async def test_the_output_is_the_server_s_own(setup: Setup) -> None:
    setup.use(setup.read())
    setup.right.replies = [Reply(body=b'{"object":"chat.completion", "model":"org/big-1"}')]
    results = await setup.ran(line(1, "huge"))
    assert results["request-1"]["response"]["body"]["model"] == "org/big-1"


async def test_without_a_default_every_line_of_an_unknown_model_is_listed(setup: Setup) -> None:
    setup.use(setup.read())
    message = "The provided model 'X' is not supported by the Batch API."
    assert await setup.failed(line(1, "X"), line(2, "X")) == [
        {"code": "model_not_found", "message": message, "param": "body.model", "line": number}
        for number in (1, 2)
    ]


async def test_a_line_s_other_fault_comes_first_and_all_lines_are_listed(setup: Setup) -> None:
    setup.use(setup.read())
    errors = await setup.failed(line(1, "X"), {"custom_id": "b"}, line(3, "small"), line(4, "X"))
    assert [(error["line"], error["code"]) for error in errors] == [
        (1, "model_not_found"),
        (2, "missing_required_parameter"),
        (3, "mismatched_model"),
        (4, "model_not_found"),
    ]


async def test_with_a_default_an_unknown_model_goes_there(setup: Setup) -> None:
    setup.use(setup.read(f'default = "right"\n{MODELS}'))
    await setup.ran(line(1, "X"))
    assert models_of(setup.right) == ["X"]
    assert setup.left.requests == []


async def test_an_endpoint_that_the_server_may_not_be_called_at(setup: Setup) -> None:
    setup.use(setup.read(left='endpoints = ["/v1/embeddings"]'))
    assert await setup.failed(line(1, "tiny")) == [
        {
            "code": "invalid_value",
            "message": "Invalid value: '/v1/chat/completions'. Supported values for the model 'tiny'"
            " are: '/v1/embeddings'.",
            "param": "url",
            "line": 1,
        }
    ]
    body = {"model": "tiny", "input": "x"}
    await setup.ran(input_line(1, url="/v1/embeddings", body=body), endpoint="/v1/embeddings")
    assert [request.path for request in setup.left.requests] == ["/v1/embeddings"]


async def test_lines_without_a_model_need_a_default(setup: Setup) -> None:
    setup.use(setup.read())
    moderation = "/v1/moderations"
    lines = [input_line(number, url=moderation, body={"input": "x"}) for number in (1, 2)]
    assert await setup.failed(*lines, endpoint=moderation) == [
        {
            "code": "invalid_request",
            "message": "Model parameter is required.",
            "param": "body.model",
            "line": number,
        }
        for number in (1, 2)
    ]
    setup.use(setup.read(f'default = "left"\n{MODELS}'))
    await setup.ran(*lines, endpoint=moderation)
    assert [request.body for request in setup.left.requests] == [b'{"input": "x"}'] * 2


async def test_a_model_that_has_gone_from_the_file_is_refused_and_not_tried_again(
    setup: Setup,
) -> None:
    setup.use(setup.read())
    batch = await started_batch(setup.runtime, json_lines(line(1, "big"), line(2, "big")))
    setup.use(setup.read('\n[models.small]\nupstream = "left"'))
    batch = await run_to_end(setup.runtime, batch)
    assert (batch.status, batch.completed, batch.failed) == (BatchStatus.COMPLETED, 0, 2)
    assert setup.left.requests == setup.right.requests == []
    results = await all_lines_of(setup.runtime.database, batch)
    for result in results.values():
        assert result["response"] is None
        assert result["error"] == {
            "code": "model_not_found",
            "message": "The provided model 'big' is not supported by the Batch API.",
        }


async def test_each_server_has_its_own_time_limit(setup: Setup) -> None:
    """The one that is too slow for its own is called again; the other may take as long."""
    setup.use(setup.read(left="call_timeout_seconds = 0.2"))
    slow = asyncio.Event()

    async def late(_: Request) -> Reply:
        await slow.wait()
        return Reply(body=GOOD)

    setup.left.script = setup.right.script = late
    batches = [
        await started_batch(setup.runtime, json_lines(line(1, model))) for model in ("small", "big")
    ]
    running = [asyncio.create_task(run_shards(setup.runtime)) for _ in batches]
    await wait_until(lambda: len(setup.left.requests) >= 3)
    slow.set()
    await asyncio.wait_for(asyncio.gather(*running), timeout=20)
    assert len(setup.right.requests) == 1
    for batch in batches:
        assert await _recorded(setup, batch) == 1


async def test_evidence_lasts_as_long_as_the_model_s_own_server_may_take(setup: Setup) -> None:
    setup.use(setup.read(left="call_timeout_seconds = 1000"))
    tries = setup.runtime.run_settings.line_max_tries + 1
    fresh = {
        model: setup.runtime.neighbours[Endpoint.EMBEDDINGS, model].recent_seconds
        for model in ("small", "tiny", "big", "gone", None)
    }
    assert fresh == {
        "small": 1000 * tries,
        "tiny": 1000 * tries,
        "big": 600,
        "gone": 600,
        None: 600,
    }


async def test_a_server_that_answers_nothing_leaves_the_other_its_slots(setup: Setup) -> None:
    setup.use(setup.read())
    setup.runtime = with_settings(setup.runtime, max_in_flight=4)
    never = asyncio.Event()

    async def silent(_: Request) -> Reply:
        await never.wait()
        return Reply(body=GOOD)

    setup.left.script = silent
    stuck = await started_batch(
        setup.runtime, json_lines(*(line(n, "small") for n in range(1, 11)))
    )
    running = asyncio.create_task(run_shards(setup.runtime))
    await wait_until(lambda: len(setup.left.requests) == 3)
    batch = await started_batch(setup.runtime, json_lines(*(line(n, "big") for n in range(1, 6))))
    dispatcher_of(setup.runtime).wake()
    await wait_until(lambda: _has_recorded(setup, batch, 5))
    assert len(setup.left.requests) == 3
    never.set()
    await asyncio.wait_for(running, timeout=20)
    assert await _recorded(setup, stuck) == 10


async def test_a_server_that_answers_nothing_leaves_the_other_some_of_the_shards(
    setup: Setup,
) -> None:
    """However many of its shards wait, be they of models that nobody has named."""
    setup.use(setup.read(f'default = "left"\n{MODELS}', left="max_in_flight = 2"))
    setup.runtime = with_settings(setup.runtime, shards_per_worker=4)
    never = asyncio.Event()

    async def silent(_: Request) -> Reply:
        await never.wait()
        return Reply(body=GOOD)

    setup.left.script = silent
    stuck = [
        await started_batch(setup.runtime, json_lines(*(line(n, model) for n in range(1, 31))))
        for model in ("small", "elsewhere", "nowhere")
    ]
    running = asyncio.create_task(run_shards(setup.runtime))
    await wait_until(lambda: len(setup.left.requests) == 2)
    batch = await started_batch(setup.runtime, json_lines(*(line(n, "big") for n in range(1, 11))))
    dispatcher_of(setup.runtime).wake()
    await wait_until(lambda: _has_recorded(setup, batch, 10))
    assert len(setup.left.requests) == 2
    never.set()
    await asyncio.wait_for(running, timeout=30)
    assert [await _recorded(setup, each) for each in stuck] == [30, 30, 30]


async def test_no_more_calls_are_in_flight_at_a_server_than_it_takes(setup: Setup) -> None:
    setup.use(setup.read(left="max_in_flight = 2"))
    most = at_once = 0

    async def count(_: Request) -> Reply:
        nonlocal most, at_once
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        return Reply(body=GOOD)

    setup.left.script = count
    batch = await started_batch(setup.runtime, json_lines(*(line(n, "tiny") for n in range(1, 21))))
    await asyncio.wait_for(run_shards(setup.runtime), timeout=20)
    assert most == 2
    assert await _recorded(setup, batch) == 20


async def test_an_outage_of_one_server_holds_up_only_its_own_models(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    setup.use(setup.read())
    await setup.left.stop()
    waiting = await started_batch(setup.runtime, json_lines(line(1, "small")))
    running = asyncio.create_task(run_shards(setup.runtime))
    batch = await started_batch(setup.runtime, json_lines(line(1, "big")))
    dispatcher_of(setup.runtime).wake()
    await wait_until(lambda: _has_recorded(setup, batch, 1))
    assert await _recorded(setup, waiting) == 0
    await wait_until(lambda: "the model server left fails" in caplog.text)
    await setup.left.start()
    await asyncio.wait_for(running, timeout=20)
    assert await _recorded(setup, waiting) == 1
    assert "the model server right" not in caplog.text


async def _has_recorded(setup: Setup, batch: Batch, lines: int) -> bool:
    return await _recorded(setup, batch) == lines


async def _recorded(setup: Setup, batch: Batch) -> int:
    results = await results_of(setup.runtime.database, batch)
    return sum(result["response"]["status_code"] == 200 for result in results.values())
