"""Alive, ready, and what this is: with no key."""

import threading
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.database import Database
from models.lifecycle import BatchStatus, ShardState
from models.metrics import ALL, BUILD_INFO, ENGINE, HTTP_REQUESTS
from models.settings import DatabaseSettings
from tests.answers import assert_stamped, ok
from tests.factories import make_batch, make_shard
from tests.fixtures.client import AppFactory, ClientFactory, RecordingBell
from tests.fixtures.database import Postgres
from worker.dispatch import dispatcher_of
from worker.metrics import counts_of
from worker.runtime import Runtime

READY = {
    "status": "ready",
    "database": "ok",
    "broker": "ok",
    "workers": "ok",
    "control_workers": "ok",
    "run_workers": "ok",
    "sweep": "ok",
}
NO_WORKERS = {
    "workers": "unavailable",
    "control_workers": "unavailable",
    "run_workers": "unavailable",
}


@pytest.fixture
async def stranger(app: object, api_client: httpx.AsyncClient) -> httpx.AsyncClient:
    """A client without a key."""
    del app
    del api_client.headers["authorization"]
    return api_client


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_a_head_will_do(stranger: httpx.AsyncClient, path: str) -> None:
    response = await stranger.head(path)
    assert (response.status_code, response.content) == (200, b"")


async def test_alive(stranger: httpx.AsyncClient) -> None:
    assert ok(await stranger.get("/healthz")) == {"status": "ok"}


async def test_ready(stranger: httpx.AsyncClient) -> None:
    assert ok(await stranger.get("/readyz")) == READY


async def test_what_this_is(stranger: httpx.AsyncClient) -> None:
    assert ok(await stranger.get("/"))["name"] == "Overnight"


async def not_ready(client: httpx.AsyncClient) -> dict[str, str]:
    response = await client.get("/readyz")
    assert response.status_code == 503
    assert_stamped(response)
    found: dict[str, str] = response.json()
    assert found.pop("status") == "not ready"
    return {part: answer for part, answer in found.items() if answer != "ok"}


async def test_without_a_broker(stranger: httpx.AsyncClient, bell: RecordingBell) -> None:
    bell.broker = False
    assert await not_ready(stranger) == {"broker": "unavailable"}


async def test_without_workers(stranger: httpx.AsyncClient, bell: RecordingBell) -> None:
    bell.workers = False
    assert await not_ready(stranger) == NO_WORKERS


async def test_what_only_delays_work_is_told_and_logged_once(
    stranger: httpx.AsyncClient, bell: RecordingBell, caplog: pytest.LogCaptureFixture
) -> None:
    # The first looks may come before the sweep's first round and the second kind of workers.
    for bell.swept in (False, True):
        bell.run_workers = bell.swept
        await stranger.get("/readyz")
    assert not [each for each in caplog.records if each.name == "api.services.health"]
    bell.run_workers = bell.swept = False
    for _ in range(2):
        found = ok(await stranger.get("/readyz"))
        assert found == READY | {"run_workers": "unavailable", "sweep": "unavailable"}
    bell.run_workers = True
    await stranger.get("/readyz")
    lines = [each.message for each in caplog.records if each.name == "api.services.health"]
    assert lines == ["run_workers: unavailable", "sweep: unavailable", "run_workers: ok"]


async def metrics_of(client: httpx.AsyncClient) -> dict[str, float]:
    text = (await client.get("/metrics")).raise_for_status().text
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if ALL.get(family.name, BUILD_INFO).told_by == ENGINE
    }


async def test_the_metrics_tell_what_is_stuck(
    stranger: httpx.AsyncClient, bell: RecordingBell, database: Database
) -> None:
    past = datetime.now(UTC) - timedelta(seconds=90)
    running = await make_batch(database, status=BatchStatus.IN_PROGRESS)
    await make_shard(database, running, state=ShardState.RUNNING, in_flight=7)
    await make_shard(
        database, running, no=1, state=ShardState.RUNNING, lease_until=past, lapses=4, in_flight=9
    )
    await make_batch(database, status=BatchStatus.FINALIZING, finalizing_at=past, tries=6)
    bell.swept = False
    found = await metrics_of(stranger)
    assert found.pop("overnight_batch_ending_seconds") == pytest.approx(90, abs=20)
    assert found.pop("overnight_batch_deadline_seconds") == pytest.approx(86_400, abs=20)
    assert {name: value for name, value in found.items() if value} == {
        "overnight_part_up database": 1,
        "overnight_part_up broker": 1,
        "overnight_part_up workers": 1,
        "overnight_part_up control_workers": 1,
        "overnight_part_up run_workers": 1,
        "overnight_batches in_progress": 1,
        "overnight_batches finalizing": 1,
        "overnight_batch_tries finalizing": 6,
        "overnight_shards held": 1,
        "overnight_shards lapsed": 1,
        "overnight_calls_in_flight": 7,
        "overnight_shard_lapses": 4,
        "overnight_shards_waiting": 1,
        "overnight_lines_waiting": 3,
    }
    assert found["overnight_part_up sweep"] == 0


async def test_requests_are_counted_by_route(stranger: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/v1/files/file-mine", "/no/such/file-mine"):
        await stranger.get(path)
    text = (await stranger.get("/metrics")).text
    count = HTTP_REQUESTS.name
    assert f'{count}{{method="GET",route="/healthz",status="200"}}' in text
    assert f'{count}{{method="GET",route="/v1/files/{{file_id}}",status="401"}}' in text
    assert f'{count}{{method="GET",route="unknown",status="404"}}' in text
    assert "file-mine" not in text


async def test_everything_that_is_told_is_documented(
    stranger: httpx.AsyncClient, runtime: Runtime
) -> None:
    dispatcher_of(runtime)
    told = [*counts_of(runtime)]
    told += text_string_to_metric_families((await stranger.get("/metrics")).text)
    names = {each.name + "_total" * (each.type == "counter") for each in told}
    assert names == set(ALL)


async def test_without_a_database(
    stranger: httpx.AsyncClient, postgres: Postgres, database_name: str
) -> None:
    assert ok(await stranger.get("/readyz")) == READY
    postgres.take_away(database_name)
    assert await not_ready(stranger) == {"database": "unavailable"}
    assert (await metrics_of(stranger))["overnight_part_up database"] == 0
    assert ok(await stranger.get("/healthz")) == {"status": "ok"}
    postgres.give_back(database_name)
    assert ok(await stranger.get("/readyz")) == READY


async def test_with_a_database_that_nobody_has_migrated(
    postgres: Postgres, make_app: AppFactory, make_client: ClientFactory, database_name: str
) -> None:
    postgres.execute("DROP TABLE shards, batches", database=database_name)
    client = await make_client(make_app())
    assert await not_ready(client) == {"database": "unavailable"}


async def test_a_part_that_does_not_answer_in_time(
    stranger: httpx.AsyncClient, bell: RecordingBell, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr("api.services.health._SECONDS", 0.2)
    monkeypatch.setattr(bell, "workers_answer", lambda _: released.wait(10))
    try:
        assert await not_ready(stranger) == NO_WORKERS
    finally:
        released.set()


async def test_everything_is_asked_with_this_tests_settings(
    database_settings: DatabaseSettings, database_name: str
) -> None:
    assert database_name in database_settings.database_url.get_secret_value()
