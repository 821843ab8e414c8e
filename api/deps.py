"""What routes ask for by type: the database, the settings, the bell, the models, a body."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Request

from api.bell import Bell
from api.params import (
    BodyT,
    CompleteUpload,
    CreateBatch,
    CreateUpload,
    CreateWebhookEndpoint,
    RotateWebhookSecret,
    UpdateWebhookEndpoint,
    WebhookTest,
    read_json,
    validate_body,
)
from api.services.models import ModelCatalog
from api.services.polls import Polls
from api.services.upload_slots import UploadSlots
from api.settings import ApiSettings
from models.database import Database
from models.receiver import Receiver


def _from_state(name: str) -> Callable[[Request], Awaitable[Any]]:
    # A coroutine, because FastAPI runs plain functions in a thread.
    async def read(request: Request) -> Any:
        return getattr(request.app.state, name)

    return read


DatabaseDep = Annotated[Database, Depends(_from_state("database"))]
SettingsDep = Annotated[ApiSettings, Depends(_from_state("settings"))]
BellDep = Annotated[Bell, Depends(_from_state("bell"))]
ReceiverDep = Annotated[Receiver, Depends(_from_state("receiver"))]
UploadSlotsDep = Annotated[UploadSlots, Depends(_from_state("upload_slots"))]
PollsDep = Annotated[Polls, Depends(_from_state("polls"))]
ModelCatalogDep = Annotated[ModelCatalog, Depends(_from_state("model_catalog"))]


async def _create_batch_body(request: Request, settings: SettingsDep) -> CreateBatch:
    return validate_body(
        CreateBatch,
        await read_json(request),
        refuse_unknown=settings.unknown_parameters == "refuse",
        windows=settings.windows(),
    )


CreateBatchBody = Annotated[CreateBatch, Depends(_create_batch_body)]


def _json_body(model: type[BodyT]) -> Callable[..., Awaitable[BodyT]]:
    async def read(request: Request, settings: SettingsDep) -> BodyT:
        return validate_body(
            model,
            await read_json(request),
            refuse_unknown=settings.unknown_parameters == "refuse",
            windows={},
        )

    return read


CreateUploadBody = Annotated[CreateUpload, Depends(_json_body(CreateUpload))]
CompleteUploadBody = Annotated[CompleteUpload, Depends(_json_body(CompleteUpload))]
CreateWebhookEndpointBody = Annotated[
    CreateWebhookEndpoint, Depends(_json_body(CreateWebhookEndpoint))
]
UpdateWebhookEndpointBody = Annotated[
    UpdateWebhookEndpoint, Depends(_json_body(UpdateWebhookEndpoint))
]
RotateWebhookSecretBody = Annotated[RotateWebhookSecret, Depends(_json_body(RotateWebhookSecret))]
WebhookTestBody = Annotated[WebhookTest, Depends(_json_body(WebhookTest))]
