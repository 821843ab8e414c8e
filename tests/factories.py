"""Rows and files with sensible defaults; a test names only what it is about."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert

from models import ApiKey, Batch, File, Project, Result, Shard, WebhookEndpoint
from models.database import Database
from models.ids import (
    new_batch_id,
    new_file_id,
    new_key_id,
    new_project_id,
    new_webhook_endpoint_id,
)
from models.keys import new_key
from models.lifecycle import BatchStatus, ShardState
from models.lines import Endpoint
from models.project import DEFAULT_PROJECT_PK, Caller
from models.signing import new_secret
from models.storage import open_upload
from models.webhook import EVENT_TYPES

_PASSED = {
    BatchStatus.VALIDATING: (),
    BatchStatus.FAILED: ("failed_at",),
    BatchStatus.IN_PROGRESS: ("in_progress_at",),
    BatchStatus.FINALIZING: ("in_progress_at", "finalizing_at"),
    BatchStatus.COMPLETED: ("in_progress_at", "finalizing_at", "completed_at"),
    BatchStatus.EXPIRED: ("in_progress_at", "finalizing_at", "expired_at"),
    BatchStatus.CANCELLING: ("in_progress_at", "cancelling_at"),
    BatchStatus.CANCELLED: ("in_progress_at", "cancelling_at", "cancelled_at"),
}


def input_line(number: int = 1, /, **changes: Any) -> dict[str, Any]:
    """One good line of an input file; `changes` replace its members."""
    body = {"model": "m", "messages": [{"role": "user", "content": f"question {number}"}]}
    line = {
        "custom_id": f"request-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
    }
    return line | changes


def json_lines(*lines: object) -> bytes:
    """JSON lines, each with its end."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def input_file(count: int = 3) -> bytes:
    """An input file of so many good lines."""
    return json_lines(*(input_line(number) for number in range(1, count + 1)))


async def make_file(
    database: Database,
    content: bytes | None = None,
    *,
    purpose: str = "batch",
    filename: str = "input.jsonl",
    **values: Any,
) -> File:
    """A visible file; `values` are its other columns (`expires_at`, `deleted_at`, `created_at`)."""
    file = File(id=values.pop("id", new_file_id()), purpose=purpose, filename=filename)
    upload = await open_upload(database, file)
    await upload.write(input_file() if content is None else content)
    return await upload.publish(**values)


async def make_project(database: Database, name: str = "other", **values: Any) -> Caller:
    """A project that is not the default one, as its keys' requests see it."""
    columns = {"id": new_project_id(), "name": name} | values
    async with database.begin() as session:
        made = await session.scalar(insert(Project).values(columns).returning(Project))
    assert made is not None
    return Caller(made.pk, made.id)


async def make_key(database: Database, caller: Caller, **values: Any) -> str:
    """A key of a project: its text."""
    key = new_key()
    columns = {
        "id": new_key_id(),
        "project_pk": caller.project_pk,
        "lookup": key.lookup,
        "salt": key.salt,
        "digest": key.digest,
        "hint": key.hint,
    }
    async with database.begin() as session:
        await session.execute(insert(ApiKey).values(columns | values))
    return key.text


async def make_webhook_endpoint(
    database: Database, url: str = "https://receiver.example/hook", **values: Any
) -> WebhookEndpoint:
    """An endpoint for all events; of the default project, unless `project_pk` says otherwise."""
    columns = {
        "id": new_webhook_endpoint_id(),
        "project_pk": DEFAULT_PROJECT_PK,
        "name": "receiver",
        "url": url,
        "event_types": list(EVENT_TYPES),
        "secret": new_secret(),
    }
    async with database.begin() as session:
        made: WebhookEndpoint | None = await session.scalar(
            insert(WebhookEndpoint).values(columns | values).returning(WebhookEndpoint)
        )
    assert made is not None
    return made


async def make_batch(
    database: Database,
    *,
    status: BatchStatus = BatchStatus.VALIDATING,
    window: timedelta = timedelta(hours=24),
    **values: Any,
) -> Batch:
    """A batch in any status, with the timestamps that this status asks for."""
    created_at = values.pop("created_at", datetime.now(UTC))
    columns = {
        "id": new_batch_id(),
        "endpoint": Endpoint.CHAT_COMPLETIONS.value,
        "completion_window": "24h",
        "input_file_id": new_file_id(),
        "status": status.value,
        "created_at": created_at,
        "expires_at": created_at + window,
    }
    columns |= dict.fromkeys(_PASSED[status], created_at)
    async with database.begin() as session:
        made: Batch | None = await session.scalar(
            insert(Batch).values(columns | values).returning(Batch)
        )
    assert made is not None
    return made


async def make_shard(
    database: Database,
    batch: Batch,
    *,
    no: int = 0,
    line_numbers: list[int] | None = None,
    state: ShardState = ShardState.QUEUED,
    **values: Any,
) -> Shard:
    """A shard of a batch; where its lines are in the file matters only to tests that say so."""
    numbers = [1, 2, 3] if line_numbers is None else line_numbers
    columns: dict[str, Any] = {
        "batch_pk": batch.pk,
        "no": no,
        "line_numbers": numbers,
        "offsets": [100 * index for index in range(len(numbers))],
        "lengths": [99] * len(numbers),
        "size": len(numbers),
        "state": state.value,
    }
    if state is ShardState.RUNNING:
        columns |= {
            "lease_owner": "somebody",
            "lease_until": datetime.now(UTC) + timedelta(seconds=60),
            "claims": 1,
        }
    if state is ShardState.DONE:
        columns |= {"succeeded": len(numbers)}
    async with database.begin() as session:
        made: Shard | None = await session.scalar(
            insert(Shard).values(columns | values).returning(Shard)
        )
    assert made is not None
    return made


async def make_result(
    database: Database, batch: Batch, line_no: int = 1, *, succeeded: bool = True, **values: Any
) -> None:
    """The result of one line."""
    columns = {
        "batch_pk": batch.pk,
        "line_no": line_no,
        "succeeded": succeeded,
        "line": json_lines({"custom_id": f"request-{line_no}"}),
        "input_tokens": 3,
        "cached_tokens": 1,
        "output_tokens": 2,
        "reasoning_tokens": 1,
        "total_tokens": 5,
    }
    async with database.begin() as session:
        await session.execute(insert(Result).values(columns | values))
