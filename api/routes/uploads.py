"""/v1/uploads."""

from fastapi import APIRouter, Request

from api.auth import CallerDep
from api.deps import (
    CompleteUploadBody,
    CreateUploadBody,
    DatabaseDep,
    SettingsDep,
    UploadSlotsDep,
)
from api.multipart import read_form
from api.openapi import COMPLETE_UPLOAD_BODY, CREATE_UPLOAD_BODY, PART_FORM
from api.services import completion, multipart_uploads
from models import wire

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])


@router.post("", openapi_extra=CREATE_UPLOAD_BODY)
async def create_upload(
    body: CreateUploadBody, database: DatabaseDep, caller: CallerDep, settings: SettingsDep
) -> wire.Upload:
    """Announce a file that will be sent in parts. There is an hour to send and complete it."""
    return await multipart_uploads.create(database, caller, request=body, settings=settings)


@router.post("/{upload_id}/parts", openapi_extra=PART_FORM)
async def add_upload_part(
    upload_id: str,
    request: Request,
    database: DatabaseDep,
    caller: CallerDep,
    settings: SettingsDep,
    slots: UploadSlotsDep,
) -> wire.UploadPart:
    """Add a part of at most 64 MB. Parts may be sent in any order, and several at a time."""
    form = read_form(request, max_file_bytes=settings.max_part_bytes)
    with slots.take(caller):
        return await multipart_uploads.add_part(
            database, caller, upload_id=upload_id, form=form, settings=settings
        )


@router.post("/{upload_id}/complete", openapi_extra=COMPLETE_UPLOAD_BODY)
async def complete_upload(
    upload_id: str,
    body: CompleteUploadBody,
    database: DatabaseDep,
    caller: CallerDep,
    settings: SettingsDep,
    slots: UploadSlotsDep,
) -> wire.Upload:
    """Join parts, in the order given, to a file."""
    with slots.take(caller):
        return await completion.complete(
            database, caller, upload_id=upload_id, request=body, settings=settings
        )


@router.post("/{upload_id}/cancel")
async def cancel_upload(upload_id: str, database: DatabaseDep, caller: CallerDep) -> wire.Upload:
    """Cancel an upload. Its parts are removed."""
    return await multipart_uploads.cancel(database, caller, upload_id=upload_id)
