"""Identifiers as OpenAI shapes them. Opaque to clients, URL-safe, at most 64 characters.

Public ids are random; a line's request id is derived, so that every try of a line, by any worker and
after any restart, carries the same one: it is the upstream's idempotency key.
"""

import hashlib
import secrets
import string
import uuid
from typing import NewType

FileId = NewType("FileId", str)
BatchId = NewType("BatchId", str)
BatchPk = NewType("BatchPk", int)
ShardPk = NewType("ShardPk", int)

ORGANIZATION_ID = "org-overnight"
"""The one organization that there is: what messages and the header `openai-organization` name."""

MAX_LENGTH = 64

_BASE62 = string.ascii_letters + string.digits


def new_file_id() -> FileId:
    """`file-` and 22 base-62 characters (about 131 random bits)."""
    return FileId("file-" + _letters(22))


def new_batch_id() -> BatchId:
    """`batch_` and 32 hexadecimal digits."""
    return BatchId("batch_" + secrets.token_hex(16))


def new_upload_id() -> str:
    """`upload_` and 32 hexadecimal digits."""
    return "upload_" + secrets.token_hex(16)


def new_part_id() -> str:
    """`part_` and 32 hexadecimal digits."""
    return "part_" + secrets.token_hex(16)


def new_project_id() -> str:
    """`proj_` and 24 base-62 characters."""
    return "proj_" + _letters(24)


def new_key_id() -> str:
    """`key_` and 16 base-62 characters: a name for a key, not a part of it."""
    return "key_" + _letters(16)


def new_webhook_endpoint_id() -> str:
    """`whe_` and 32 hexadecimal digits."""
    return "whe_" + secrets.token_hex(16)


def new_webhook_id() -> str:
    """`wh_` and 32 hexadecimal digits: names one event on its way to one receiver."""
    return "wh_" + secrets.token_hex(16)


def new_event_id() -> str:
    """`evt_` and 32 hexadecimal digits: names one event, to whomever it goes."""
    return "evt_" + secrets.token_hex(16)


def could_be_id(text: str) -> bool:
    """Whether an object could have this id at all; what cannot need not be asked of the database."""
    return 0 < len(text) <= MAX_LENGTH and text.isascii() and text.isprintable()


def request_id(batch_id: str, line_no: int) -> str:
    """The id of one line of one batch: `batch_req_` and 32 hexadecimal digits, always the same."""
    return "batch_req_" + _digest(batch_id, line_no)


def fallback_response_id(batch_id: str, line_no: int) -> str:
    """A UUID for `response.request_id`, for an upstream that sends no `x-request-id`."""
    return str(uuid.UUID(_digest(batch_id, line_no)))


def _letters(count: int) -> str:
    return "".join(secrets.choice(_BASE62) for _ in range(count))


def _digest(batch_id: str, line_no: int) -> str:
    return hashlib.blake2b(f"{batch_id}:{line_no}".encode(), digest_size=16).hexdigest()
