"""Uploads in parts, as a client asks for them, and what is left of them in the database."""

import hashlib
import random
from datetime import timedelta
from typing import Any

import httpx
from sqlalchemy import func, select, update

from models import File, FileChunk, MultipartUpload
from models.database import Database
from models.file import FileStatus
from tests.answers import ok

KIB = 1024
HOUR = 3600
DAY = 24 * HOUR


def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


async def create(client: httpx.AsyncClient, size: int, **changes: Any) -> httpx.Response:
    body = {"filename": "x.bin", "purpose": "vision", "bytes": size, "mime_type": "text/plain"}
    sent = {name: value for name, value in (body | changes).items() if value is not ...}
    return await client.post("/v1/uploads", json=sent)


async def begin(client: httpx.AsyncClient, size: int, **changes: Any) -> str:
    upload_id: str = ok(await create(client, size, **changes))["id"]
    return upload_id


async def send(client: httpx.AsyncClient, upload_id: str, data: bytes) -> httpx.Response:
    return await client.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("upload", data)})


async def add(client: httpx.AsyncClient, upload_id: str, *parts: bytes) -> list[str]:
    return [ok(await send(client, upload_id, data))["id"] for data in parts]


async def complete(
    client: httpx.AsyncClient, upload_id: str, part_ids: object, **more: object
) -> httpx.Response:
    body = {"part_ids": part_ids} | more
    return await client.post(f"/v1/uploads/{upload_id}/complete", json=body)


async def cancel(client: httpx.AsyncClient, upload_id: str) -> httpx.Response:
    return await client.post(f"/v1/uploads/{upload_id}/cancel")


async def content(client: httpx.AsyncClient, file_id: str) -> bytes:
    response = await client.get(f"/v1/files/{file_id}/content")
    assert response.status_code == 200
    return response.content


async def statuses(database: Database) -> list[str]:
    """Of all rows of files, visible or not."""
    async with database.begin() as session:
        return list(await session.scalars(select(File.status).order_by(File.pk)))


async def chunks_without_a_visible_file(database: Database) -> int:
    async with database.begin() as session:
        statement = (
            select(func.count())
            .select_from(FileChunk)
            .join(File, File.pk == FileChunk.file_pk)
            .where(File.status != FileStatus.PROCESSED)
        )
        return await session.scalar(statement) or 0


async def age(database: Database, upload_id: str, by: timedelta) -> None:
    """Let an upload have been created so much earlier."""
    async with database.begin() as session:
        await session.execute(
            update(MultipartUpload)
            .where(MultipartUpload.id == upload_id)
            .values(
                created_at=MultipartUpload.created_at - by,
                expires_at=MultipartUpload.expires_at - by,
            )
        )


WISHES = ["add a part to", "complete", "cancel"]


async def wish(client: httpx.AsyncClient, upload_id: str, wished: str) -> httpx.Response:
    match wished:
        case "complete":
            return await complete(client, upload_id, ["part_x"])
        case "cancel":
            return await cancel(client, upload_id)
        case _:
            return await send(client, upload_id, b"data")
