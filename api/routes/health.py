"""What needs no key: is it alive, is it ready, what is it."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from api.bell import Bell
from api.deps import BellDep, DatabaseDep
from api.services import health, signals
from api.services.health import Readiness
from models.database import Database

router = APIRouter(tags=["health"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether this process answers."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"model": Readiness, "description": "Some part is away."}})
async def readyz(
    request: Request, response: Response, database: DatabaseDep, bell: BellDep
) -> Readiness:
    """Whether database, broker and at least one worker answer.

    Also, whether both kinds of workers do, and the sweep that mends what was lost comes round.
    """
    readiness = await _look(request, database, bell)
    response.status_code = 200 if readiness.status == "ready" else 503
    return readiness


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request, database: DatabaseDep, bell: BellDep) -> Response:
    """Which parts answer, what waits and what is stuck, for Prometheus."""
    readiness = await _look(request, database, bell)
    return Response(await signals.measure(database, readiness), media_type=CONTENT_TYPE_LATEST)


async def _look(request: Request, database: Database, bell: Bell) -> Readiness:
    readiness = await health.check(database, bell=bell)
    state = request.app.state
    was_whole = getattr(state, "was_whole", False)
    health.report_change(getattr(state, "readiness", None), readiness, was_whole=was_whole)
    state.readiness, state.was_whole = readiness, was_whole or readiness.is_whole()
    return readiness
