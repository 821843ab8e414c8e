"""Flush, stop and starve parts of a running engine: every line still has exactly one result.

What kills processes is in `tests/chaos`.

The model server's log is the witness of how often a call was repeated.
"""

import time

import pytest
from redis import Redis

from tests.fixtures.engine import Engine, assert_each_line_once, engine_in

pytestmark = pytest.mark.timeout(240)

_LINES = 600
# Enough that a slow machine still stops in the middle of them: a stop finishes what is in flight.
_MANY = 1500


@pytest.fixture(autouse=True)
def fresh_witness(engine: Engine) -> None:
    """Each test counts its own repetitions."""
    engine.witness.forget()


def repeated(engine: Engine) -> int:
    """Calls repeated since the test began."""
    return engine.witness.repeated()


def test_a_flushed_broker_loses_nothing(engine: Engine) -> None:
    batch_id = engine.create_batch(_LINES)
    engine.wait_for_lines(batch_id, 50)
    Redis(unix_socket_path=_socket_of_valkey(engine)).flushall()

    batch = engine.wait_for_end(batch_id)

    assert batch["request_counts"] == {"total": _LINES, "completed": _LINES, "failed": 0}
    assert_each_line_once(engine, batch)
    assert repeated(engine) == 0


@pytest.mark.parametrize("how", ["gone", "500"])
def test_an_outage_of_the_model_server_fails_nothing(engine: Engine, how: str) -> None:
    batch_id = engine.create_batch(_LINES)
    engine.wait_for_lines(batch_id, 50)
    settings = engine.upstream.settings
    if how == "gone":
        engine.upstream.stop()
    else:
        settings.error_rate = 1.0
    try:
        _let_fail(engine, batch_id)
    finally:
        if how == "gone":
            engine.upstream.start()
        settings.error_rate = 0.0

    batch = engine.wait_for_end(batch_id)

    assert batch["request_counts"] == {"total": _LINES, "completed": _LINES, "failed": 0}
    assert_each_line_once(engine, batch)


def test_a_cancelled_batch_keeps_what_has_finished(engine: Engine) -> None:
    batch_id = engine.create_batch(_LINES)
    engine.wait_for_lines(batch_id, 50)
    with engine.client as client:
        assert client.post(f"batches/{batch_id}/cancel").json()["status"] == "cancelling"

    batch = engine.wait_for_end(batch_id)

    assert batch["status"] == "cancelled"
    assert 50 <= batch["request_counts"]["completed"] < _LINES
    assert_each_line_once(engine, batch)
    codes = {line["error"]["code"] for line in engine.lines_of(batch["error_file_id"])}
    assert codes == {"batch_cancelled"}


def test_a_batch_whose_window_closes_expires(engine: Engine) -> None:
    engine.upstream.settings.latency = 2.0
    try:
        batch_id = engine.create_batch(_LINES, window="10s")
        batch = engine.wait_for_end(batch_id, seconds=30)
    finally:
        engine.upstream.settings.latency = 0.2

    assert batch["status"] == "expired"
    assert 0 < batch["request_counts"]["completed"] < _LINES
    assert_each_line_once(engine, batch)
    codes = {line["error"]["code"] for line in engine.lines_of(batch["error_file_id"])}
    assert codes == {"batch_expired"}


def test_a_line_that_always_fails_does_not_hold_up_its_batch(engine: Engine) -> None:
    engine.upstream.settings.fail_marker = 'question 7"'
    try:
        batch = engine.wait_for_end(engine.create_batch(100))
    finally:
        engine.upstream.settings.fail_marker = None

    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 100, "completed": 99, "failed": 1}
    assert_each_line_once(engine, batch)
    [failed] = engine.lines_of(batch["error_file_id"])
    assert failed["custom_id"] == "request-7"
    assert failed["response"]["status_code"] == 500
    assert failed["error"] is None


def test_stopped_in_mid_batch_and_started_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    with engine_in(tmp_path_factory.mktemp("restart")) as engine:
        batch_id = engine.create_batch(_MANY)
        engine.wait_for_lines(batch_id, 50)
        assert engine.stop() in {0, 130}
        assert len(engine.witness.calls()) < _MANY

        engine.start()
        batch = engine.wait_for_end(batch_id)

        assert batch["request_counts"] == {"total": _MANY, "completed": _MANY, "failed": 0}
        assert_each_line_once(engine, batch)
        assert engine.witness.repeated() == 0


def _socket_of_valkey(engine: Engine) -> str:
    [valkey] = engine.processes("valkey-server")
    # Accepted connections carry no path of their own.
    return next(
        path for path in (str(each.laddr) for each in valkey.net_connections("unix")) if path
    )


def _let_fail(engine: Engine, batch_id: str) -> None:
    """Wait until the outage has been noticed: the batch has stood still for a while."""
    before, since = -1, time.monotonic()
    while time.monotonic() - since < 5:
        now = engine.batch(batch_id)["request_counts"]["completed"]
        if now != before:
            before, since = now, time.monotonic()
        time.sleep(0.1)
