"""Section 9: webhook endpoints, and what arrives at them."""

import json
import time
from typing import Any

import httpx
import openai
from openai.types.webhooks import (
    BatchCancelledWebhookEvent,
    BatchCompletedWebhookEvent,
    BatchExpiredWebhookEvent,
    BatchFailedWebhookEvent,
)

from tests.conformance.kit.case import case
from tests.conformance.kit.cases.lifecycle import run_of
from tests.conformance.kit.expect import fits, is_time, json_of, ok, raises, same
from tests.conformance.kit.hooks import EVENT_TYPES, signature
from tests.conformance.kit.receiver import Delivery
from tests.conformance.kit.server import PATIENCE_SECONDS, ids, pages
from tests.conformance.kit.subject import Subject

_ENDS = {
    "clean": ("batch.completed", BatchCompletedWebhookEvent),
    "failed": ("batch.failed", BatchFailedWebhookEvent),
    "cancelled": ("batch.cancelled", BatchCancelledWebhookEvent),
    "expired": ("batch.expired", BatchExpiredWebhookEvent),
}
_ROWS = [{"name": name} for name in _ENDS]
_SHOWN = {"id", "object", "created_at", "updated_at", "name", "url", "event_types"}


def _delivery(server: Subject, name: str) -> Delivery:
    batch = run_of(server, name).ended()
    return server.hooks.delivery(_ENDS[name][0], batch["id"])


def _make(server: Subject, name: str, **changes: Any) -> dict[str, Any]:
    body = {"name": name, "url": "https://example.com/hook", "event_types": ["batch.completed"]}
    endpoint: dict[str, Any] = ok(server.post("webhook_endpoints", body | changes))
    return endpoint


def _remove(server: Subject, *endpoints: dict[str, Any]) -> None:
    for endpoint in endpoints:
        server.http.delete(f"webhook_endpoints/{endpoint['id']}")


def _own_endpoint(server: Subject, path: str) -> dict[str, Any]:
    """An endpoint to which nothing comes but its tests: no batch will expire any more."""
    assert server.runs["expired"].done.wait(PATIENCE_SECONDS), "a batch has not ended"
    return server.hooks.new_endpoint(path)


def _test(
    server: Subject, endpoint: dict[str, Any], event_type: str = "batch.completed"
) -> httpx.Response:
    return server.post(f"webhook_endpoints/{endpoint['id']}/test", {"event_type": event_type})


@case("9.1", "the event of a batch that is {name}", rows=_ROWS)
def each_event(server: Subject, name: str) -> None:
    event = json.loads(_delivery(server, name).body)
    same(event["type"], _ENDS[name][0], "the type")


@case("9.2", "the headers of a delivery")
def the_headers(server: Subject) -> None:
    headers = _delivery(server, "clean").headers
    fits(headers.get("user-agent"), "OpenAI/1\\.0 .*", "user-agent")
    fits(headers.get("content-type"), "application/json.*", "content-type")
    fits(headers.get("webhook-id"), "wh_.+|msg_.+", "webhook-id")
    fits(headers.get("webhook-timestamp"), "[0-9]{10}", "webhook-timestamp")
    fits(
        headers.get("webhook-signature"),
        "v1,[A-Za-z0-9+/]{43}=( v1,[A-Za-z0-9+/]{43}=)*",
        "the signature",
    )


@case("9.3", "the body of a delivery: {name}", rows=_ROWS)
def the_body(server: Subject, name: str) -> None:
    event = json.loads(_delivery(server, name).body)
    same(set(event), {"object", "id", "type", "created_at", "data"}, "the keys")
    same((event["object"], event["data"]), ("event", {"id": run_of(server, name).created["id"]}))
    fits(event["id"], "evt_.+", "the id")
    is_time(event["created_at"], "created_at")
    _ENDS[name][1].model_validate(event)


@case("9.4", "the signature of a delivery: {name}", rows=_ROWS)
def the_signature(server: Subject, name: str) -> None:
    delivery = _delivery(server, name)
    wanted = signature(server.hooks.endpoint()["signing_secret"], delivery)
    assert wanted in delivery.headers["webhook-signature"].split(" "), "it is not the right one"


@case("9.5", "client.webhooks.unwrap accepts: {name}", rows=_ROWS)
def the_sdk_accepts(server: Subject, name: str) -> None:
    delivery = _delivery(server, name)
    secret = server.hooks.endpoint()["signing_secret"]
    # It compares the time of signing with now; the delivery may be minutes old by this time.
    server.sdk.webhooks.verify_signature(
        delivery.body, delivery.headers, secret=secret, tolerance=3600
    )
    if time.time() - int(delivery.headers["webhook-timestamp"]) < 240:
        event = server.sdk.webhooks.unwrap(delivery.body, delivery.headers, secret=secret)
        same(event.type, _ENDS[name][0], "the type")


