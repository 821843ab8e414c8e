"""What a person wants to see of a batch and of the engine. Extensions, described in docs/extensions.md."""

from typing import Annotated

from fastapi import APIRouter, Path

from api.auth import CallerDep
from api.deps import BellDep, DatabaseDep, ModelCatalogDep
from api.services import insight
from api.services.standing import standing
from models.errors import OperatorOnly
from models.project import DEFAULT_PROJECT_PK
from models.wire_extensions import BatchFailures, BatchHistory, BatchLine, WorkerList

router = APIRouter(prefix="/v1", tags=["extensions"])

LineNumber = Annotated[
    int, Path(ge=1, le=2**31 - 1, description="The number of a line of the input, from 1.")
]


@router.get("/batches/{batch_id}/history")
async def get_batch_history(
    batch_id: str, database: DatabaseDep, caller: CallerDep
) -> BatchHistory:
    """Show how a batch went over its life: lines, latencies, calls in flight, the slowest lines."""
    return await insight.history(database, caller, batch_id=batch_id)


@router.get("/batches/{batch_id}/failures")
async def get_batch_failures(
    batch_id: str, database: DatabaseDep, caller: CallerDep
) -> BatchFailures:
    """Show why lines failed, by code, with examples."""
    return await insight.failures(database, caller, batch_id=batch_id)


@router.get("/batches/{batch_id}/lines/{line}")
async def get_batch_line(
    batch_id: str, line: LineNumber, database: DatabaseDep, caller: CallerDep
) -> BatchLine:
    """Show one line of the input and its answer."""
    return await insight.line(database, caller, batch_id=batch_id, line_no=line)


@router.get("/workers")
async def list_workers(caller: CallerDep, bell: BellDep, models: ModelCatalogDep) -> WorkerList:
    """List the workers, and how they find the model servers. For the operator's project, `default`."""
    if caller.project_pk != DEFAULT_PROJECT_PK:
        raise OperatorOnly
    return await standing(bell, servers=models.servers)
