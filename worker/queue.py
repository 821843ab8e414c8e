"""The doorbell: short Celery messages that say "go and look", and nothing else.

Promises: a message carries no work and no truth, so that losing, repeating or delaying it changes
nothing but the time; ringing never raises and never blocks for more than a few seconds (the sweep
rings again for whatever is runnable).
"""

import contextlib
import itertools
import logging

from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from models.metrics import BROKER_AWAY, BROKER_ERRORS

log = logging.getLogger(__name__)

CONTROL_QUEUE = "control"
RUN_QUEUE = "run"
VALIDATE_BATCH = "validate_batch"
FINALIZE_BATCH = "finalize_batch"
NOTIFY = "notify"
SWEEP = "sweep"
RUN_SHARD = "run_shard"

RUN_WINDOW = 16
"""Most `run_shard` bells kept waiting. A process that was idle and finds work rings for the next one."""

_SWEPT = "overnight:swept"
_WORKER = "overnight:worker:"
_WORKER_SECONDS = 10
_MOST_WORKERS = 1000

SWEPT_SECONDS = 30
"""A sweep that was so long ago is worth a word: beat or every control worker is gone."""

_ANSWER_SECONDS = 1.0
_SOCKET_SECONDS = 2.0
# What comes up when the broker is away, full or loading: kombu wraps some of redis-py's errors.
_BROKER_ERRORS = (KombuError, RedisError, OSError)


def make_celery(broker_url: str, *, socket_seconds: float | None = None) -> Celery:
    """The Celery application, for those who ring and for those who answer.

    No result backend, early acknowledgement, no prefetching, no ETA: redelivery is the business of
    the leases in Postgres, with one clock and one code path.
    """
    # A worker has one that answers and one that rings: what Celery takes for the current one must be
    # the former.
    celery = Celery("overnight", broker=broker_url, set_as_current=socket_seconds is None)
    transport_options: dict[str, object] = {"health_check_interval": 10}
    if socket_seconds is not None:
        transport_options |= {
            "socket_timeout": socket_seconds,
            "socket_connect_timeout": socket_seconds,
            # kombu would try to connect again and again for six seconds.
            "max_retries": 0,
        }
    celery.conf.update(
        # Celery's default, said outright: who can write to the broker must not be able to run code.
        accept_content=["json"],
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=transport_options,
        enable_utc=True,
        task_acks_late=False,
        task_create_missing_queues=True,
        task_default_queue=CONTROL_QUEUE,
        task_ignore_result=True,
        task_routes={RUN_SHARD: {"queue": RUN_QUEUE}},
        task_store_errors_even_if_ignored=False,
        # There are none that it could mean, for all are acknowledged early; False warns at every loss.
        worker_cancel_long_running_tasks_on_connection_loss=True,
        worker_disable_prefetch=True,
        worker_enable_prefetch_count_reduction=False,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
    )
    return celery


class Doorbell:
    """Rings the workers. Safe to use from several threads; it blocks, so never on an event loop."""

    def __init__(self, broker_url: str) -> None:
        self._celery = make_celery(broker_url, socket_seconds=_SOCKET_SECONDS)
        self._is_broker_away = False

    def ring_validate(self, batch_pk: int) -> None:
        """A batch waits to be validated."""
        self._ring(VALIDATE_BATCH, batch_pk)

    def ring_run(self, times: int = 1) -> None:
        """So many shards may be runnable; each bell wakes one process."""
        for _ in range(times):
            if not self._ring(RUN_SHARD):
                return

    def ring_finalize(self, batch_pk: int) -> None:
        """A batch may be ready to have its files written."""
        self._ring(FINALIZE_BATCH, batch_pk)

    def ring_notify(self) -> None:
        """A webhook waits to be sent."""
        self._ring(NOTIFY)

    def ring_sweep(self, *, expires_seconds: float) -> None:
        """Somebody should look at everything, within so many seconds or not at all."""
        self._ring(SWEEP, expires_seconds=expires_seconds)

    def waiting_bells(self, queue: str) -> int | None:
        """How many bells of a queue nobody has answered yet; `None` if the broker is away."""
        try:
            with self._celery.connection_for_write() as connection:
                return int(connection.default_channel.client.llen(queue))
        except _BROKER_ERRORS:
            return None

    def broker_answers(self) -> bool:
        """Whether the broker can be reached."""
        return self.waiting_bells(CONTROL_QUEUE) is not None

    def workers_answer(self, queue: str) -> bool:
        """Whether at least one worker of a queue answers a ping within about a second."""
        try:
            return bool(
                self._celery.control.broadcast(
                    "ping",
                    reply=True,
                    timeout=_ANSWER_SECONDS,
                    limit=1,
                    # As `overnight worker` names itself.
                    pattern=f"{queue}@*",
                    matcher="glob",
                )
            )
        except _BROKER_ERRORS:
            return False

    def note_sweep(self) -> None:
        """Leave word that everything has been looked over just now."""
        with (
            contextlib.suppress(*_BROKER_ERRORS),
            self._celery.connection_for_write() as connection,
        ):
            connection.default_channel.client.set(_SWEPT, 1, ex=SWEPT_SECONDS)

    def has_been_swept(self) -> bool:
        """Whether everything has been looked over in the last half minute."""
        try:
            with self._celery.connection_for_write() as connection:
                return bool(connection.default_channel.client.exists(_SWEPT))
        except _BROKER_ERRORS:
            return False

    def note_worker(self, name: str, told: str) -> None:
        """Leave word of how a process stands, for ten seconds."""
        with (
            contextlib.suppress(*_BROKER_ERRORS),
            self._celery.connection_for_write() as connection,
        ):
            connection.default_channel.client.set(_WORKER + name, told, ex=_WORKER_SECONDS)

    def told_of_workers(self) -> list[bytes]:
        """What processes left word of; nothing if the broker is away."""
        try:
            with self._celery.connection_for_write() as connection:
                client = connection.default_channel.client
                keys = client.scan_iter(match=f"{_WORKER}*", count=_MOST_WORKERS)
                names = list(itertools.islice(keys, _MOST_WORKERS))
                return [told for told in client.mget(names) if told] if names else []
        except _BROKER_ERRORS:
            return []

    def close(self) -> None:
        """Close the connections."""
        self._celery.close()

    def _ring(self, name: str, *args: int, expires_seconds: float | None = None) -> bool:
        try:
            self._celery.send_task(
                name, args=args, queue=_QUEUE_OF[name], retry=False, expires=expires_seconds
            )
        except _BROKER_ERRORS as error:
            BROKER_ERRORS.labels("bell").inc()
            if not self._is_broker_away:
                BROKER_AWAY.labels("bell").set(1)
                log.warning(
                    "could not ring %s: the broker is away (%s)", name, type(error).__name__
                )
            self._is_broker_away = True
            return False
        if self._is_broker_away:
            log.info("the broker answers again")
            BROKER_AWAY.labels("bell").set(0)
        self._is_broker_away = False
        return True


_QUEUE_OF = {
    VALIDATE_BATCH: CONTROL_QUEUE,
    FINALIZE_BATCH: CONTROL_QUEUE,
    NOTIFY: CONTROL_QUEUE,
    SWEEP: CONTROL_QUEUE,
    RUN_SHARD: RUN_QUEUE,
}
