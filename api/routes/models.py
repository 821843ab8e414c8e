"""/v1/models."""

from fastapi import APIRouter

from api.deps import UpstreamDep
from api.services import models
from models import wire

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(upstream: UpstreamDep) -> wire.ModelList:
    """List the models of the model server."""
    return await models.list_(upstream)


@router.get("/{model:path}")
async def get_model(model: str, upstream: UpstreamDep) -> wire.Model:
    """Show a model."""
    return await models.get(upstream, model=model)
