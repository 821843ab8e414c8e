"""What OpenAI's API does not have: more of /v1/batches, described in docs/extensions.md."""

from fastapi import APIRouter

from api.auth import CallerDep
from api.deps import BellDep, DatabaseDep
from api.services import pauses
from api.services.progress import progress
from models import wire

router = APIRouter(prefix="/v1/batches", tags=["extensions"])


@router.post("/{batch_id}/pause")
async def pause_batch(batch_id: str, database: DatabaseDep, caller: CallerDep) -> wire.Batch:
    """Pause a batch: calls in flight end, no new one begins. The window goes on."""
    return await pauses.pause(database, caller, batch_id=batch_id)


@router.post("/{batch_id}/resume")
async def resume_batch(
    batch_id: str, database: DatabaseDep, caller: CallerDep, bell: BellDep
) -> wire.Batch:
    """Let a paused batch go on."""
    return await pauses.resume(database, caller, bell=bell, batch_id=batch_id)


@router.get("/{batch_id}/progress")
async def get_batch_progress(
    batch_id: str, database: DatabaseDep, caller: CallerDep
) -> wire.BatchProgress:
    """Show how a batch is getting on."""
    return await progress(database, caller, batch_id=batch_id)
