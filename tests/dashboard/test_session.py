"""The session of a browser: what it opens, when it ends, and that no other site's page can use it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from models import ApiKey, DashboardSession
from models.database import Database
from tests.answers import ok, refusal
from tests.factories import make_batch, make_key, make_project
from tests.fixtures.client import API_KEY, AppFactory, ClientFactory

PAGE = {"x-overnight-dashboard": "1"}
SESSION = "/dashboard/session"


@pytest.fixture
async def browser(api_client: httpx.AsyncClient) -> httpx.AsyncClient:
    """A client that has no key, and keeps cookies."""
    del api_client.headers["authorization"]
    return api_client


async def sign_in(browser: httpx.AsyncClient, key: str = API_KEY) -> dict[str, Any]:
    return ok(await browser.post(SESSION, json={"key": key}, headers=PAGE))


async def test_a_session_opens_what_its_key_opens(
    browser: httpx.AsyncClient, database: Database
) -> None:
    project = await make_project(database)
    theirs = await make_batch(database, project_pk=project.project_pk)
    mine = await make_batch(database)
    key = await make_key(database, project)

    assert ok(await browser.get(SESSION))["project"] is None
    assert (await sign_in(browser, key))["project"] == project.project_id
    assert ok(await browser.get(SESSION))["project"] == project.project_id
    listed = ok(await browser.get("/v1/batches"))
    assert [batch["id"] for batch in listed["data"]] == [theirs.id]
    assert (await browser.get(f"/v1/batches/{mine.id}")).status_code == 404


async def test_the_cookie_is_out_of_reach(browser: httpx.AsyncClient) -> None:
    answer = await browser.post(SESSION, json={"key": f" {API_KEY}\n"}, headers=PAGE)
    cookie = answer.headers["set-cookie"]
    parts = {part.strip().lower() for part in cookie.split(";")}
    assert {"httponly", "samesite=strict", "path=/", "max-age=86400"} <= parts
    # On loopback there is no TLS.
    assert "secure" not in parts
    assert API_KEY not in cookie + answer.text
    assert answer.headers["cache-control"] == "no-store"


async def test_behind_tls_the_cookie_is_never_sent_in_the_clear(app: Any, browser: Any) -> None:
    del browser
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="https://overnight") as client:
        answer = await client.post(SESSION, json={"key": API_KEY}, headers=PAGE)
    assert "; Secure" in answer.headers["set-cookie"]


async def test_neither_key_nor_token_is_kept(
    browser: httpx.AsyncClient, database: Database
) -> None:
    await sign_in(browser)
    token = browser.cookies["overnight_session"]
    async with database.begin() as session:
        row = (await session.execute(select(DashboardSession.__table__))).one()
    for secret in (API_KEY, token):
        assert secret.encode() not in b"".join(each for each in row if isinstance(each, bytes))


@pytest.mark.parametrize(
    "body", [{}, {"key": ""}, {"key": 3}, {"key": "k" * 513}, {"key": "k", "more": 1}]
)
async def test_no_key_at_all(browser: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await browser.post(SESSION, json=body, headers=PAGE)).status_code == 400
    assert "overnight_session" not in browser.cookies


async def test_a_wrong_key(browser: httpx.AsyncClient) -> None:
    answer = await browser.post(SESSION, json={"key": "sk-wrong"}, headers=PAGE)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


async def test_signing_out_ends_the_session_for_everybody(browser: httpx.AsyncClient) -> None:
    await sign_in(browser)
    token = browser.cookies["overnight_session"]
    ok(await browser.delete(SESSION, headers=PAGE))
    assert "overnight_session" not in browser.cookies
    browser.cookies.set("overnight_session", token)
    assert (await browser.get("/v1/batches")).status_code == 401


@pytest.mark.parametrize("end", ["revoked_at", "expires_at"])
async def test_a_session_ends_with_its_key(
    browser: httpx.AsyncClient, database: Database, end: str
) -> None:
    project = await make_project(database)
    await sign_in(browser, await make_key(database, project))
    ok(await browser.get("/v1/batches"))
    async with database.begin() as session:
        await session.execute(
            update(ApiKey).values({end: datetime.now(UTC) - timedelta(seconds=1)})
        )
    assert (await browser.get("/v1/batches")).status_code == 401


async def test_a_session_ends_when_its_key_leaves_the_settings(
    browser: httpx.AsyncClient, make_app: AppFactory, make_client: ClientFactory
) -> None:
    await sign_in(browser)
    ok(await browser.get("/v1/batches"))
    later = await make_client(make_app(api_key="sk-another-0123456789abcdef"))
    del later.headers["authorization"]
    later.cookies.update(browser.cookies)
    assert (await later.get("/v1/batches")).status_code == 401


async def test_a_session_ends_by_itself(browser: httpx.AsyncClient, database: Database) -> None:
    await sign_in(browser)
    async with database.begin() as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        await session.execute(update(DashboardSession).values(expires_at=past))
    assert (await browser.get("/v1/batches")).status_code == 401
    # And what has ended is not kept.
    await sign_in(browser)
    async with database.begin() as session:
        assert len((await session.scalars(select(DashboardSession))).all()) == 1


@pytest.mark.parametrize("token", ["", "x", "é", "x" * 5000])
async def test_no_session_at_all(browser: httpx.AsyncClient, token: str) -> None:
    headers = [(b"cookie", f"overnight_session={token}".encode())]
    assert (await browser.get("/v1/batches", headers=headers)).status_code == 401


@pytest.mark.parametrize("verb", ["cancel", "pause"])
async def test_what_changes_something_needs_the_pages_own_header(
    browser: httpx.AsyncClient, database: Database, verb: str
) -> None:
    await sign_in(browser)
    path = f"/v1/batches/{(await make_batch(database)).id}/{verb}"
    answer = await browser.post(path)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "foreign_page"
    ok(await browser.post(path, headers=PAGE))


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_another_sites_page_gets_nothing(browser: httpx.AsyncClient, site: str) -> None:
    await sign_in(browser)
    foreign = {"sec-fetch-site": site} | PAGE
    for method, path in (("GET", "/v1/batches"), ("DELETE", SESSION), ("GET", SESSION)):
        assert (await browser.request(method, path, headers=foreign)).status_code == 403
    answer = await browser.post(SESSION, json={"key": API_KEY}, headers=foreign)
    assert answer.status_code == 403
    for own in ("same-origin", "none"):
        ok(await browser.get("/v1/batches", headers={"sec-fetch-site": own}))


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_signing_in_and_out_need_the_header(browser: httpx.AsyncClient, method: str) -> None:
    assert (await browser.request(method, SESSION)).status_code == 403


async def test_a_key_counts_before_a_session(
    browser: httpx.AsyncClient, database: Database
) -> None:
    await sign_in(browser)
    headers = {"authorization": "Bearer sk-wrong"}
    assert (await browser.get("/v1/batches", headers=headers)).status_code == 401
    key = await make_key(database, await make_project(database))
    await make_batch(database)
    # And needs no header: a program's requests are nobody else's.
    headers = {"authorization": f"Bearer {key}"}
    assert ok(await browser.get("/v1/batches", headers=headers))["data"] == []


async def test_without_a_dashboard_there_are_no_sessions(
    browser: httpx.AsyncClient, make_app: AppFactory, make_client: ClientFactory
) -> None:
    await sign_in(browser)
    client = await make_client(make_app(dashboard=False))
    del client.headers["authorization"]
    client.cookies.update(browser.cookies)
    assert (await client.get("/v1/batches")).status_code == 401
    refused = await client.post(SESSION, json={"key": API_KEY}, headers=PAGE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_url")
    assert (await client.get("/", headers={"accept": "text/html"})).json()["name"] == "Overnight"
    assert (await client.get("/dashboard/static/main.js")).status_code == 404


async def test_the_refusal_has_the_envelope(browser: httpx.AsyncClient) -> None:
    answer = await browser.delete(SESSION)
    refusal(
        answer,
        403,
        "This request carries a browser's session, but was not sent by the dashboard's own page.",
        code="foreign_page",
    )
