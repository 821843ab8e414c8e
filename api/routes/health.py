"""What needs no key: is it alive, is it ready, what is it."""

from fastapi import APIRouter, Response

from api.deps import BellDep, DatabaseDep
from api.services import health
from api.services.health import Readiness

router = APIRouter(tags=["health"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether this process answers."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"model": Readiness, "description": "Some part is away."}})
async def readyz(response: Response, database: DatabaseDep, bell: BellDep) -> Readiness:
    """Whether database, broker and at least one worker answer."""
    readiness = await health.check(database, bell=bell)
    response.status_code = 200 if readiness.status == "ready" else 503
    return readiness


@router.get("/")
async def root() -> dict[str, str]:
    """What this is."""
    return {"name": "Overnight", "api": "/v1", "documentation": "/docs"}
