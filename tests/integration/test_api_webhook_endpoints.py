"""The management of webhook endpoints, as SDK 3.x asks for it."""

import asyncio
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai import OpenAI
from sqlalchemy import func, select, update

from models import WebhookEndpoint
from models.database import Database
from models.receiver import Receiver
from models.settings import WebhookSettings
from tests.answers import ok, refusal
from tests.factories import make_key, make_project, make_webhook_endpoint
from tests.fixtures.client import ClientFactory
from tests.fixtures.runtime import Reply, ScriptedServer

PATH = "/v1/webhook_endpoints"
BODY: dict[str, Any] = {
    "name": "my receiver",
    "url": "https://receiver.example/hook?token=s3cret",
    "event_types": ["batch.completed", "batch.failed"],
}
SUPPORTED = "'batch.completed', 'batch.failed', 'batch.expired', and 'batch.cancelled'"


@pytest.fixture(autouse=True)
def names(app: FastAPI) -> dict[str, list[str]]:
    """What names resolve to; public, if nothing else is said."""
    addresses: dict[str, list[str]] = {}

    async def resolve(host: str, _: int) -> list[str]:
        return addresses.get(host, ["93.184.215.14"])

    app.state.receiver = Receiver(WebhookSettings(), resolve=resolve)
    return addresses


async def create(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    return ok(await client.post(PATH, json=BODY | changes))


async def test_an_endpoint_from_start_to_end(api_client: httpx.AsyncClient) -> None:
    made = await create(api_client)
    assert list(made) == [
        "id",
        "object",
        "created_at",
        "updated_at",
        "name",
        "url",
        "event_types",
        "signing_secret_hint",
        "signing_secret",
    ]
    assert re.fullmatch(r"whe_[0-9a-f]{32}", made["id"])
    secret = made.pop("signing_secret")
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{32}", secret)
    assert made["signing_secret_hint"] == f"whsec_****{secret[-4:]}"
    assert made["object"] == "webhook_endpoint"
    assert made["created_at"] == made["updated_at"]
    assert {name: made[name] for name in BODY} == BODY

    path = f"{PATH}/{made['id']}"
    assert ok(await api_client.get(path)) == made
    listed = ok(await api_client.get(PATH))
    assert listed == {
        "object": "list",
        "data": [made],
        "first_id": made["id"],
        "last_id": made["id"],
        "has_more": False,
    }
    assert ok(await api_client.delete(path)) == {
        "id": made["id"],
        "object": "webhook_endpoint.deleted",
        "deleted": True,
    }
    for method in ("GET", "DELETE", "POST"):
        answer = await api_client.request(method, path)
        refusal(answer, 404, f"No webhook endpoint found with id '{made['id']}'.")


async def test_the_events_that_there_are(api_client: httpx.AsyncClient) -> None:
    assert ok(await api_client.get("/v1/webhook_event_types")) == {
        "object": "list",
        "data": ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"],
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "another name"},
        {"url": "https://other.example/"},
        {"event_types": ["batch.expired"]},
        {"name": "a", "url": "https://b.example/", "event_types": ["batch.cancelled"]},
    ],
)
async def test_a_change(
    api_client: httpx.AsyncClient, database: Database, changes: dict[str, Any]
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=1)
    endpoint = await make_webhook_endpoint(database, created_at=long_ago, updated_at=long_ago)
    path = f"{PATH}/{endpoint.id}"
    before = ok(await api_client.get(path))
    changed = ok(await api_client.post(path, json=changes))
    assert changed.pop("updated_at") > before.pop("updated_at")
    assert changed == before | changes
    assert ok(await api_client.get(path)).items() >= changed.items()


@pytest.mark.parametrize("fields", [[], ["name"], ["name", "url", "event_types"]])
async def test_what_changes_nothing_is_no_change(
    api_client: httpx.AsyncClient, database: Database, fields: list[str]
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=1)
    endpoint = await make_webhook_endpoint(database, created_at=long_ago, updated_at=long_ago)
    path = f"{PATH}/{endpoint.id}"
    before = ok(await api_client.get(path))
    same = {name: before[name] for name in fields}
    assert ok(await api_client.post(path, json=same)) == before


async def test_an_event_type_said_twice_counts_once(api_client: httpx.AsyncClient) -> None:
    twice = ["batch.failed", "batch.completed", "batch.failed"]
    made = await create(api_client, event_types=twice)
    assert made["event_types"] == ["batch.failed", "batch.completed"]
    path = f"{PATH}/{made['id']}"
    assert ok(await api_client.post(path, json={"event_types": twice}))["event_types"] == twice[:2]