@case("9.5", "another secret is not accepted")
def another_secret(server: Subject) -> None:
    delivery = _delivery(server, "clean")
    wrong = "whsec_bm90IHRoZSByaWdodCBvbmU="
    raises(
        openai.InvalidWebhookSignatureError,
        lambda: server.sdk.webhooks.verify_signature(
            delivery.body, delivery.headers, secret=wrong, tolerance=3600
        ),
    )


@case("9.6", "both secrets sign after a rotation that keeps the old one", also=["9.15"])
def two_signatures(server: Subject) -> None:
    endpoint = _own_endpoint(server, "/rotated")
    rotated = ok(
        server.post(
            f"webhook_endpoints/{endpoint['id']}/rotate_secret",
            {"keep_old_secret_active_for_24_hours": True},
        )
    )
    ok(_test(server, endpoint))
    [delivery] = server.hooks.receiver.wait_for("/rotated", lambda _: True)[:1]
    _remove(server, endpoint)
    found = delivery.headers["webhook-signature"].split(" ")
    for secret in (endpoint["signing_secret"], rotated["signing_secret"]):
        assert signature(secret, delivery) in found, "one signature is missing"


@case("9.6", "only the new secret signs after a rotation that does not")
def one_signature(server: Subject) -> None:
    endpoint = _own_endpoint(server, "/replaced")
    rotated = ok(
        server.post(
            f"webhook_endpoints/{endpoint['id']}/rotate_secret",
            {"keep_old_secret_active_for_24_hours": False},
        )
    )
    ok(_test(server, endpoint))
    [delivery] = server.hooks.receiver.wait_for("/replaced", lambda _: True)[:1]
    _remove(server, endpoint)
    same(delivery.headers["webhook-signature"], signature(rotated["signing_secret"], delivery))


@case("9.7", "a redirect is a failure, and not followed")
def a_redirect(server: Subject) -> None:
    endpoint = _own_endpoint(server, "/moved")
    server.hooks.receiver.first_answers["/moved"] = 302
    tested = _test(server, endpoint)
    _remove(server, endpoint)
    found = [one.path for one in server.hooks.receiver.deliveries]
    assert "/moved" in found, "nothing was delivered"
    assert "/redirected" not in found, "the redirect was followed"
    if tested.status_code == 200:
        same(tested.json()["status_code"], 302, "the status of the test")


@case(
    "9.7",
    "any 2xx is success: {status}",
    also=["9.16"],
    rows=[{"status": s} for s in (200, 202, 204)],
)
def any_success(server: Subject, status: int) -> None:
    endpoint = _own_endpoint(server, f"/status-{status}")
    server.hooks.receiver.first_answers[f"/status-{status}"] = status
    tested = ok(_test(server, endpoint))
    _remove(server, endpoint)
    same((tested["success"], tested["status_code"]), (True, status))


@case(
    "9.8",
    "a delivery that was answered {status} is tried again with the same webhook-id",
    also=["9.7", "9.9"],
    rows=[{"status": 500}, {"status": 302}],
)
def a_second_try(server: Subject, status: int) -> None:
    path = f"/again-{status}"
    endpoint = server.hooks.new_endpoint(path, event_types=["batch.failed"])
    server.hooks.receiver.first_answers[path] = status
    batch = server.create()
    server.ended(batch["id"])

    def of_it(delivery: Delivery) -> bool:
        found: bool = json.loads(delivery.body)["data"]["id"] == batch["id"]
        return found

    tries = server.hooks.receiver.wait_for(path, of_it, count=2, seconds=90)
    _remove(server, endpoint)
    same(tries[0].headers["webhook-id"], tries[1].headers["webhook-id"], "webhook-id")
    same(tries[0].body, tries[1].body, "the body")


@case("9.11", "a new endpoint")
def a_new_endpoint(server: Subject) -> None:
    endpoint = _make(server, "new")
    _remove(server, endpoint)
    same(set(endpoint), _SHOWN | {"signing_secret", "signing_secret_hint"}, "the set of fields")
    same((endpoint["object"], endpoint["name"]), ("webhook_endpoint", "new"))
    same(
        (endpoint["url"], endpoint["event_types"]),
        ("https://example.com/hook", ["batch.completed"]),
    )
    fits(endpoint["signing_secret"], "whsec_[A-Za-z0-9+/=]{24,}", "the secret")
    is_time(endpoint["created_at"], "created_at")


@case("9.11", "the secret is shown once", also=["9.13"])
def the_secret_is_shown_once(server: Subject) -> None:
    endpoint = _make(server, "secret")
    shown = ok(server.http.get(f"webhook_endpoints/{endpoint['id']}"))
    listed = ok(server.http.get("webhook_endpoints"))
    _remove(server, endpoint)
    for text in (json.dumps(shown), json.dumps(listed)):
        assert endpoint["signing_secret"] not in text, "it is shown again"
    # `whsec_****abcd`, or the end alone.
    hint = shown["signing_secret_hint"]
    assert endpoint["signing_secret"].endswith(hint[-4:]), f"the hint is {hint!r}"
    assert len(hint.replace("*", "")) < 16, "the hint tells too much"


