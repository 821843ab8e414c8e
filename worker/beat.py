"""What beat rings with: our own doorbell, in Celery's schedule.

Promises: beat never waits for the broker for more than a few seconds and never dies of it; when the
broker returns, the next sweep is rung for in time; an outage is one line of the log.
"""

from typing import Any

from celery import Celery
from celery.beat import Scheduler

from worker.queue import SWEEP, Doorbell

_CLOCKS_DIFFER_SECONDS = 300.0


class SweepScheduler(Scheduler):  # type: ignore[misc]  # Celery has no types
    """Celery's scheduler, but for the sending.

    Its own connects before it sends, in waits that grow to half a minute, and puts a traceback into
    the log for every bell that it cannot send.
    """

    producer = None

    def __init__(self, app: Celery, **options: Any) -> None:
        self._doorbell = Doorbell(app.conf.broker_url)
        super().__init__(app, **options)

    def apply_entry(self, entry: Any, producer: object = None) -> None:
        """Ring for what is due: the sweep is all that ever is."""
        del producer
        assert entry.task == SWEEP  # noqa: S101  # the schedule in `worker.app` has no other
        # An old one is worth nothing: the next is on its way. But the workers' clocks may differ.
        expires_seconds = max(_CLOCKS_DIFFER_SECONDS, 5 * entry.schedule.run_every.total_seconds())
        self._doorbell.ring_sweep(expires_seconds=expires_seconds)
