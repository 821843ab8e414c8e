"""/v1/webhook_endpoints and /v1/webhook_event_types."""

from fastapi import APIRouter

from api.auth import CallerDep
from api.deps import (
    CreateWebhookEndpointBody,
    DatabaseDep,
    ReceiverDep,
    RotateWebhookSecretBody,
    UpdateWebhookEndpointBody,
    WebhookTestBody,
)
from api.openapi import (
    CREATE_WEBHOOK_ENDPOINT_BODY,
    ROTATE_WEBHOOK_SECRET_BODY,
    UPDATE_WEBHOOK_ENDPOINT_BODY,
    WEBHOOK_TEST_BODY,
)
from api.params import ListWebhookEndpointsQuery
from api.services import webhook_endpoints
from models import wire
from models.webhook import EVENT_TYPES

router = APIRouter(prefix="/v1", tags=["webhooks"])


@router.post("/webhook_endpoints", openapi_extra=CREATE_WEBHOOK_ENDPOINT_BODY)
async def create_webhook_endpoint(
    body: CreateWebhookEndpointBody,
    database: DatabaseDep,
    caller: CallerDep,
    receiver: ReceiverDep,
) -> wire.WebhookEndpointWithSecret:
    """Register a receiver of events. Its signing secret is shown only now."""
    return await webhook_endpoints.create(database, caller, receiver, request=body)


@router.get("/webhook_endpoints")
async def list_webhook_endpoints(
    query: ListWebhookEndpointsQuery, database: DatabaseDep, caller: CallerDep
) -> wire.WebhookEndpointList:
    """List webhook endpoints, newest first."""
    return await webhook_endpoints.list_(database, caller, query=query)


@router.get("/webhook_endpoints/{webhook_endpoint_id}")
async def get_webhook_endpoint(
    webhook_endpoint_id: str, database: DatabaseDep, caller: CallerDep
) -> wire.WebhookEndpoint:
    """Show a webhook endpoint."""
    return await webhook_endpoints.get(database, caller, endpoint_id=webhook_endpoint_id)


@router.post("/webhook_endpoints/{webhook_endpoint_id}", openapi_extra=UPDATE_WEBHOOK_ENDPOINT_BODY)
async def update_webhook_endpoint(
    webhook_endpoint_id: str,
    body: UpdateWebhookEndpointBody,
    database: DatabaseDep,
    caller: CallerDep,
    receiver: ReceiverDep,
) -> wire.WebhookEndpoint:
    """Change a webhook endpoint."""
    return await webhook_endpoints.update_(
        database, caller, receiver, endpoint_id=webhook_endpoint_id, request=body
    )


@router.delete("/webhook_endpoints/{webhook_endpoint_id}")
async def delete_webhook_endpoint(
    webhook_endpoint_id: str, database: DatabaseDep, caller: CallerDep
) -> wire.WebhookEndpointDeleted:
    """Delete a webhook endpoint. What was still to be told to it is dropped."""
    return await webhook_endpoints.delete_(database, caller, endpoint_id=webhook_endpoint_id)


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}/rotate_secret",
    openapi_extra=ROTATE_WEBHOOK_SECRET_BODY,
)
async def rotate_webhook_secret(
    webhook_endpoint_id: str,
    body: RotateWebhookSecretBody,
    database: DatabaseDep,
    caller: CallerDep,
) -> wire.WebhookEndpointWithSecret:
    """Make a new signing secret, which is shown only now."""
    return await webhook_endpoints.rotate_secret(
        database, caller, endpoint_id=webhook_endpoint_id, request=body
    )


@router.post("/webhook_endpoints/{webhook_endpoint_id}/test", openapi_extra=WEBHOOK_TEST_BODY)
async def test_webhook_endpoint(
    webhook_endpoint_id: str,
    body: WebhookTestBody,
    database: DatabaseDep,
    caller: CallerDep,
    receiver: ReceiverDep,
) -> wire.WebhookEndpointTest:
    """Send a made-up event, signed like a real one, and tell what the receiver answered."""
    return await webhook_endpoints.test(
        database, caller, receiver, endpoint_id=webhook_endpoint_id, request=body
    )


@router.get("/webhook_event_types")
async def list_webhook_event_types() -> wire.WebhookEventTypeList:
    """List the types of events that there are."""
    return wire.WebhookEventTypeList(data=list(EVENT_TYPES))