@case("9.12", "newest first, page by page")
def endpoints_are_listed(server: Subject) -> None:
    made = [_make(server, f"page-{number}") for number in range(3)]
    walked = [item for page in pages(server.http, "webhook_endpoints", 2) for item in page["data"]]
    page = ok(server.http.get("webhook_endpoints"))
    _remove(server, *made)
    same(ids(walked)[:3], ids(made)[::-1], "the newest")
    same(set(page), {"object", "data", "first_id", "last_id", "has_more"}, "the keys")
    same((page["first_id"], page["last_id"]), (page["data"][0]["id"], page["data"][-1]["id"]))


@case("9.12", "an unknown after", also=["7.6"])
def endpoints_after_nothing(server: Subject) -> None:
    response = server.http.get("webhook_endpoints", params={"after": "none"})
    same(response.status_code, 400, "the status")
    same(json_of(response)["error"]["param"], "after", "the param")


@case("9.13", "an endpoint is shown and changed")
def an_endpoint_is_changed(server: Subject) -> None:
    endpoint = _make(server, "old name")
    path = f"webhook_endpoints/{endpoint['id']}"
    changed = ok(server.post(path, {"name": "new name", "event_types": ["batch.failed"]}))
    shown = ok(server.http.get(path))
    _remove(server, endpoint)
    same((changed["name"], changed["event_types"]), ("new name", ["batch.failed"]))
    same((changed["url"], changed["id"]), (endpoint["url"], endpoint["id"]), "what was not changed")
    same(shown["name"], "new name", "the name that is shown")
    assert "signing_secret" not in changed or changed["signing_secret"] is None, (
        "the secret is shown"
    )


@case("9.14", "a deleted endpoint is gone")
def an_endpoint_is_deleted(server: Subject) -> None:
    endpoint = _make(server, "gone")
    path = f"webhook_endpoints/{endpoint['id']}"
    deleted = ok(server.http.delete(path))
    same(deleted, {"id": endpoint["id"], "object": "webhook_endpoint.deleted", "deleted": True})
    same(server.http.get(path).status_code, 404, "the status afterwards")
    same(server.http.delete(path).status_code, 404, "the status of a second deletion")


@case("9.15", "a rotation shows the new secret")
def a_rotation(server: Subject) -> None:
    endpoint = _make(server, "rotated")
    rotated = ok(server.post(f"webhook_endpoints/{endpoint['id']}/rotate_secret", {}))
    _remove(server, endpoint)
    fits(rotated["signing_secret"], "whsec_[A-Za-z0-9+/=]{24,}", "the secret")
    assert rotated["signing_secret"] != endpoint["signing_secret"], "it is the old one"


@case("9.16", "a test of {event_type}", rows=[{"event_type": e} for e in EVENT_TYPES])
def a_test(server: Subject, event_type: str) -> None:
    path = f"/test-{event_type}"
    endpoint = _own_endpoint(server, path)
    tested = ok(_test(server, endpoint, event_type))
    _remove(server, endpoint)
    wanted = {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": endpoint["id"],
        "event_type": event_type,
        "status_code": 200,
        "success": True,
    }
    same(tested, wanted, "the answer")
    [delivery] = server.hooks.receiver.wait_for(path, lambda _: True)
    same(json.loads(delivery.body)["type"], event_type, "the type")


@case("9.17", "the event types")
def the_event_types(server: Subject) -> None:
    listed = ok(server.http.get("webhook_event_types"))
    same((listed["object"], set(listed)), ("list", {"object", "data"}), "the list")
    assert set(EVENT_TYPES) <= set(listed["data"]), "some are missing"


@case(
    "9.13",
    "{method} /webhook_endpoints/{name}",
    also=["1.18"],
    rows=[
        {"method": method, "name": "webhook_none" + rest}
        for method, rest in (("GET", ""), ("POST", ""), ("DELETE", ""), ("POST", "/rotate_secret"))
    ],
)
def an_unknown_endpoint(server: Subject, method: str, name: str) -> None:
    body: dict[str, Any] | None = {} if method == "POST" else None
    response = server.http.request(method, f"webhook_endpoints/{name}", json=body)
    same(response.status_code, 404, "the status")
    same(json_of(response)["error"]["type"], "invalid_request_error", "the type")


@case(
    "9.11",
    "no URL: {url}",
    rows=[{"url": u} for u in ("", "example.com", "ftp://example.com/", "http://", "javascript:x")],
)
def no_url(server: Subject, url: str) -> None:
    body = {"name": "kit", "url": url, "event_types": ["batch.completed"]}
    response = server.post("webhook_endpoints", body)
    if response.status_code == 200:
        _remove(server, response.json())
    same(response.status_code, 400, "the status")
    same(json_of(response)["error"]["param"], "url", "the param")
