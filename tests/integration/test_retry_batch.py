"""Retrying what failed: a new batch of exactly the failed lines, or nothing at all."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, func, select, update

from api.services import retries
from models import Batch, File, FileChunk, IdempotencyKey
from models.database import Database
from models.ids import request_id
from models.lifecycle import FINAL, BatchStatus
from models.lines import BATCH_EXPIRED, render_failure
from models.queries import advance
from models.reading import PlacedLine
from models.storage import read_lines
from tests.answers import ok, refusal
from tests.factories import (
    input_file,
    input_line,
    json_lines,
    make_batch,
    make_file,
    make_key,
    make_project,
)
from tests.fixtures.client import AppFactory, ClientFactory, RecordingBell
from tests.fixtures.runtime import (
    Reply,
    Request,
    ScriptedServer,
    all_lines_of,
    read_file,
    run_to_end,
    started_batch,
)
from tests.running import GOOD, question
from worker.runtime import Runtime
from worker.stages.finalize import finalize_batch
from worker.stages.sweep import sweep
from worker.stages.validate import validate_batch


async def ask(client: httpx.AsyncClient, batch: Batch, **body: Any) -> httpx.Response:
    return await client.post(f"/v1/batches/{batch.id}/retry", json=body)


async def row(database: Database, batch_id: str) -> Batch:
    async with database.begin() as session:
        return (await session.scalars(select(Batch).where(Batch.id == batch_id))).one()


async def count(database: Database, table: type) -> int:
    async with database.begin() as session:
        return await session.scalar(select(func.count()).select_from(table)) or 0


async def ended_batch(database: Database, content: bytes, *failed: int, **values: Any) -> Batch:
    """A batch that has completed, with these lines of its input in the error file."""
    file = await make_file(database, content)
    batch = await make_batch(database, input_file_id=file.id, input_file_pk=file.pk, **values)
    lines = [
        render_failure(
            request_id=request_id(batch.id, line_no),
            custom_id=f"request-{line_no}",
            code=BATCH_EXPIRED[0],
            message=BATCH_EXPIRED[1],
        )
        for line_no in failed
    ]
    errors = await make_file(database, b"".join(lines), purpose="batch_output")
    async with database.begin() as session:
        assert await advance(session, batch.pk, BatchStatus.IN_PROGRESS)
        assert await advance(session, batch.pk, BatchStatus.FINALIZING)
        assert await advance(
            session, batch.pk, BatchStatus.EXPIRED, error_file_id=errors.id if failed else None
        )
    return await row(database, batch.id)


async def test_what_failed_succeeds_the_second_time(
    scripted_runtime: Runtime, scripted: ScriptedServer, api_client: httpx.AsyncClient
) -> None:
    """From one end to the other, through every stage."""

    async def refuse_even(request: Request) -> Reply:
        is_even = int(question(request).split()[1]) % 2 == 0
        return Reply(400, b'{"error": {"message": "no"}}') if is_even else Reply(body=GOOD)

    scripted.script = refuse_even
    database = scripted_runtime.database
    content = input_file(12)
    first = await run_to_end(scripted_runtime, await started_batch(scripted_runtime, content))
    assert (first.status, first.completed, first.failed) == (BatchStatus.COMPLETED, 6, 6)

    answer = ok(await ask(api_client, first))
    scripted.script = None
    second = await row(database, answer["id"])
    await validate_batch(scripted_runtime, second.pk)
    second = await run_to_end(scripted_runtime, second)
    assert (second.status, second.completed, second.failed) == (BatchStatus.COMPLETED, 6, 0)
    assert set(await all_lines_of(database, second)) == {f"request-{n}" for n in range(2, 13, 2)}
    assert ok(await api_client.get(f"/v1/batches/{first.id}"))["status"] == "completed"


async def test_what_never_ran_is_retried_too(
    runtime: Runtime, api_client: httpx.AsyncClient
) -> None:
    database = runtime.database
    batch = await started_batch(runtime, input_file(12))
    ok(await api_client.post(f"/v1/batches/{batch.id}/cancel"))
    await finalize_batch(runtime, batch.pk)
    batch = await row(database, batch.id)
    assert batch.status == BatchStatus.CANCELLED
    retried = await row(database, ok(await ask(api_client, batch))["id"])
    assert await read_file(database, retried.input_file_id) == input_file(12)


async def test_the_new_batch_is_like_the_old_one(
    api_client: httpx.AsyncClient, database: Database, bell: RecordingBell
) -> None:
    old = await ended_batch(
        database,
        input_file(3),
        2,
        metadata_={"k": "v"},
        output_expires_after_seconds=7200,
        endpoint="/v1/chat/completions",
    )
    answer = ok(await ask(api_client, old))
    assert list(answer) == list(ok(await api_client.get(f"/v1/batches/{old.id}")))
    assert answer["id"] != old.id
    assert answer["status"] == "validating"
    assert (answer["endpoint"], answer["completion_window"]) == (old.endpoint, "24h")
    assert answer["metadata"] == {"k": "v"}
    assert answer["expires_at"] - answer["created_at"] == pytest.approx(86400, abs=1)
    new = await row(database, answer["id"])
    assert (new.retry_of, new.output_expires_after_seconds) == (old.id, 7200)
    assert bell.rings == [("validate", new.pk)]
    file = ok(await api_client.get(f"/v1/files/{answer['input_file_id']}"))
    assert (file["purpose"], file["filename"]) == ("batch", f"{old.id}_retry.jsonl")
    assert file["expires_at"] - file["created_at"] == 30 * 24 * 3600
    content = await api_client.get(f"/v1/files/{file['id']}/content")
    assert content.content == json_lines(input_line(2))


async def test_what_the_body_says_is_otherwise(
    make_app: AppFactory, make_client: ClientFactory, database: Database
) -> None:
    client = await make_client(make_app(completion_windows="24h,1h"))
    old = await ended_batch(
        database, input_file(3), 2, metadata_={"k": "v"}, output_expires_after_seconds=7200
    )
    expiry = {"anchor": "created_at", "seconds": 3600}
    answer = ok(
        await ask(
            client,
            old,
            completion_window="1h",
            metadata={"other": "x"},
            output_expires_after=expiry,
        )
    )
    assert (answer["completion_window"], answer["metadata"]) == ("1h", {"other": "x"})
    assert answer["expires_at"] - answer["created_at"] == pytest.approx(3600, abs=1)
    assert (await row(database, answer["id"])).output_expires_after_seconds == 3600
    nothing = dict.fromkeys(["completion_window", "metadata", "output_expires_after"])
    answer = ok(await ask(client, old, **nothing))
    assert (answer["completion_window"], answer["metadata"]) == ("24h", None)
    assert (await row(database, answer["id"])).output_expires_after_seconds is None


async def test_lines_are_copied_as_they_were_written(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    """Blank lines count, a byte-order mark does not, and nothing is parsed on the way."""
    odd = b'{"custom_id": "request-3",   "n": 1.0e0, "u": "\\u00e9", "e": "\xc3\xa9" }'
    content = b"\xef\xbb\xbf" + b'{"custom_id": "request-1"}\n\n' + odd + b"\r\n  \n{}"
    old = await ended_batch(database, content, 3, 5)
    answer = ok(await ask(api_client, old))
    assert await read_file(database, answer["input_file_id"]) == odd + b"\r\n{}\n"


async def test_many_lines_over_many_pieces(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    content = json_lines(*(input_line(n, padding="x" * (n % 7 * 300)) for n in range(1, 3001)))
    failed = [n for n in range(1, 3001) if n % 3 == 0 or n > 2900]
    old = await ended_batch(database, content, *failed)
    answer = ok(await ask(api_client, old))
    lines = (await read_file(database, answer["input_file_id"])).splitlines(keepends=True)
    original = content.splitlines(keepends=True)
    assert lines == [original[n - 1] for n in failed]


@pytest.mark.parametrize("status", sorted({*BatchStatus} - {*FINAL} | {BatchStatus.FAILED}))
async def test_a_batch_that_has_not_run_to_its_end(
    api_client: httpx.AsyncClient, database: Database, status: BatchStatus
) -> None:
    batch = await make_batch(database, status=status)
    answer = await ask(api_client, batch)
    refusal(answer, 409, f"Cannot retry a batch with status '{status}'.")
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("status", sorted(FINAL - {BatchStatus.FAILED}))
async def test_nothing_failed(
    api_client: httpx.AsyncClient, database: Database, status: BatchStatus
) -> None:
    batch = await make_batch(database, status=status)
    answer = await ask(api_client, batch)
    refusal(answer, 409, f"Batch '{batch.id}' has no failed requests to retry.")
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("which", ["input", "error"])
@pytest.mark.parametrize("is_purged", [False, True])
async def test_a_file_is_gone(
    api_client: httpx.AsyncClient, runtime: Runtime, which: str, is_purged: bool
) -> None:
    database = runtime.database
    old = await ended_batch(database, input_file(3), 2)
    file_id = old.input_file_id if which == "input" else old.error_file_id
    ok(await api_client.delete(f"/v1/files/{file_id}"))
    if is_purged:
        await sweep(runtime)
    message = (
        f"The {which} file '{file_id}' of this batch does not exist any more, so its failed"
        " requests cannot be retried."
    )
    refusal(await ask(api_client, old), 400, message, code="file_not_found")
    assert (await count(database, Batch), await count(database, File)) == (1, 2)


async def test_the_input_is_deleted_and_purged_in_mid_copy(
    api_client: httpx.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json_lines(*(input_line(n, padding="x" * 30_000) for n in range(1, 201)))
    old = await ended_batch(database, content, *range(1, 201))

    async def read_and_purge(
        database: Database, file: File, *, max_line_bytes: int
    ) -> AsyncIterator[list[PlacedLine]]:
        async for lines in read_lines(database, file, max_line_bytes=max_line_bytes):
            yield lines
            if file.purpose == "batch":
                async with database.begin() as session:
                    await session.execute(delete(FileChunk).where(FileChunk.file_pk == file.pk))

    monkeypatch.setattr(retries, "read_lines", read_and_purge)
    answer = await ask(api_client, old)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "file_not_found"
    # Neither a batch nor half a file.
    assert (await count(database, Batch), await count(database, File)) == (1, 2)


async def test_the_input_is_deleted_at_the_same_time(
    api_client: httpx.AsyncClient, runtime: Runtime
) -> None:
    """Whoever comes first: a whole new batch or none."""
    database = runtime.database
    content = json_lines(*(input_line(n, padding="x" * 3000) for n in range(1, 1001)))
    for _ in range(3):
        old = await ended_batch(database, content, *range(2, 1001, 2))
        answer, deleted, _ = await asyncio.gather(
            ask(api_client, old),
            api_client.delete(f"/v1/files/{old.input_file_id}"),
            sweep(runtime),
        )
        ok(deleted)
        if answer.status_code == 200:
            copied = await read_file(database, answer.json()["input_file_id"])
            assert copied.splitlines(keepends=True) == content.splitlines(keepends=True)[1::2]
        else:
            assert answer.json()["error"]["code"] == "file_not_found"


async def test_a_repeated_retry_answers_the_same_batch(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    old = await ended_batch(database, input_file(3), 2)
    other = await ended_batch(database, input_file(3), 2)
    url, key = f"/v1/batches/{old.id}/retry", {"idempotency-key": "key-1"}
    answers = await asyncio.gather(*(api_client.post(url, headers=key) for _ in range(4)))
    [batch_id] = {ok(answer)["id"] for answer in answers}
    assert ok(await api_client.post(url, headers=key, json={}))["id"] == batch_id
    # Two inputs, two error files, and one copy.
    assert (await count(database, Batch), await count(database, File)) == (3, 5)
    for request in (
        api_client.post(url, headers=key, json={"metadata": None}),
        api_client.post(f"/v1/batches/{other.id}/retry", headers=key),
    ):
        answer = await request
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "idempotency_key_reused"
    # Without a key each makes another one.
    assert ok(await api_client.post(url))["id"] != batch_id
    # The answer is there even when what it was made of is not.
    ok(await api_client.delete(f"/v1/files/{old.input_file_id}"))
    assert ok(await api_client.post(url, headers=key))["id"] == batch_id


@pytest.mark.parametrize(
    ("limits", "status"), [({"max_batches_per_hour": 1}, 429), ({"max_stored_bytes": 1}, 400)]
)
async def test_limits_hold_for_retries(
    make_app: AppFactory,
    make_client: ClientFactory,
    database: Database,
    limits: dict[str, int],
    status: int,
) -> None:
    client = await make_client(make_app(**limits))
    old = await ended_batch(database, input_file(3), 2)
    headers = {"idempotency-key": "key-1"}
    answer = await client.post(f"/v1/batches/{old.id}/retry", headers=headers)
    assert answer.status_code == status
    assert (await count(database, Batch), await count(database, File)) == (1, 2)
    assert await count(database, IdempotencyKey) == 0


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"completion_window": "1h"}, "invalid_value", "completion_window"),
        ({"completion_window": 1}, "invalid_type", "completion_window"),
        ({"input_file_id": "file-1"}, "unknown_parameter", "input_file_id"),
        ({"metadata": {"k": 1}}, "invalid_type", "metadata.k"),
        ({"output_expires_after": {}}, "missing_required_parameter", "output_expires_after.anchor"),
    ],
)
async def test_a_body_that_is_refused(
    api_client: httpx.AsyncClient, database: Database, body: Any, code: str, param: str
) -> None:
    old = await ended_batch(database, input_file(3), 2)
    answer = await ask(api_client, old, **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)


async def test_a_window_that_is_not_allowed_any_more(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    old = await ended_batch(database, input_file(3), 2, completion_window="7d")
    message = "Invalid value: '7d'. Supported values are: '24h'."
    answer = await ask(api_client, old)
    refusal(answer, 400, message, code="invalid_value", param="completion_window")
    ok(await ask(api_client, old, completion_window="24h"))


async def test_another_projects_batch_is_not_found(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    old = await ended_batch(database, input_file(3), 2)
    bearer = await make_key(database, await make_project(database))
    for headers in ({}, {"idempotency-key": "key-1"}):
        answer = await api_client.post(
            f"/v1/batches/{old.id}/retry",
            headers={"authorization": f"Bearer {bearer}"} | headers,
        )
        refusal(answer, 404, f"No batch found with id '{old.id}'.")
    assert await count(database, Batch) == 1


async def test_a_retry_belongs_to_the_project_of_its_batch(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    caller = await make_project(database)
    headers = {"authorization": f"Bearer {await make_key(database, caller)}"}
    old = await ended_batch(database, input_file(3), 2)
    theirs = await ended_batch(database, input_file(3), 1, project_pk=caller.project_pk)
    async with database.begin() as session:
        await session.execute(update(File).values(project_pk=caller.project_pk))
    answer = ok(await api_client.post(f"/v1/batches/{theirs.id}/retry", headers=headers))
    new = await row(database, answer["id"])
    assert new.project_pk == caller.project_pk
    content = await api_client.get(f"/v1/files/{new.input_file_id}/content", headers=headers)
    assert json.loads(content.text)["custom_id"] == "request-1"
    assert (await api_client.get(f"/v1/files/{new.input_file_id}")).status_code == 404
    # Files that are another project's by now are gone for this one.
    assert (await ask(api_client, old)).json()["error"]["code"] == "file_not_found"