def invalid_type(param: str, expected: str, got: str) -> tuple[str, str, str]:
    message = f"Invalid type for '{param}': expected {expected}, but got {got} instead."
    return message, "invalid_type", param


def not_supported(param: str, value: str) -> tuple[str, str, str]:
    message = f"Invalid value: '{value}'. Supported values are: {SUPPORTED}."
    return message, "invalid_value", param


def url_refused(reason: str) -> tuple[str, str, str]:
    return f"Invalid 'url': {reason}.", "invalid_value", "url"


EMPTY_ARRAY = (
    (
        "Invalid 'event_types': empty array. Expected an array with minimum length 1, but got an empty"
        " array instead."
    ),
    "empty_array",
    "event_types",
)
# What is wrong with one field, on creation and on a change alike.
FAULTS: list[tuple[dict[str, Any], tuple[str, str, str]]] = [
    ({"name": 5}, invalid_type("name", "a string", "an integer")),
    ({"name": None}, invalid_type("name", "a string", "null")),
    (
        {"name": ""},
        (
            (
                "Invalid 'name': empty string. Expected a string with minimum length 1, but got an empty"
                " string instead."
            ),
            "empty_string",
            "name",
        ),
    ),
    (
        {"name": "x" * 257},
        (
            (
                "Invalid 'name': string too long. Expected a string with maximum length 256, but got a"
                " string with length 257 instead."
            ),
            "string_above_max_length",
            "name",
        ),
    ),
    (
        {"name": "a\0b"},
        ("Invalid 'name': it contains a NUL character.", "invalid_value", "name"),
    ),
    ({"url": ["https://a.example"]}, invalid_type("url", "a string", "an array")),
    ({"url": None}, invalid_type("url", "a string", "null")),
    (
        {"url": "https://a.example/" + "x" * 2031},
        (
            (
                "Invalid 'url': string too long. Expected a string with maximum length 2048, but got a"
                " string with length 2049 instead."
            ),
            "string_above_max_length",
            "url",
        ),
    ),
    ({"url": "http://a.example/"}, url_refused("expected an HTTPS URL")),
    (
        {"url": "https://a.example/\0"},
        url_refused("expected a URL without spaces or control characters"),
    ),
    (
        {"url": "https://inner.example/"},
        url_refused("its host does not resolve to a public address"),
    ),
    ({"event_types": "batch.completed"}, invalid_type("event_types", "an array", "a string")),
    ({"event_types": None}, invalid_type("event_types", "an array", "null")),
    ({"event_types": []}, EMPTY_ARRAY),
    (
        {"event_types": ["batch.failed", 7]},
        invalid_type("event_types[1]", "a string", "an integer"),
    ),
    (
        {"event_types": ["batch.failed", "response.completed"]},
        not_supported("event_types[1]", "response.completed"),
    ),
    ({"mode": 1}, ("Unknown parameter: 'mode'.", "unknown_parameter", "mode")),
]


@pytest.mark.parametrize(("changes", "told"), FAULTS)
async def test_what_is_wrong_with_a_body(
    api_client: httpx.AsyncClient,
    database: Database,
    names: dict[str, list[str]],
    changes: dict[str, Any],
    told: tuple[str, str, str],
) -> None:
    names["inner.example"] = ["10.0.0.1"]
    message, code, param = told
    answer = await api_client.post(PATH, json=BODY | changes)
    refusal(answer, 400, message, code=code, param=param)

    endpoint = await make_webhook_endpoint(database)
    answer = await api_client.post(f"{PATH}/{endpoint.id}", json=changes)
    refusal(answer, 400, message, code=code, param=param)
    assert len(ok(await api_client.get(PATH))["data"]) == 1


@pytest.mark.parametrize("name", BODY)
async def test_what_is_missing(api_client: httpx.AsyncClient, name: str) -> None:
    body = {key: value for key, value in BODY.items() if key != name} | {"mode": 1}
    message = f"Missing required parameter: '{name}'."
    answer = await api_client.post(PATH, json=body)
    refusal(answer, 400, message, code="missing_required_parameter", param=name)


