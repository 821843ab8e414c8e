"""Deliveries: sent until they succeed, by one worker at a time, and not for ever."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import func, insert, select, update

from api.services import webhook_endpoints
from models import WebhookDelivery, WebhookEndpoint
from models.database import Database
from models.ids import new_event_id, new_webhook_id
from models.project import DEFAULT_CALLER
from models.settings import WebhookSettings
from models.signing import new_secret
from tests.factories import make_webhook_endpoint
from tests.fixtures.runtime import Reply, Request, ScriptedServer, wait_until
from worker.outbox import ClaimedDelivery, Outbox, claim_deliveries, record_try
from worker.runtime import Runtime
from worker.settings import NotifySettings
from worker.stages.notify import notify

HOUR = timedelta(hours=1)
OPEN = WebhookSettings(webhook_allow_private=True)


def notifier(runtime: Runtime, owner: str = "worker-1", **changes: Any) -> Runtime:
    """A worker of its own that may call this machine."""
    return replace(
        runtime,
        owner=owner,
        webhook_settings=OPEN.model_copy(update=changes),
        outbox=Outbox(),
        draining=asyncio.Event(),
    )


@pytest.fixture
async def worker(runtime: Runtime) -> AsyncIterator[Runtime]:
    made = notifier(runtime)
    yield made
    await made.outbox.drain(seconds=10)


@pytest.fixture
async def receiver() -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer()
    await server.start()
    yield server
    await server.stop()


async def make_delivery(
    database: Database, endpoint: WebhookEndpoint, **values: Any
) -> WebhookDelivery:
    columns = {
        "endpoint_pk": endpoint.pk,
        "webhook_id": new_webhook_id(),
        "event_id": new_event_id(),
        "event_type": "batch.completed",
        "batch_id": "batch_abc",
    }
    async with database.begin() as session:
        made: WebhookDelivery | None = await session.scalar(
            insert(WebhookDelivery).values(columns | values).returning(WebhookDelivery)
        )
    assert made is not None
    return made


async def change(database: Database, **values: Any) -> None:
    """Let time pass for every delivery."""
    async with database.begin() as session:
        await session.execute(update(WebhookDelivery).values(values))


async def the_delivery(database: Database) -> WebhookDelivery:
    async with database.begin() as session:
        return (await session.scalars(select(WebhookDelivery))).one()


async def send(worker: Runtime) -> None:
    """Send what is due, and wait until all of it has ended."""
    await notify(worker)
    await wait_until(lambda: not worker.outbox.in_flight, "the end of every delivery")


async def test_a_delivery_that_the_official_sdk_unwraps(
    worker: Runtime, receiver: ScriptedServer
) -> None:
    endpoint = await make_webhook_endpoint(worker.database, receiver.url + "/hook?token=a")
    made = await make_delivery(worker.database, endpoint)
    await send(worker)
    (request,) = receiver.requests
    assert request.path == "/v1/hook?token=a"
    assert request.headers["webhook-id"] == made.webhook_id
    event: Any = OpenAI(api_key="unused").webhooks.unwrap(
        request.body, request.headers, secret=endpoint.secret
    )
    assert (event.id, event.type, event.data.id) == (
        made.event_id,
        "batch.completed",
        "batch_abc",
    )
    assert event.created_at == int(made.created_at.timestamp())
    done = await the_delivery(worker.database)
    assert (done.state, done.tries, done.last_status) == ("delivered", 1, 200)
    assert done.ended_at is not None
    assert done.lease_owner is None
    # Once is enough.
    await send(worker)
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [200, 202, 204, 299])
async def test_any_2xx_is_success(worker: Runtime, receiver: ScriptedServer, status: int) -> None:
    await make_delivery(worker.database, await make_webhook_endpoint(worker.database, receiver.url))
    receiver.replies = [Reply(status, b"")]
    await send(worker)
    assert (await the_delivery(worker.database)).state == "delivered"


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 410, 429, 500, 503])
async def test_anything_else_is_tried_again(
    worker: Runtime, receiver: ScriptedServer, status: int
) -> None:
    made = await make_delivery(
        worker.database, await make_webhook_endpoint(worker.database, receiver.url)
    )
    receiver.replies = [Reply(status, b"no", {"location": receiver.url + "/elsewhere"})]
    await send(worker)
    failed = await the_delivery(worker.database)
    assert (failed.state, failed.tries, failed.last_status) == ("pending", 1, status)
    # Not before its time.
    await send(worker)
    assert len(receiver.requests) == 1

    await change(worker.database, next_try_at=func.now())
    await send(worker)
    assert [request.path for request in receiver.requests] == ["/v1", "/v1"]
    assert {request.headers["webhook-id"] for request in receiver.requests} == {made.webhook_id}
    assert len({request.body for request in receiver.requests}) == 1
    done = await the_delivery(worker.database)
    assert (done.state, done.tries, done.last_status) == ("delivered", 2, 200)


async def test_every_try_has_a_fresh_time(
    worker: Runtime, receiver: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = await make_webhook_endpoint(worker.database, receiver.url)
    await make_delivery(worker.database, endpoint)
    receiver.replies = [Reply(500)]
    later = time.time() + 3600
    monkeypatch.setattr("models.receiver.time.time", lambda: later - 3600)
    await send(worker)
    monkeypatch.setattr("models.receiver.time.time", lambda: later)
    await change(worker.database, next_try_at=func.now())
    await send(worker)
    first, second = [int(request.headers["webhook-timestamp"]) for request in receiver.requests]
    assert second - first == 3600
    signatures = {request.headers["webhook-signature"] for request in receiver.requests}
    assert len(signatures) == 2


async def test_a_receiver_that_is_away(worker: Runtime, receiver: ScriptedServer) -> None:
    await make_delivery(worker.database, await make_webhook_endpoint(worker.database, receiver.url))
    await receiver.stop()
    await send(worker)
    failed = await the_delivery(worker.database)
    assert (failed.state, failed.tries, failed.last_status) == ("pending", 1, None)
    await receiver.start()
    await change(worker.database, next_try_at=func.now())
    await send(worker)
    assert (await the_delivery(worker.database)).state == "delivered"


async def hang(_: Request) -> Reply:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_receiver_that_hangs(runtime: Runtime, receiver: ScriptedServer) -> None:
    worker = notifier(runtime, webhook_timeout_seconds=0.2)
    await make_delivery(worker.database, await make_webhook_endpoint(worker.database, receiver.url))
    receiver.script = hang
    await send(worker)
    failed = await the_delivery(worker.database)
    assert (failed.state, failed.tries, failed.last_status) == ("pending", 1, None)
    assert len(receiver.requests) == 1


async def test_a_receiver_at_an_inner_address_is_never_called(
    runtime: Runtime, receiver: ScriptedServer
) -> None:
    """As if it had been registered while that was allowed, or its name led elsewhere then."""
    worker = notifier(runtime, webhook_allow_private=False)
    for url in (receiver.url, receiver.url.replace("http:", "https:")):
        endpoint = await make_webhook_endpoint(worker.database, url)
        await make_delivery(worker.database, endpoint)
    await send(worker)
    async with worker.database.begin() as session:
        rows = await session.execute(select(WebhookDelivery.state, WebhookDelivery.tries))
        assert [tuple(row) for row in rows] == [("pending", 1)] * 2
    assert receiver.accepted == 0


async def database_time(database: Database) -> datetime:
    async with database.begin() as session:
        now: datetime | None = await session.scalar(select(func.now()))
    assert now is not None
    return now


@pytest.mark.parametrize(
    ("failed_before", "at_least", "at_most"),
    [
        (0, 2.5, 5),
        (1, 5, 10),
        (5, 80, 160),
        (11, 5120, 10240),
        (12, 7200, 14400),
        (99, 7200, 14400),
    ],
)
async def test_waits_double_up_to_four_hours(
    worker: Runtime, receiver: ScriptedServer, failed_before: int, at_least: float, at_most: float
) -> None:
    endpoint = await make_webhook_endpoint(worker.database, receiver.url)
    await make_delivery(worker.database, endpoint, tries=failed_before)
    receiver.replies = [Reply(500)]
    before = await database_time(worker.database)
    await send(worker)
    after = await database_time(worker.database)
    next_try_at = (await the_delivery(worker.database)).next_try_at
    assert before + timedelta(seconds=at_least) <= next_try_at
    assert next_try_at <= after + timedelta(seconds=at_most)


async def test_it_is_given_up_after_72_hours_and_not_before(
    worker: Runtime, receiver: ScriptedServer
) -> None:
    endpoint = await make_webhook_endpoint(worker.database, receiver.url)
    await make_delivery(worker.database, endpoint, created_at=func.now() - 71.9 * HOUR, tries=30)
    receiver.replies = [Reply(500), Reply(500)]
    await send(worker)
    kept = await the_delivery(worker.database)
    assert kept.state == "pending"
    # The last try is when the time is up.
    assert kept.next_try_at == kept.created_at + 72 * HOUR

    passed = {"created_at": func.now() - 72 * HOUR, "next_try_at": func.now()}
    await change(worker.database, **passed)
    await send(worker)
    ended = await the_delivery(worker.database)
    assert (ended.state, ended.tries, ended.last_status) == ("given_up", 32, 500)
    assert ended.ended_at is not None
    await change(worker.database, next_try_at=func.now())
    await send(worker)
    assert len(receiver.requests) == 2


async def test_what_was_never_tried_in_time_is_tried_once(
    worker: Runtime, receiver: ScriptedServer
) -> None:
    """The engine was stopped for days."""
    endpoint = await make_webhook_endpoint(worker.database, receiver.url)
    await make_delivery(worker.database, endpoint, created_at=func.now() - 100 * HOUR)
    await send(worker)
    assert (await the_delivery(worker.database)).state == "delivered"


async def claim(worker: Runtime, owner: str = "worker-1") -> list[ClaimedDelivery]:
    return await claim_deliveries(
        worker.database, owner=owner, lease_seconds=60, at_most=10, per_endpoint=4
    )


async def test_a_worker_that_dies_in_mid_delivery(
    worker: Runtime, receiver: ScriptedServer
) -> None:
    endpoint = await make_webhook_endpoint(worker.database, receiver.url)
    made = await make_delivery(worker.database, endpoint)
    (dead,) = await claim(worker, "dead")
    # Its lease holds, for it may be sending just now.
    await send(worker)
    assert receiver.requests == []

    await change(worker.database, lease_until=func.now())
    await send(worker)
    (request,) = receiver.requests
    assert request.headers["webhook-id"] == made.webhook_id
    # It was only frozen, and wakes: nothing that it says counts.
    told: dict[str, Any] = {"is_delivered": False, "wait_seconds": 5, "give_up_seconds": 99}
    assert await record_try(worker.database, dead, status=500, **told) is None
    done = await the_delivery(worker.database)
    assert (done.state, done.tries, done.last_status) == ("delivered", 2, 200)


async def test_a_worker_that_was_frozen_past_its_own_second_claim(worker: Runtime) -> None:
    endpoint = await make_webhook_endpoint(worker.database)
    await make_delivery(worker.database, endpoint)
    (first,) = await claim(worker)
    await change(worker.database, lease_until=func.now())
    (second,) = await claim(worker)
    assert (first.tries, second.tries) == (1, 2)
    told: dict[str, Any] = {"is_delivered": True, "wait_seconds": 5, "give_up_seconds": 99}
    assert await record_try(worker.database, first, status=200, **told) is None
    assert await record_try(worker.database, second, status=200, **told) == "delivered"


async def test_many_workers_send_each_delivery_once(
    runtime: Runtime, receiver: ScriptedServer
) -> None:
    for _ in range(5):
        endpoint = await make_webhook_endpoint(runtime.database, receiver.url)
        for _ in range(12):
            await make_delivery(runtime.database, endpoint)
    workers = [notifier(runtime, f"worker-{number}") for number in range(3)]
    await asyncio.gather(*(notify(worker) for worker in workers * 3))

    async def all_have_ended() -> bool:
        async with runtime.database.begin() as session:
            pending = WebhookDelivery.state == "pending"
            return not await session.scalar(select(func.count()).where(pending))

    await wait_until(all_have_ended, "the end of every delivery")
    counts = Counter(request.headers["webhook-id"] for request in receiver.requests)
    assert len(counts) == 60
    assert set(counts.values()) == {1}
    for worker in workers:
        await worker.outbox.drain(seconds=10)


async def test_the_bell_is_answered_while_receivers_take_their_time(
    worker: Runtime, receiver: ScriptedServer
) -> None:
    """What keeps a slow receiver from holding up validation: nobody waits for it."""
    gate = asyncio.Event()

    async def slow(_: Request) -> Reply:
        await gate.wait()
        return Reply()

    receiver.script = slow
    endpoint = await make_webhook_endpoint(worker.database, receiver.url)
    await make_delivery(worker.database, endpoint)
    await notify(worker)
    assert len(worker.outbox.in_flight) == 1
    await wait_until(lambda: len(receiver.requests) == 1)
    # Another bell finds nothing to do.
    await notify(worker)
    assert len(worker.outbox.in_flight) == 1
    gate.set()
    await wait_until(lambda: not worker.outbox.in_flight)
    assert (await the_delivery(worker.database)).state == "delivered"


async def test_so_many_at_a_time_and_the_rest_without_another_bell(
    runtime: Runtime, receiver: ScriptedServer
) -> None:
    worker = replace(notifier(runtime), notify_settings=NotifySettings(webhook_max_in_flight=3))
    gate, waiting, most = asyncio.Event(), 0, 0

    async def slow(_: Request) -> Reply:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await gate.wait()
        waiting -= 1
        return Reply()

    receiver.script = slow
    for _ in range(10):
        endpoint = await make_webhook_endpoint(worker.database, receiver.url)
        await make_delivery(worker.database, endpoint)
    await asyncio.gather(*(notify(worker) for _ in range(4)))
    await wait_until(lambda: waiting == 3)
    assert len(worker.outbox.in_flight) == 3
    gate.set()
    await wait_until(lambda: len(receiver.requests) == 10)
    await wait_until(lambda: not worker.outbox.in_flight)
    assert most == 3


async def test_one_at_a_time_goes_on_without_another_bell(
    runtime: Runtime, receiver: ScriptedServer
) -> None:
    worker = replace(notifier(runtime), notify_settings=NotifySettings(webhook_max_in_flight=1))
    waiting = most = 0

    async def slow(_: Request) -> Reply:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0)
        waiting -= 1
        return Reply()

    receiver.script = slow
    endpoint = await make_webhook_endpoint(worker.database, receiver.url)
    for _ in range(5):
        await make_delivery(worker.database, endpoint)
    await notify(worker)
    await wait_until(lambda: len(receiver.requests) == 5)
    await wait_until(lambda: not worker.outbox.in_flight)
    assert most == 1


async def test_a_dead_endpoint_with_many_waiting_keeps_no_other_from_its_own(
    worker: Runtime, receiver: ScriptedServer
) -> None:
    async def hang_at_dead(request: Request) -> Reply:
        return await hang(request) if request.path.endswith("/dead") else Reply()

    receiver.script = hang_at_dead
    dead = await make_webhook_endpoint(worker.database, receiver.url + "/dead")
    for _ in range(50):
        await make_delivery(worker.database, dead)
    well = await make_webhook_endpoint(worker.database, receiver.url + "/well")
    for _ in range(6):
        await make_delivery(worker.database, well)
    await notify(worker)
    paths = Counter[str]()

    def well_has_all() -> bool:
        paths.clear()
        paths.update(request.path for request in receiver.requests)
        return paths["/v1/well"] == 6

    await wait_until(well_has_all)
    assert paths["/v1/dead"] <= 4
    await receiver.stop()


async def test_a_rotated_secret_signs_beside_the_new_one(
    worker: Runtime, receiver: ScriptedServer
) -> None:
    old = new_secret()
    endpoint = await make_webhook_endpoint(
        worker.database,
        receiver.url,
        previous_secret=old,
        previous_secret_until=func.now() + 24 * HOUR,
    )
    sdk = OpenAI(api_key="unused").webhooks
    for _ in range(2):
        await make_delivery(worker.database, endpoint)
        await send(worker)
        async with worker.database.begin() as session:
            await session.execute(update(WebhookEndpoint).values(previous_secret_until=func.now()))
    both, one = receiver.requests
    for secret in (endpoint.secret, old):
        sdk.verify_signature(both.body, both.headers, secret=secret)
    assert len(both.headers["webhook-signature"].split(" ")) == 2
    sdk.verify_signature(one.body, one.headers, secret=endpoint.secret)
    assert len(one.headers["webhook-signature"].split(" ")) == 1


async def test_an_endpoint_that_is_deleted_in_mid_delivery(
    worker: Runtime, receiver: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()

    async def slow(_: Request) -> Reply:
        await gate.wait()
        return Reply()

    receiver.script = slow
    endpoint = await make_webhook_endpoint(worker.database, receiver.url)
    await make_delivery(worker.database, endpoint)
    await notify(worker)
    await webhook_endpoints.delete_(worker.database, DEFAULT_CALLER, endpoint_id=endpoint.id)
    gate.set()
    await wait_until(lambda: not worker.outbox.in_flight)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_no_url_and_no_secret_is_logged(
    worker: Runtime, receiver: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.replies = [Reply(500, b"what the receiver said"), Reply(raw=b"x", closes=True)]
    endpoint = await make_webhook_endpoint(worker.database, receiver.url + "/p4th?token=t0ken")
    made = await make_delivery(worker.database, endpoint)
    for _ in range(3):
        await send(worker)
        await change(worker.database, next_try_at=func.now())
    assert len(receiver.requests) == 3
    assert f"webhook {made.webhook_id}, try 1: 500; pending" in caplog.text
    for secret in ("p4th", "t0ken", "the receiver said", endpoint.secret):
        assert secret not in caplog.text


async def test_a_worker_that_stops_lets_what_is_in_flight_end(
    worker: Runtime, receiver: ScriptedServer
) -> None:
    gate = asyncio.Event()

    async def slow(_: Request) -> Reply:
        await gate.wait()
        return Reply()

    receiver.script = slow
    endpoint = await make_webhook_endpoint(worker.database, receiver.url)
    for _ in range(6):
        await make_delivery(worker.database, endpoint)
    await notify(worker)
    await wait_until(lambda: len(receiver.requests) == 4)
    worker.draining.set()
    draining = asyncio.create_task(worker.outbox.drain(seconds=10))
    gate.set()
    await draining
    # Those that were not begun wait for another worker.
    assert len(receiver.requests) == 4
    assert not worker.outbox.in_flight
    await send(notifier(worker, "worker-2"))
    counts = Counter(request.headers["webhook-id"] for request in receiver.requests)
    assert (len(counts), set(counts.values())) == (6, {1})


async def test_a_database_that_is_away_when_a_try_is_recorded(
    worker: Runtime, receiver: ScriptedServer, outage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The receiver hears of it twice, by the same name."""
    arrived, gate = asyncio.Event(), asyncio.Event()

    async def slow(_: Request) -> Reply:
        arrived.set()
        await gate.wait()
        return Reply()

    receiver.script = slow
    endpoint = await make_webhook_endpoint(worker.database, receiver.url)
    await make_delivery(worker.database, endpoint)
    await notify(worker)
    await arrived.wait()
    await outage()
    gate.set()
    await wait_until(lambda: not worker.outbox.in_flight)
    assert "the sweep will ring again" in caplog.text
    await outage()
    await change(worker.database, lease_until=func.now())
    await send(worker)
    assert len(receiver.requests) == 2
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    assert (await the_delivery(worker.database)).state == "delivered"
