"""/v1/models."""

from fastapi import APIRouter

from api.deps import ModelCatalogDep
from api.services import models
from models import wire

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(catalog: ModelCatalogDep) -> wire.ModelList:
    """List the models of all model servers."""
    return await models.list_(catalog)


@router.get("/{model:path}")
async def get_model(model: str, catalog: ModelCatalogDep) -> wire.Model:
    """Show a model."""
    return await models.get(catalog, model=model)