async def test_a_project_has_at_most_twenty(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    other = await make_project(database)
    await make_webhook_endpoint(database, project_pk=other.project_pk)
    for _ in range(17):
        await make_webhook_endpoint(database)
    answers = await asyncio.gather(*(api_client.post(PATH, json=BODY) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [400] * 3
    refusal(
        next(answer for answer in answers if answer.status_code == 400),
        400,
        "A project can have at most 20 webhook endpoints.",
        code="webhook_endpoint_limit_exceeded",
    )


async def test_pages_are_newest_first_and_stable_on_ties(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    moment = datetime.now(UTC)
    made = [(await make_webhook_endpoint(database, created_at=moment)).id for _ in range(7)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 3}
    for has_more in (True, True, False):
        page = ok(await api_client.get(PATH, params=query))
        seen += [endpoint["id"] for endpoint in page["data"]]
        assert page["has_more"] is has_more
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], seen[-1])
        query["after"] = seen[-1]
    assert seen == made[::-1]


async def test_twenty_are_a_page_and_none_an_empty_one(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    for _ in range(21):
        await make_webhook_endpoint(database)
    page = ok(await api_client.get(PATH))
    assert (len(page["data"]), page["has_more"]) == (20, True)
    assert ok(await api_client.get(PATH, params={"limit": 0})) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize("after", ["whe_none", "x" * 300, "a\0b", ""])
async def test_a_bad_after_does_not_restart_from_the_top(
    api_client: httpx.AsyncClient, database: Database, after: str
) -> None:
    await make_webhook_endpoint(database)
    answer = await api_client.get(PATH, params={"after": after})
    message = f"Invalid 'after': no webhook endpoint found with id '{after[:200]}'."
    refusal(answer, 400, message, code="invalid_value", param="after")


@pytest.mark.parametrize(
    ("limit", "message", "code"),
    [
        (
            101,
            "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.",
            "integer_above_max_value",
        ),
        (
            -1,
            "Invalid 'limit': integer below minimum value. Expected a value >= 0, but got -1 instead.",
            "integer_below_min_value",
        ),
    ],
)
async def test_a_limit_out_of_bounds(
    api_client: httpx.AsyncClient, limit: int, message: str, code: str
) -> None:
    answer = await api_client.get(PATH, params={"limit": limit})
    refusal(answer, 400, message, code=code, param="limit")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "{id}"),
        ("POST", "{id}"),
        ("DELETE", "{id}"),
        ("POST", "{id}/rotate_secret"),
        ("POST", "{id}/test"),
        ("GET", "?after={id}"),
    ],
)
async def test_another_projects_endpoint_is_not_found(
    api_client: httpx.AsyncClient, database: Database, method: str, path: str
) -> None:
    mine = await make_webhook_endpoint(database)
    key = await make_key(database, await make_project(database))
    other = {"authorization": f"Bearer {key}"}
    json = {"event_type": "batch.failed"} if path.endswith("test") else None

    texts = set()
    for endpoint_id in (mine.id, "whe_nobodys"):
        url = f"{PATH}/{path}".replace("/?", "?").format(id=endpoint_id)
        answer = await api_client.request(method, url, headers=other, json=json)
        assert answer.status_code == (400 if "after" in path else 404)
        texts.add(answer.text.replace(endpoint_id, "ID"))
    assert len(texts) == 1
    assert ok(await api_client.get(PATH, headers=other))["data"] == []
    async with database.begin() as session:
        kept = await session.scalar(select(WebhookEndpoint))
    assert kept is not None
    assert (kept.id, kept.secret, kept.updated_at) == (mine.id, mine.secret, mine.updated_at)


async def secrets_of(database: Database, endpoint_id: str) -> list[str]:
    async with database.begin() as session:
        endpoint = await session.scalar(
            select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id)
        )
    assert endpoint is not None
    return endpoint.active_secrets(datetime.now(UTC))


@pytest.mark.parametrize("body", [None, {}, {"keep_old_secret_active_for_24_hours": False}])
async def test_a_rotation_ends_the_old_secret_at_once(
    api_client: httpx.AsyncClient, database: Database, body: dict[str, bool] | None
) -> None:
    made = await create(api_client)
    keeping = {"keep_old_secret_active_for_24_hours": True}
    ok(await api_client.post(f"{PATH}/{made['id']}/rotate_secret", json=keeping))
    rotated = ok(await api_client.post(f"{PATH}/{made['id']}/rotate_secret", json=body))
    assert rotated["signing_secret"] != made["signing_secret"]
    assert rotated["signing_secret_hint"] == f"whsec_****{rotated['signing_secret'][-4:]}"
    assert rotated.keys() == made.keys()
    assert await secrets_of(database, made["id"]) == [rotated["signing_secret"]]


