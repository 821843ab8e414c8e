"""Who can write to the broker can ring; it cannot have anything run."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import ContentDisallowed

from worker.queue import CONTROL_QUEUE, make_celery


class Exploit:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_nothing_is_unpickled(broker_url: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    exploit = pickle.dumps(Exploit(trace))
    celery: Any = make_celery(broker_url)
    with celery.connection_for_write() as connection:
        queue = connection.SimpleQueue(CONTROL_QUEUE, accept=celery.conf.accept_content)
        queue.producer.publish(
            exploit,
            content_type="application/x-python-serialize",
            content_encoding="binary",
        )
        with pytest.raises(ContentDisallowed):
            queue.get(timeout=10)
        queue.close()
    assert not trace.exists()
    pickle.loads(exploit)  # noqa: S301  # it is our own, and does leave a trace
    assert trace.exists()
