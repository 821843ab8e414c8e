"""Standard Webhooks: how an event is written and signed. Pure: nothing here sends or stores.

Promises: the bytes that are signed are the bytes that are sent; whoever holds any one of the secrets
can verify, by the official SDK's `client.webhooks.unwrap` or by any library for Standard Webhooks.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import datetime

import orjson

_PREFIX = "whsec_"
_SECRET_BYTES = 24
_HINT_LETTERS = 4

USER_AGENT = "OpenAI/1.0 (+https://platform.openai.com/docs/webhooks) Overnight"
"""OpenAI's own, because receivers and their firewalls look for how it begins; then who it is really."""


def new_secret() -> str:
    """`whsec_` and 192 random bits in base64."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def hint_of(secret: str) -> str:
    """As much of a secret as helps to tell it from another."""
    return f"{_PREFIX}****{secret[-_HINT_LETTERS:]}"


def event_body(*, event_id: str, event_type: str, created_at: datetime, batch_id: str) -> bytes:
    """The event as it is sent: the batch's id and no more of it."""
    return orjson.dumps(
        {
            "object": "event",
            "id": event_id,
            "type": event_type,
            "created_at": int(created_at.timestamp()),
            "data": {"id": batch_id},
        }
    )


def signed_headers(
    body: bytes, *, webhook_id: str, timestamp: int, secrets: Sequence[str]
) -> dict[str, str]:
    """The headers of one try. With several secrets there are as many signatures; one has to match."""
    signatures = [
        sign(body, webhook_id=webhook_id, timestamp=timestamp, secret=secret) for secret in secrets
    ]
    return {
        "user-agent": USER_AGENT,
        "content-type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def sign(body: bytes, *, webhook_id: str, timestamp: int, secret: str) -> str:
    """`v1,` and the base64 of the HMAC-SHA256 over id, time and body."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
