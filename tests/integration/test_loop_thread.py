"""Between Celery's threads and the one loop of a process: start, drain, stop, and how errors end."""

import asyncio
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from celery import Celery

from tests.fixtures.runtime import WAIT_SECONDS
from worker import runtime as runtime_module
from worker.queue import RUN_SHARD, SWEEP, VALIDATE_BATCH
from worker.runtime import LoopThread, Runtime, drain_process, loop_thread, stop_process
from worker.tasks import _answer, register_tasks

pytestmark = pytest.mark.usefixtures("process")


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch, database_url: str, broker_url: str) -> Iterator[None]:
    """The settings of a worker process, and its end."""
    monkeypatch.setenv("OVERNIGHT_DATABASE_URL", database_url)
    monkeypatch.setenv("OVERNIGHT_REDIS_URL", broker_url)
    monkeypatch.setenv("OVERNIGHT_UPSTREAM_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setattr(runtime_module, "_is_draining", threading.Event())
    thresholds = gc.get_threshold()
    yield
    stop_process()
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def drains(loop: LoopThread) -> bool:
    """Whether the process has been asked to come to its end, within some time."""

    async def wait() -> bool:
        async with asyncio.timeout(WAIT_SECONDS):
            return await loop.runtime.draining.wait()

    return loop.run(wait())


def test_all_threads_of_a_process_share_one_loop() -> None:
    with ThreadPoolExecutor(8) as threads:
        loops = set(threads.map(lambda _: loop_thread(), range(32)))
    assert loops == {loop_thread()}


def test_a_drain_reaches_what_is_at_work() -> None:
    loop = loop_thread()
    assert not loop.runtime.draining.is_set()
    drain_process()
    assert drains(loop)


def test_a_drain_reaches_a_loop_that_is_started_after_it() -> None:
    drain_process()
    assert drains(loop_thread())


def test_a_drain_while_the_loop_is_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: LoopThread) -> None:
        start(self)
        # The signal comes when the loop is there, but nobody has heard of it yet.
        drain_process()

    start = LoopThread.__init__
    monkeypatch.setattr(LoopThread, "__init__", interrupted)
    assert drains(loop_thread())


def test_a_process_that_has_stopped_may_be_asked_again() -> None:
    loop = loop_thread()
    stop_process()
    stop_process()
    drain_process()
    assert not loop._thread.is_alive()


def test_a_task_ends_with_one_line_that_says_nothing_of_the_error_s_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def faulty(runtime: Runtime, batch_pk: int) -> None:
        message = f"a prompt, and {runtime} {batch_pk}"
        raise LookupError(message)

    _answer(faulty)(7)
    [record] = caplog.records
    assert record.getMessage().startswith("faulty: LookupError at ")
    assert "test_loop_thread.py:" in caplog.text
    assert "prompt" not in caplog.text
    assert record.exc_info is None


def test_the_tasks_answer_their_bells() -> None:
    app = Celery(set_as_current=False)
    register_tasks(app)
    # Nothing to do, on a real database.
    app.tasks[SWEEP]()
    app.tasks[RUN_SHARD]()
    app.tasks[VALIDATE_BATCH](12345)
