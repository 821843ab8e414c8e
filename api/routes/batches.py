"""/v1/batches."""

from fastapi import APIRouter

from api.auth import CallerDep
from api.deps import BellDep, CreateBatchBody, DatabaseDep, PollsDep, SettingsDep
from api.extensions import BATCH_FILTER_PARAMETERS, BatchFilterDep, IdempotencyKeyDep
from api.openapi import CREATE_BATCH_BODY
from api.params import ListBatchesQuery
from api.services import batches
from models import wire

router = APIRouter(prefix="/v1/batches", tags=["batches"])


@router.post("", openapi_extra=CREATE_BATCH_BODY)
async def create_batch(
    idempotency_key: IdempotencyKeyDep,
    body: CreateBatchBody,
    database: DatabaseDep,
    caller: CallerDep,
    bell: BellDep,
    settings: SettingsDep,
) -> wire.Batch:
    """Create a batch from an uploaded file."""
    window = settings.windows()[body.completion_window]
    return await batches.create(
        database,
        caller,
        bell=bell,
        request=body,
        window=window,
        max_batches_per_hour=settings.max_batches_per_hour,
        refuse_hopeless=settings.refuse_hopeless,
        idempotency_key=idempotency_key,
    )


@router.get("", openapi_extra=BATCH_FILTER_PARAMETERS)
async def list_batches(
    query: ListBatchesQuery, wanted: BatchFilterDep, database: DatabaseDep, caller: CallerDep
) -> wire.BatchList:
    """List batches, newest first."""
    return await batches.list_(database, caller, query=query, wanted=wanted)


@router.get("/{batch_id}")
async def get_batch(batch_id: str, polls: PollsDep, caller: CallerDep) -> wire.Batch:
    """Show a batch."""
    return await polls.get(caller, batch_id)


@router.post("/{batch_id}/cancel")
async def cancel_batch(
    batch_id: str, database: DatabaseDep, caller: CallerDep, bell: BellDep
) -> wire.Batch:
    """Cancel a batch. Lines that have finished are kept."""
    return await batches.cancel(database, caller, bell=bell, batch_id=batch_id)
