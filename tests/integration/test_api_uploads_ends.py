"""/v1/uploads: ends that meet, time, death, and what is left."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from api.services import completion
from models import File, MultipartUpload, UploadPart, joining, storage
from models.database import Database
from models.storage import CHUNK_BYTES, Upload
from tests.answers import ok, refusal
from tests.fixtures.client import AppFactory, ClientFactory
from tests.uploads import (
    HOUR,
    add,
    age,
    begin,
    cancel,
    chunks_without_a_visible_file,
    complete,
    content,
    create,
    md5_of,
    some_bytes,
    statuses,
)
from worker.runtime import Runtime
from worker.stages.sweep import sweep

# Ends that meet


@pytest.mark.parametrize("aligned", [True, False])
async def test_completing_again_shows_the_same_file(
    api_client: httpx.AsyncClient, runtime: Runtime, *, aligned: bool
) -> None:
    parts = [some_bytes(CHUNK_BYTES if aligned else 1000), b"tail"]
    upload_id = await begin(api_client, sum(map(len, parts)))
    part_ids = await add(api_client, upload_id, *parts)
    done = ok(await complete(api_client, upload_id, part_ids))
    await sweep(runtime)
    assert ok(await complete(api_client, upload_id, part_ids)) == done
    response = await complete(api_client, upload_id, part_ids[::-1])
    refusal(response, 400, "Cannot complete an upload with status 'completed'.", param="id")
    ok(await api_client.delete(f"/v1/files/{done['file']['id']}"))
    again = ok(await complete(api_client, upload_id, part_ids))
    assert again == done | {"file": None}


@pytest.mark.parametrize("aligned", [True, False])
async def test_many_ends_at_once(
    api_client: httpx.AsyncClient, database: Database, *, aligned: bool
) -> None:
    parts = [some_bytes(CHUNK_BYTES if aligned else 1000), b"tail"]
    for _ in range(5):
        upload_id = await begin(api_client, sum(map(len, parts)))
        part_ids = await add(api_client, upload_id, *parts)
        first, cancelled, *others = await asyncio.gather(
            complete(api_client, upload_id, part_ids),
            cancel(api_client, upload_id),
            complete(api_client, upload_id, part_ids),
            complete(api_client, upload_id, part_ids),
        )
        answers = [first, *others]
        if cancelled.status_code == 200:
            for answer in answers:
                message = "Cannot complete an upload with status 'cancelled'."
                refusal(answer, 400, message, param="id")
        else:
            message = "Cannot cancel an upload with status 'completed'."
            refusal(cancelled, 400, message, param="id")
            assert len({ok(answer)["file"]["id"] for answer in answers}) == 1
    visible = ok(await api_client.get("/v1/files"))["data"]
    async with database.begin() as session:
        statement = select(func.count()).where(MultipartUpload.status == "completed")
        assert await session.scalar(statement) == len(visible)
    assert "uploading" not in await statuses(database)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("rival", ["cancel", "complete", "complete otherwise", "expire"])
async def test_an_end_while_the_bytes_are_read(
    api_client: httpx.AsyncClient,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    rival: str,
    *,
    aligned: bool,
) -> None:
    """The rival ends it, and the sweep takes the parts away, from under a completion at work."""
    monkeypatch.setattr(storage, "CHUNK_BYTES", 64)
    parts = [some_bytes(64 * 20 + (not aligned)), some_bytes(64 * 20)]
    whole = b"".join(parts)
    upload_id = await begin(api_client, len(whole))
    part_ids = await add(api_client, upload_id, *parts)
    read_through = joining.read_through
    is_first = True

    async def interrupted(*args: Any) -> AsyncIterator[bytes]:
        nonlocal is_first
        is_mine, is_first = is_first, False
        async for piece in read_through(*args):
            if is_mine:
                is_mine = False
                if rival == "cancel":
                    ok(await cancel(api_client, upload_id))
                elif rival == "expire":
                    await age(runtime.database, upload_id, timedelta(seconds=HOUR))
                else:
                    order = part_ids[::-1] if rival.endswith("otherwise") else part_ids
                    ok(await complete(api_client, upload_id, order))
                await sweep(runtime)
            yield piece

    monkeypatch.setattr(completion, "read_through", interrupted)
    md5 = md5_of(whole)
    response = await complete(api_client, upload_id, part_ids, md5=md5)
    if rival == "complete":
        file = ok(response)["file"]
        assert await content(api_client, file["id"]) == whole
    else:
        status = {"cancel": "cancelled", "expire": "expired"}.get(rival, "completed")
        message = f"Cannot complete an upload with status '{status}'."
        refusal(response, 400, message, param="id")
    await sweep(runtime)
    visible = rival.startswith("complete")
    assert await statuses(runtime.database) == ["processed"] * visible
    assert await chunks_without_a_visible_file(runtime.database) == 0


@pytest.mark.parametrize("ending", ["cancelled", "completed", "expired"])
async def test_a_part_that_arrives_when_its_upload_has_ended(
    api_client: httpx.AsyncClient, database: Database, ending: str
) -> None:
    upload_id = await begin(api_client, 4)
    part_ids = await add(api_client, upload_id, b"data")
    head = b'--b\r\ncontent-disposition: form-data; name="data"\r\n\r\n'

    async def body() -> AsyncIterator[bytes]:
        yield head + b"x" * 1000
        if ending == "cancelled":
            ok(await cancel(api_client, upload_id))
        elif ending == "completed":
            ok(await complete(api_client, upload_id, part_ids))
        else:
            await age(database, upload_id, timedelta(seconds=HOUR))
        yield b"\r\n--b--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    url = f"/v1/uploads/{upload_id}/parts"
    response = await api_client.post(url, content=body(), headers=headers)
    message = f"Cannot add a part to an upload with status '{ending}'."
    refusal(response, 400, message, param="id")
    assert await statuses(database) == (["processed"] if ending == "completed" else ["part"])


# Time and death


async def test_an_upload_lives_for_exactly_an_hour(
    api_client: httpx.AsyncClient, runtime: Runtime
) -> None:
    upload_id = await begin(api_client, 4)
    part_ids = await add(api_client, upload_id, b"data")
    await age(runtime.database, upload_id, timedelta(minutes=59))
    await sweep(runtime)
    await add(api_client, upload_id, b"more")
    await age(runtime.database, upload_id, timedelta(minutes=1))
    message = "Cannot complete an upload with status 'expired'."
    refusal(await complete(api_client, upload_id, part_ids), 400, message, param="id")
    await sweep(runtime)
    refusal(await complete(api_client, upload_id, part_ids), 400, message, param="id")
    assert await statuses(runtime.database) == []


async def test_the_life_is_a_setting(make_app: AppFactory, make_client: ClientFactory) -> None:
    client = await make_client(make_app(upload_life_seconds=7))
    upload = ok(await create(client, 1))
    assert upload["expires_at"] == upload["created_at"] + 7


async def test_the_sweep_leaves_what_is_pending_and_removes_the_rest(
    api_client: httpx.AsyncClient, runtime: Runtime
) -> None:
    pending, cancelled = [await begin(api_client, 2000) for _ in range(2)]
    for upload_id in (pending, cancelled):
        await add(api_client, upload_id, some_bytes(1000), some_bytes(1000))
    ok(await cancel(api_client, cancelled))
    async with runtime.database.begin() as session:
        # However long ago they came: what has stalled is something else.
        await session.execute(update(File).values(touched_at=func.now() - timedelta(days=9)))
    await sweep(runtime)
    assert await statuses(runtime.database) == ["part"] * 2
    async with runtime.database.begin() as session:
        parts = list(await session.scalars(select(UploadPart.id).order_by(UploadPart.pk)))
    assert ok(await complete(api_client, pending, parts))["file"]["bytes"] == 2000


async def test_parts_are_removed_little_by_little(
    api_client: httpx.AsyncClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.stages.uploads._BYTES_AT_ONCE", 2000)
    upload_id = await begin(api_client, 3000)
    await add(api_client, upload_id, *[some_bytes(1000)] * 3)
    ok(await cancel(api_client, upload_id))
    await sweep(runtime)
    assert await statuses(runtime.database) == ["part"]
    await sweep(runtime)
    assert await statuses(runtime.database) == []


async def test_an_upload_is_forgotten_a_day_after_its_time(
    api_client: httpx.AsyncClient, runtime: Runtime
) -> None:
    ended = [await begin(api_client, 4) for _ in range(3)]
    part_ids = await add(api_client, ended[0], b"data")
    file = ok(await complete(api_client, ended[0], part_ids))["file"]
    ok(await cancel(api_client, ended[1]))
    for upload_id in ended:
        await age(runtime.database, upload_id, timedelta(hours=25, seconds=-60))
    await sweep(runtime)
    assert ok(await complete(api_client, ended[0], part_ids))["file"] == file
    for upload_id in ended:
        await age(runtime.database, upload_id, timedelta(seconds=61))
    await sweep(runtime)
    for upload_id in ended:
        response = await cancel(api_client, upload_id)
        refusal(response, 404, f"No such Upload object: {upload_id}", param="id")
    assert await content(api_client, file["id"]) == b"data"


class Death(BaseException):
    """The process is gone: whatever would clean up does not run."""


@pytest.mark.parametrize(
    ("step", "aligned"),
    [
        ("read", True),
        ("end", True),
        ("move", True),
        ("forget", True),
        ("read", False),
        ("write", False),
        ("end", False),
    ],
)
async def test_a_completion_that_dies_on_any_line_can_be_asked_for_again(
    api_client: httpx.AsyncClient,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    *,
    aligned: bool,
) -> None:
    monkeypatch.setattr(storage, "CHUNK_BYTES", 64)
    parts = [some_bytes(64 * 20 + (not aligned)), some_bytes(64 * 20)]
    whole = b"".join(parts)
    md5 = md5_of(whole)
    upload_id = await begin(api_client, len(whole))
    part_ids = await add(api_client, upload_id, *parts)

    owner, name = {
        "read": (completion, "read_through"),
        "write": (Upload, "_store"),
        "end": (completion, "_end"),
        "move": (completion, "move_chunks"),
        "forget": (completion, "_forget"),
    }[step]
    original: Any = getattr(owner, name)

    async def dying(*args: Any) -> Any:
        # After it has done its work, so that only what is committed remains.
        await original(*args)
        raise Death

    async def dying_stream(*args: Any) -> AsyncIterator[bytes]:
        async for piece in original(*args):
            yield piece
            raise Death

    async def nothing(self: Upload) -> None:
        del self

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying_stream if step == "read" else dying)
        patch.setattr(Upload, "discard", nothing)
        with pytest.raises(Death):
            await complete(api_client, upload_id, part_ids, md5=md5)
    assert ok(await api_client.get("/v1/files"))["data"] == []
    # Nothing is copied before all was judged.
    left = [] if aligned or step == "read" else ["uploading"]
    assert await statuses(runtime.database) == ["part", "part", *left]

    done = ok(await complete(api_client, upload_id, part_ids, md5=md5))
    assert await content(api_client, done["file"]["id"]) == whole
    async with runtime.database.begin() as session:
        await session.execute(update(File).values(touched_at=func.now() - timedelta(hours=2)))
    await sweep(runtime)
    assert await statuses(runtime.database) == ["processed"]
    assert await chunks_without_a_visible_file(runtime.database) == 0


async def test_a_part_whose_sender_goes_away_leaves_nothing(
    api_client: httpx.AsyncClient, database: Database
) -> None:
    upload_id = await begin(api_client, 3_000_000)
    head = b'--b\r\ncontent-disposition: form-data; name="data"\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = await api_client.post(
        f"/v1/uploads/{upload_id}/parts", content=head + b"x" * 3_000_000, headers=headers
    )
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("Could not parse the multipart form")
    assert await statuses(database) == []


async def test_a_slow_part_holds_no_connection(
    make_app: AppFactory, make_client: ClientFactory, database: Database
) -> None:
    app = make_app()
    client = await make_client(app)
    upload_id = await begin(client, 3_000_000)
    pool = app.state.database._engine.pool
    held: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="data"\r\n\r\n'
        for _ in range(3):
            held.append(pool.checkedout())
            yield b"x" * 1_000_000
        held.append(pool.checkedout())
        yield b"\r\n--b--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    ok(await client.post(f"/v1/uploads/{upload_id}/parts", content=body(), headers=headers))
    assert held == [0] * 4
    assert await statuses(database) == ["part"]


# Quotas


async def test_an_upload_announces_what_will_be_stored(
    make_app: AppFactory, make_client: ClientFactory
) -> None:
    client = await make_client(make_app(max_stored_bytes=10))
    upload_id = await begin(client, 6)
    response = await create(client, 6)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "storage_limit_exceeded"
    # Completing puts a file in the place of the announcement, and cancelling takes it back.
    ok(await complete(client, upload_id, await add(client, upload_id, b"123456")))
    ok(await cancel(client, await begin(client, 4)))
    ok(await create(client, 4))
