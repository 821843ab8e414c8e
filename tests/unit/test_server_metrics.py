"""A model server's queue from its metrics page, and when that page is looked at."""

import asyncio
import logging

import aiohttp
import pytest
from pydantic import SecretStr

from models.upstreams import ModelServer, find_metrics_url
from tests.fixtures.upstream import serve_models
from worker.flow.server_metrics import (
    MetricsPage,
    NoQueuePublished,
    QueueGauge,
    QueueWatch,
    find_queue,
    parse_queues,
)

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="org/a {b}"} 3.0
vllm:num_requests_running{engine="1",model_name="org/a {b}"} 4.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="org/a {b}"} 2.0
vllm:num_requests_waiting{engine="1",model_name="org/a {b}"} 1e1
vllm:num_requests_waiting{engine="0",model_name="c"} 0.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="c",reason="capacity"} 99.0
vllm:request_queue_time_seconds_bucket{engine="0",le="0.3",model_name="c"} 5.0
"""
SGLANG = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="0"} 7.0
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="1"} 7.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="m",tp_rank="0"} 5.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",tp_rank="1"} 5.0
"""
LLAMA = """\
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 6
"""


@pytest.mark.parametrize(
    ("text", "queues"),
    [
        (VLLM, {"org/a {b}": QueueGauge(7, 12), "c": QueueGauge(0, 0)}),
        (SGLANG, {"m": QueueGauge(7, 5)}),
        (LLAMA, {"": QueueGauge(2, 6)}),
        (VLLM.replace("\n", "\r\n"), {"org/a {b}": QueueGauge(7, 12), "c": QueueGauge(0, 0)}),
        ('vllm:num_requests_waiting{model_name="a\\"b\\\\"} 4', {'a"b\\': QueueGauge(0, 4)}),
        ('vllm:num_requests_running{model_name="a"} 4', {}),
        ('vllm:num_requests_waiting{model_name="a"} NaN', {}),
        ('vllm:num_requests_waiting{model_name="a"} +Inf', {}),
        ('vllm:num_requests_waiting{model_name="a"} -1', {}),
        ('vllm:num_requests_waiting{model_name="a" 4', {}),
        ("vllm:num_requests_waiting{", {}),
        ("vllm:num_requests_waiting four", {}),
        ("vllm:num_requests_waiting ", {}),
        ("<html>vllm:num_requests_waiting 4</html>", {}),
        ("", {}),
    ],
)
def test_the_queues_of_a_page(text: str, queues: dict[str, QueueGauge]) -> None:
    assert parse_queues(text) == queues


def test_a_broken_line_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_queues(f"vllm:num_requests_waiting{{]\n{SGLANG}") == {"m": QueueGauge(7, 5)}
    assert not caplog.records


def test_which_queue_is_that_of_a_model() -> None:
    a, b = QueueGauge(1, 2), QueueGauge(3, 4)
    assert find_queue({"a": a, "b": b}, "b") == b
    assert find_queue({"a": a, "b": b}, "c") is None
    assert find_queue({"a": a, "b": b}, None) is None
    # A server has one queue for a model, its aliases and its adapters.
    assert find_queue({"a": a}, "adapter") == a
    assert find_queue({"": a}, None) == a
    assert find_queue({}, "a") is None


def server_at(url: str, metrics: str = "auto") -> ModelServer:
    return ModelServer(
        name="gpu",
        url=url,
        call_timeout_seconds=1,
        connect_timeout_seconds=1,
        max_response_bytes=1,
        api_key=SecretStr("sk-secret"),
        metrics_url=find_metrics_url(metrics, url),
    )


class Scripted:
    """A page that is what the test says, and a clock that it moves."""

    def __init__(self, metrics: str = "auto") -> None:
        self.now = 100.0
        self.looks = 0
        self.takes_seconds = 0.0
        self.page: str | Exception = VLLM
        self.watch = QueueWatch(
            server_at("http://gpu/v1", metrics), fetch=self.fetch, clock=lambda: self.now
        )

    async def fetch(self) -> str:
        self.looks += 1
        self.now += self.takes_seconds
        if isinstance(self.page, Exception):
            raise self.page
        return self.page

    async def use(self, seconds: float = 0.0) -> int | None:
        """Let time go by and ask as a lane does; what it is told afterwards."""
        self.now += seconds
        self.watch.touch()
        for _ in range(5):
            await asyncio.sleep(0)
        return self.watch.waiting("c")


