"""Tell the world that a batch has ended: send the deliveries of webhooks that are due.

Unlike the other stages, this one does not wait for what it starts. A receiver may take its whole time,
and many may be dead; if the task waited, a few of them would keep the control worker's processes from
validating and finalizing. So the bell is answered as soon as the deliveries are on their way: they run
on the loop of the process, beside whatever its tasks do, so many at a time and no more.

Promises: a delivery is sent at least once and, short of a death in mid-delivery, never by two at the
same time; every try of it carries the same `webhook-id` and a new time; it is given up only by a try
that fails when its time is over. No URL is logged, nor what a receiver said.
"""

import logging

from models.errors import ReceiverUnreachable
from models.failpoints import Failpoint, pass_failpoint
from models.faults import describe
from models.metrics import WEBHOOK_TRIES
from models.signing import event_body
from worker.outbox import ClaimedDelivery, claim_deliveries, is_any_due, record_try
from worker.retry import backoff_seconds
from worker.runtime import Runtime

log = logging.getLogger(__name__)

_PER_ENDPOINT = 4
_LEASE_MARGIN_SECONDS = 20.0


async def notify(runtime: Runtime) -> None:
    """Start sending what is due, as far as this process has room for it."""
    await _start_due(runtime, ending=0)


async def _start_due(runtime: Runtime, *, ending: int) -> None:
    """The same, where so many of the deliveries in flight have been sent and only ask for what is next."""
    outbox = runtime.outbox
    async with outbox.claiming:
        while not runtime.draining.is_set():
            at_work = len(outbox.in_flight) - ending
            room = runtime.notify_settings.webhook_max_in_flight - at_work
            if room <= 0:
                return
            claimed = await claim_deliveries(
                runtime.database,
                owner=runtime.owner,
                lease_seconds=runtime.webhook_settings.webhook_timeout_seconds
                + _LEASE_MARGIN_SECONDS,
                at_most=room,
                per_endpoint=_PER_ENDPOINT,
            )
            if not claimed:
                return
            pass_failpoint(Failpoint.NOTIFY_CLAIMED)
            for delivery in claimed:
                outbox.start(_deliver(runtime, delivery))


async def ring_if_due(runtime: Runtime) -> None:
    """Ring for `notify` if there is something to send."""
    if await is_any_due(runtime.database):
        await runtime.ring(runtime.doorbell.ring_notify)


async def _deliver(runtime: Runtime, delivery: ClaimedDelivery) -> None:
    """Send one delivery and write down what came of it; then see what else there is to send."""
    try:
        await _try_once(runtime, delivery)
        await _start_due(runtime, ending=1)
    except Exception as error:  # noqa: BLE001  # nobody waits for this task; the lease lapses
        log.error("webhook %s: %s; the sweep will ring again", delivery.webhook_id, describe(error))  # noqa: TRY400


async def _try_once(runtime: Runtime, delivery: ClaimedDelivery) -> None:
    body = event_body(
        event_id=delivery.event_id,
        event_type=delivery.event_type,
        created_at=delivery.created_at,
        batch_id=delivery.batch_id,
    )
    status = None
    try:
        status = await runtime.receiver.call(
            delivery.url, webhook_id=delivery.webhook_id, body=body, secrets=delivery.secrets
        )
        outcome = str(status)
    except ReceiverUnreachable as error:
        outcome = error.reason
    pass_failpoint(Failpoint.NOTIFY_SENT)
    settings = runtime.notify_settings
    state = await record_try(
        runtime.database,
        delivery,
        status=status,
        is_delivered=status is not None and 200 <= status < 300,
        wait_seconds=backoff_seconds(
            delivery.tries,
            base_seconds=settings.webhook_first_wait_seconds,
            cap_seconds=settings.webhook_longest_wait_seconds,
            retry_after_seconds=None,
        ),
        give_up_seconds=settings.webhook_give_up_seconds,
    )
    pass_failpoint(Failpoint.NOTIFY_RECORDED)
    WEBHOOK_TRIES.labels(state or "lost").inc()
    said = f"{outcome}; {state or 'no longer ours'}"
    log.info("webhook %s, try %s: %s", delivery.webhook_id, delivery.tries, said)
