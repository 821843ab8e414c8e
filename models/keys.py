"""API keys: made, taken apart, compared. The only place that knows what a key looks like.

    sk-on-<lookup: 16 letters and digits>-<secret: 40 letters and digits>

A secret of about 238 random bits needs no slow hash: nobody can try them all. The salt keeps equal
secrets, should there be any, from looking equal.
"""

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass

_BASE62 = string.ascii_letters + string.digits
_LOOKUP, _SECRET, _SALT_BYTES, _HINT = 16, 40, 16, 4
_KEY = re.compile(rf"sk-on-([0-9A-Za-z]{{{_LOOKUP}}})-[0-9A-Za-z]{{{_SECRET}}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A fresh key: its text, to be shown once, and what is kept of it."""

    text: str
    lookup: str
    salt: bytes
    digest: bytes
    hint: str


def new_key() -> NewKey:
    """A fresh key."""
    lookup, secret = _letters(_LOOKUP), _letters(_SECRET)
    text = f"sk-on-{lookup}-{secret}"
    salt = secrets.token_bytes(_SALT_BYTES)
    return NewKey(text, lookup, salt, _digest(text, salt), text[-_HINT:])


def lookup_of(text: str) -> str | None:
    """The public part of a key; `None` for what cannot be a key of ours."""
    match = _KEY.fullmatch(text)
    return None if match is None else match[1]


def is_key(text: str, *, salt: bytes, digest: bytes) -> bool:
    """Whether this is the key that salt and digest were kept of; takes the same time either way."""
    return hmac.compare_digest(_digest(text, salt), digest)


def _digest(text: str, salt: bytes) -> bytes:
    return hashlib.sha256(salt + text.encode()).digest()


def _letters(count: int) -> str:
    return "".join(secrets.choice(_BASE62) for _ in range(count))
