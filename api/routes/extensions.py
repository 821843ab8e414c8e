"""What OpenAI's API does not have: more of /v1/batches, described in docs/extensions.md."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from api.auth import CallerDep
from api.deps import BellDep, DatabaseDep, SettingsDep
from api.extensions import IdempotencyKeyDep, RetryBatchBody
from api.openapi import RETRY_BATCH_BODY
from api.services import partial, pauses
from api.services.progress import progress
from api.services.retries import retry
from models import wire

router = APIRouter(prefix="/v1/batches", tags=["extensions"])

_JSON_LINES = "application/jsonl"
_LINES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "JSON lines: those recorded so far, or the finished file.",
        "content": {_JSON_LINES: {"schema": {"type": "string"}}},
        "headers": {
            "X-Incomplete": {
                "description": "`true` while more lines may come; absent once the batch has ended.",
                "schema": {"type": "string"},
            },
            "X-Last-Line": {
                "description": "With `X-Incomplete`: the `offset` with which to go on.",
                "schema": {"type": "integer"},
            },
        },
    }
}
Offset = Annotated[
    int, Query(ge=0, le=2**31 - 1, description="So many lines at the beginning are left out.")
]


@router.post("/{batch_id}/retry", openapi_extra=RETRY_BATCH_BODY)
async def retry_batch(
    batch_id: str,
    idempotency_key: IdempotencyKeyDep,
    body: RetryBatchBody,
    database: DatabaseDep,
    caller: CallerDep,
    bell: BellDep,
    settings: SettingsDep,
) -> wire.Batch:
    """Make a new batch of the failed requests of one that has ended."""
    return await retry(
        database,
        caller,
        bell=bell,
        batch_id=batch_id,
        request=body,
        settings=settings,
        idempotency_key=idempotency_key,
    )


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


@router.get("/{batch_id}/output", response_class=Response, responses=_LINES)
async def get_batch_output(
    batch_id: str, database: DatabaseDep, caller: CallerDep, offset: Offset = 0
) -> Response:
    """Read the output lines that there are so far."""
    kind = partial.Kind.OUTPUT
    return _json_lines(
        await partial.read(database, caller, batch_id=batch_id, kind=kind, offset=offset)
    )


@router.get("/{batch_id}/errors", response_class=Response, responses=_LINES)
async def get_batch_errors(
    batch_id: str, database: DatabaseDep, caller: CallerDep, offset: Offset = 0
) -> Response:
    """Read the error lines that there are so far."""
    kind = partial.Kind.ERRORS
    return _json_lines(
        await partial.read(database, caller, batch_id=batch_id, kind=kind, offset=offset)
    )


def _json_lines(lines: partial.Lines) -> Response:
    headers = {}
    if lines.last_line is not None:
        headers = {"x-incomplete": "true", "x-last-line": str(lines.last_line)}
    return StreamingResponse(lines.pieces, headers=headers, media_type=_JSON_LINES)
