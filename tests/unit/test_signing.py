"""Signatures: the published vectors, and the official SDK as the judge."""

import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from models.signing import event_body, hint_of, new_secret, sign, signed_headers
from models.webhook import EVENT_TYPES

CLIENT = OpenAI(api_key="unused", base_url="http://127.0.0.1:9")
ENDED = datetime(2026, 5, 4, 3, 2, 1, 987654, tzinfo=UTC)


def event(event_type: str = "batch.completed") -> bytes:
    return event_body(
        event_id="evt_1", event_type=event_type, created_at=ENDED, batch_id="batch_abc123"
    )


@pytest.mark.parametrize(
    ("secret", "webhook_id", "timestamp", "body", "signature"),
    [
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1614265330,
            b'{"test": 2432232314}',
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
        (
            "whsec_plJ3nmyCDGBKInavdOK15jsl",
            "msg_loFOjxBNrRLzqYUf",
            1731705121,
            b'{"event_type":"ping","data":{"success":true}}',
            "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0=",
        ),
    ],
)
def test_published_vectors(
    secret: str, webhook_id: str, timestamp: int, body: bytes, signature: str
) -> None:
    signed = sign(body, webhook_id=webhook_id, timestamp=timestamp, secret=secret)
    assert signed == signature


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_the_official_sdk_unwraps_an_event(event_type: str) -> None:
    secret, body = new_secret(), event(event_type)
    headers = signed_headers(body, webhook_id="wh_1", timestamp=int(time.time()), secrets=[secret])
    unwrapped: Any = CLIENT.webhooks.unwrap(body, headers, secret=secret)
    assert unwrapped.type == event_type
    assert (unwrapped.id, unwrapped.data.id) == ("evt_1", "batch_abc123")
    assert unwrapped.created_at == 1777863721


def test_the_body_has_the_members_of_the_reference_in_its_order() -> None:
    assert list(json.loads(event()).items()) == [
        ("object", "event"),
        ("id", "evt_1"),
        ("type", "batch.completed"),
        ("created_at", 1777863721),
        ("data", {"id": "batch_abc123"}),
    ]


def test_after_a_rotation_either_secret_verifies_and_no_other() -> None:
    new, old, body = new_secret(), new_secret(), event()
    headers = signed_headers(body, webhook_id="wh", timestamp=int(time.time()), secrets=[new, old])
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (new, old):
        CLIENT.webhooks.verify_signature(body, headers, secret=secret)
    with pytest.raises(InvalidWebhookSignatureError):
        CLIENT.webhooks.verify_signature(body, headers, secret=new_secret())


@pytest.mark.parametrize("spoilt", ["body", "webhook-id", "webhook-timestamp"])
def test_what_was_changed_on_the_way_does_not_verify(spoilt: str) -> None:
    secret, body, now = new_secret(), event(), int(time.time())
    headers = signed_headers(body, webhook_id="wh_1", timestamp=now, secrets=[secret])
    if spoilt == "body":
        body = body.replace(b"abc123", b"abc124")
    else:
        headers[spoilt] = {"webhook-id": "wh_2", "webhook-timestamp": str(now + 1)}[spoilt]
    with pytest.raises(InvalidWebhookSignatureError):
        CLIENT.webhooks.verify_signature(body, headers, secret=secret)


def test_a_try_of_long_ago_does_not_verify() -> None:
    secret, body = new_secret(), event()
    headers = signed_headers(
        body, webhook_id="wh_1", timestamp=int(time.time()) - 400, secrets=[secret]
    )
    with pytest.raises(InvalidWebhookSignatureError, match="too old"):
        CLIENT.webhooks.verify_signature(body, headers, secret=secret)


def test_receivers_that_filter_by_user_agent_find_openais() -> None:
    headers = signed_headers(b"{}", webhook_id="wh", timestamp=1, secrets=[new_secret()])
    agent = headers["user-agent"]
    assert agent.startswith("OpenAI/1.0 (+https://platform.openai.com/docs/webhooks)")
    assert headers["content-type"] == "application/json"


def test_a_secret_is_long_random_and_hinted_at_by_its_end_alone() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    for secret in secrets:
        assert len(secret) == len("whsec_") + 32
        assert hint_of(secret) == f"whsec_****{secret[-4:]}"
