"""Part of the sweep: uploads in parts whose time is over, and what is left of those that have ended.

Promises: nothing that an upload still needs is touched, for its row is locked and judged again; every
step is idempotent and bounded, and waits for nobody.
"""

import logging
from datetime import timedelta

from sqlalchemy import delete, exists, func, select, update

from models.failpoints import Failpoint, pass_failpoint
from models.file import File
from models.upload import MultipartUpload, UploadPart, UploadStatus
from worker.runtime import Runtime

log = logging.getLogger(__name__)

_UPLOADS_AT_ONCE = 100
_PARTS_AT_ONCE = 200
_BYTES_AT_ONCE = 512 * 1024 * 1024
_REMEMBERED = timedelta(days=1)


async def sweep_uploads(runtime: Runtime) -> None:
    """Expire, remove parts, forget."""
    await _expire(runtime)
    await _remove_parts(runtime)
    await _forget(runtime)


async def _expire(runtime: Runtime) -> None:
    async with runtime.database.begin() as session:
        overdue = await session.execute(
            select(MultipartUpload.pk, MultipartUpload.id)
            .where(
                MultipartUpload.status == UploadStatus.PENDING,
                MultipartUpload.expires_at <= func.now(),
            )
            .limit(_UPLOADS_AT_ONCE)
            # One that is being completed this very moment is left to that.
            .with_for_update(skip_locked=True)
        )
        for upload_pk, upload_id in overdue.all():
            await session.execute(
                update(MultipartUpload)
                .where(MultipartUpload.pk == upload_pk)
                .values(status=UploadStatus.EXPIRED)
            )
            log.info("upload %s: expired", upload_id)


async def _remove_parts(runtime: Runtime) -> None:
    """Remove the parts of uploads that have ended, with their bytes, some at a time."""
    async with runtime.database.begin() as session:
        found = await session.execute(
            select(UploadPart.pk, UploadPart.file_pk, UploadPart.bytes)
            .join(MultipartUpload, MultipartUpload.pk == UploadPart.upload_pk)
            .where(MultipartUpload.status != UploadStatus.PENDING)
            .order_by(UploadPart.pk)
            .limit(_PARTS_AT_ONCE)
            .with_for_update(skip_locked=True, of=UploadPart)
        )
        removed_bytes = 0
        for part_pk, file_pk, size_bytes in found.all():
            await session.execute(delete(File).where(File.pk == file_pk))
            pass_failpoint(Failpoint.SWEEP_REMOVING_PART)
            await session.execute(delete(UploadPart).where(UploadPart.pk == part_pk))
            removed_bytes += size_bytes
            if removed_bytes >= _BYTES_AT_ONCE:
                break


async def _forget(runtime: Runtime) -> None:
    """Forget uploads that ended long ago. Until then a request that is sent again finds them."""
    has_parts = exists().where(UploadPart.upload_pk == MultipartUpload.pk)
    old = (
        select(MultipartUpload.pk)
        .where(
            MultipartUpload.expires_at < func.now() - _REMEMBERED,
            MultipartUpload.status != UploadStatus.PENDING,
            ~has_parts,
        )
        .limit(_UPLOADS_AT_ONCE)
    )
    async with runtime.database.begin() as session:
        await session.execute(
            delete(MultipartUpload)
            .where(MultipartUpload.pk.in_(old.scalar_subquery()))
            .execution_options(synchronize_session=False)
        )