async def test_it_looks_once_a_second_while_somebody_wants_to_know() -> None:
    scripted = Scripted()
    assert scripted.watch.waiting("c") is None
    assert await scripted.use() == 0
    assert scripted.watch.waiting("org/a {b}") == 12
    assert scripted.watch.waiting("unknown") is None
    assert [await scripted.use(0.25) for _ in range(8)] == [0] * 8
    assert scripted.looks == 3
    scripted.now += 3.5
    assert scripted.watch.waiting("c") is None
    assert scripted.looks == 3
    assert await scripted.use() == 0
    assert scripted.looks == 4


@pytest.mark.parametrize("page", ["<html>", NoQueuePublished()])
async def test_a_server_that_publishes_none_is_asked_once_a_minute(
    page: str | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="worker")
    scripted = Scripted()
    scripted.page = page
    assert await scripted.use() is None
    for _ in range(59):
        assert await scripted.use(1) is None
    assert scripted.looks == 1
    assert not caplog.records
    scripted.page = VLLM
    assert await scripted.use(1) == 0
    assert await scripted.use(1) == 0
    assert [each.message for each in caplog.records] == [
        "model server gpu publishes the length of its queue"
    ]


@pytest.mark.parametrize(
    "trouble", [TimeoutError(), aiohttp.ClientError(), OSError(), ValueError()]
)
async def test_a_server_that_is_away_is_asked_less_and_less(trouble: Exception) -> None:
    scripted = Scripted()
    assert await scripted.use() == 0
    scripted.page = trouble
    looked_at = []
    for second in range(1, 140):
        before = scripted.looks
        await scripted.use(1)
        if scripted.looks > before:
            looked_at.append(second)
    assert looked_at == [1, 3, 7, 15, 31, 63, 123]
    assert scripted.watch.waiting("c") is None
    scripted.page = VLLM
    assert await scripted.use(60) == 0
    assert await scripted.use(1) == 0
    assert scripted.looks == 10
    # Its next absence is a new one.
    scripted.page = trouble
    await scripted.use(1)
    scripted.page = VLLM
    await scripted.use(2)
    assert scripted.looks == 12


async def test_a_late_answer_is_as_old_as_its_question() -> None:
    scripted = Scripted()
    scripted.takes_seconds = 1.0
    assert await scripted.use() == 0
    scripted.page = TimeoutError()
    scripted.now += 2.0
    assert scripted.watch.waiting("c") == 0
    scripted.now += 0.25
    assert scripted.watch.waiting("c") is None


async def test_a_server_that_nobody_is_to_look_at() -> None:
    scripted = Scripted("off")
    assert await scripted.use() is None
    assert scripted.looks == 0
    await scripted.watch.aclose()


async def test_nothing_is_asked_after_the_end() -> None:
    scripted = Scripted()
    scripted.watch.touch()
    await scripted.watch.aclose()
    assert await scripted.use(100) is None
    assert scripted.looks == 1


async def test_the_page_of_a_server() -> None:
    with serve_models() as served:
        served.body = LLAMA.encode()
        watch = QueueWatch(server_at(served.url))
        watch.touch()
        task = watch._task
        assert task is not None
        await task
        assert watch.waiting("any") == 6
        await watch.aclose()
        ((path, headers),) = served.requests
        assert (path, headers["authorization"]) == ("/metrics", "Bearer sk-secret")

        page = MetricsPage(server_at(served.url))
        for status in (204, 302, 401, 404):
            served.status, served.body = status, b""
            with pytest.raises(NoQueuePublished):
                await page.fetch()
        served.status = 503
        with pytest.raises(aiohttp.ClientResponseError):
            await page.fetch()
        served.status, served.body = 200, b"x" * (1024 * 1024 + 1)
        with pytest.raises(NoQueuePublished):
            await page.fetch()
        served.body = b"\xff"
        assert await page.fetch() == "\N{REPLACEMENT CHARACTER}"
        await page.aclose()


@pytest.mark.parametrize(
    ("url", "metrics", "has_key"),
    [
        ("http://gpu/v1", "auto", True),
        ("http://gpu/v1", "http://gpu:9100/x", True),
        ("http://gpu/v1", "https://gpu/x", True),
        ("https://gpu/v1", "http://gpu/x", False),
        ("http://gpu/v1", "http://other/x", False),
    ],
)
def test_a_key_goes_to_its_own_server_alone(url: str, metrics: str, *, has_key: bool) -> None:
    assert ("authorization" in MetricsPage(server_at(url, metrics))._headers()) is has_key