async def test_a_rotation_that_keeps_the_old_secret_for_a_day(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    made = await create(api_client)
    keeping = {"keep_old_secret_active_for_24_hours": True}
    rotated = ok(await api_client.post(f"{PATH}/{made['id']}/rotate_secret", json=keeping))
    both = [rotated["signing_secret"], made["signing_secret"]]
    assert await secrets_of(database, made["id"]) == both
    async with database.begin() as session:
        until = await session.scalar(select(WebhookEndpoint.previous_secret_until - func.now()))
        assert until is not None
        assert timedelta(hours=23, minutes=59) < until <= timedelta(hours=24)
        await session.execute(update(WebhookEndpoint).values(previous_secret_until=func.now()))
    assert await secrets_of(database, made["id"]) == both[:1]


@pytest.mark.parametrize(("value", "got"), [("yes", "a string"), (1, "an integer"), (None, "null")])
async def test_a_wish_that_is_no_boolean(
    api_client: httpx.AsyncClient, database: Database, value: object, got: str
) -> None:
    endpoint = await make_webhook_endpoint(database)
    name = "keep_old_secret_active_for_24_hours"
    answer = await api_client.post(f"{PATH}/{endpoint.id}/rotate_secret", json={name: value})
    message, code, param = invalid_type(name, "a boolean", got)
    refusal(answer, 400, message, code=code, param=param)


def allow_private(app: FastAPI, **changes: Any) -> None:
    settings = {"webhook_allow_private": True} | changes
    app.state.receiver = Receiver(WebhookSettings.model_validate(settings))


@pytest.mark.parametrize("status", [200, 204, 302, 404, 500])
async def test_a_test_tells_what_the_receiver_answered(
    api_client: httpx.AsyncClient, app: FastAPI, scripted: ScriptedServer, status: int
) -> None:
    allow_private(app)
    made = await create(api_client, url=scripted.url)
    scripted.replies = [Reply(status, b"")]
    answer = await api_client.post(
        f"{PATH}/{made['id']}/test", json={"event_type": "batch.expired"}
    )
    assert ok(answer) == {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": made["id"],
        "event_type": "batch.expired",
        "status_code": status,
        "success": True,
    }
    (request,) = scripted.requests
    event = OpenAI(api_key="unused").webhooks.unwrap(
        request.body, request.headers, secret=made["signing_secret"]
    )
    assert event.type == "batch.expired"
    assert re.fullmatch(r"batch_[0-9a-f]{32}", event.data.id)
    # A test is no change.
    assert ok(await api_client.get(f"{PATH}/{made['id']}"))["updated_at"] == made["updated_at"]


async def test_a_test_says_the_same_of_every_receiver_that_does_not_answer(
    api_client: httpx.AsyncClient, app: FastAPI, database: Database, scripted: ScriptedServer
) -> None:
    """A port that is closed, one that speaks something else, an inner address: not a word of which."""

    async def test(url: str) -> httpx.Response:
        endpoint = await make_webhook_endpoint(database, url)
        body = {"event_type": "batch.failed"}
        return await api_client.post(f"{PATH}/{endpoint.id}/test", json=body)

    message = "The webhook endpoint did not answer."
    code = "webhook_endpoint_unreachable"
    # Not allowed to go there, as if it had been registered when it was.
    refusal(await test(scripted.url), 400, message, code=code)
    refusal(await test(scripted.url.replace("http:", "https:")), 400, message, code=code)
    assert scripted.accepted == 0
    allow_private(app, webhook_timeout_seconds=1)
    refusal(await test(scripted.url.replace("http:", "https:")), 400, message, code=code)
    refusal(await test("https://nowhere.invalid/"), 400, message, code=code)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            {},
            (
                "Missing required parameter: 'event_type'.",
                "missing_required_parameter",
                "event_type",
            ),
        ),
        ({"event_type": 5}, invalid_type("event_type", "a string", "an integer")),
        ({"event_type": "batch.nothing"}, not_supported("event_type", "batch.nothing")),
        (
            {"event_type": "batch.failed", "x": 1},
            ("Unknown parameter: 'x'.", "unknown_parameter", "x"),
        ),
    ],
)
async def test_a_test_of_nothing(
    api_client: httpx.AsyncClient,
    database: Database,
    body: dict[str, Any],
    told: tuple[str, str, str],
) -> None:
    endpoint = await make_webhook_endpoint(database)
    message, code, param = told
    answer = await api_client.post(f"{PATH}/{endpoint.id}/test", json=body)
    refusal(answer, 400, message, code=code, param=param)


async def test_unknown_parameters_may_be_ignored(
    make_app: Callable[..., FastAPI], make_client: ClientFactory, database: Database
) -> None:
    client = await make_client(make_app(unknown_parameters="ignore"))
    endpoint = await make_webhook_endpoint(database)
    changed = await client.post(f"{PATH}/{endpoint.id}", json={"mode": 1, "name": "new"})
    assert ok(changed)["name"] == "new"
