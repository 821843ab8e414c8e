"""/v1/files."""

from functools import partial

from fastapi import APIRouter, Request, Response

from api.auth import CallerDep
from api.content import content_response
from api.deps import DatabaseDep, SettingsDep, UploadSlotsDep
from api.extensions import IdempotencyKeyDep
from api.multipart import read_form
from api.openapi import UPLOAD_FORM
from api.params import ListFilesQuery
from api.services import files, intake
from models import wire

router = APIRouter(prefix="/v1/files", tags=["files"])


@router.post("", openapi_extra=UPLOAD_FORM)
async def upload_file(
    request: Request,
    database: DatabaseDep,
    caller: CallerDep,
    settings: SettingsDep,
    slots: UploadSlotsDep,
    idempotency_key: IdempotencyKeyDep,
) -> wire.File:
    """Upload a file."""
    form = read_form(request, max_file_bytes=settings.max_bytes_of(None))
    with slots.take(caller):
        return await intake.upload(
            database, caller, form=form, settings=settings, idempotency_key=idempotency_key
        )


@router.get("")
async def list_files(
    query: ListFilesQuery, database: DatabaseDep, caller: CallerDep
) -> wire.FileList:
    """List files, newest first unless asked otherwise."""
    return await files.list_(database, caller, query=query)


@router.get("/{file_id}")
async def get_file(file_id: str, database: DatabaseDep, caller: CallerDep) -> wire.File:
    """Show a file."""
    return await files.get(database, caller, file_id=file_id)


@router.delete("/{file_id}")
async def delete_file(file_id: str, database: DatabaseDep, caller: CallerDep) -> wire.FileDeleted:
    """Delete a file."""
    return await files.delete(database, caller, file_id=file_id)


@router.head("/{file_id}/content", include_in_schema=False)
@router.get("/{file_id}/content", response_class=Response)
async def get_file_content(
    file_id: str, request: Request, database: DatabaseDep, caller: CallerDep
) -> Response:
    """Download a file, or one range of its bytes."""
    file = await files.open_content(database, caller, file_id=file_id)
    return content_response(request, file, partial(files.read, database, file))
