"""The API as an application: parts, middleware, routes; nothing else.

`uvicorn --factory api.app:create_app` serves it. What is not passed in is read from the environment.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from api import errors
from api.auth import authenticate
from api.bell import Bell
from api.dashboard import routes as dashboard
from api.document import DocumentedApi, operation_id, own_version
from api.middleware import LastResort, Linger, Pace, Stamp
from api.routes import (
    batches,
    events,
    extensions,
    files,
    health,
    insight,
    models,
    uploads,
    webhook_endpoints,
)
from api.services import keys
from api.services.events import Watches
from api.services.models import ModelCatalog
from api.services.polls import Polls
from api.services.upload_slots import UploadSlots
from api.settings import ApiSettings
from models.database import Database
from models.receiver import Receiver
from models.settings import BrokerSettings, DatabaseSettings, UpstreamSettings, WebhookSettings
from models.tracing import start_tracing, stop_tracing
from models.wire import ErrorEnvelope
from worker.queue import Doorbell


def create_app(
    settings: ApiSettings | None = None,
    *,
    database: DatabaseSettings | None = None,
    broker: BrokerSettings | None = None,
    upstream: UpstreamSettings | None = None,
    webhooks: WebhookSettings | None = None,
    bell: Bell | None = None,
) -> FastAPI:
    """The application. A setting that is missing or wrong is an error here, not at a request."""
    settings = settings or ApiSettings()
    database = database or DatabaseSettings()
    upstream = upstream or UpstreamSettings()
    if bell is None:
        broker = broker or BrokerSettings()
        bell = Doorbell(broker.redis_url.get_secret_value())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        start_tracing()
        app.state.database = Database.connect(database, role="api")
        app.state.polls = Polls(app.state.database)
        app.state.model_catalog = ModelCatalog(upstream.upstreams())
        app.state.watches = Watches(app.state.database)
        if not app.state.keys:
            await keys.warn_if_none_opens(app.state.database)
        try:
            yield
        finally:
            app.state.watches.close()
            await app.state.model_catalog.aclose()
            await app.state.database.dispose()
            bell.close()
            await asyncio.to_thread(stop_tracing)

    app = DocumentedApi(
        title="Overnight",
        summary="OpenAI's Batch API, self-hosted.",
        version=own_version(),
        generate_unique_id_function=operation_id,
        lifespan=lifespan,
        # A redirect would make clients that follow none fail in a way that is hard to see.
        redirect_slashes=False,
        responses={"4XX": {"model": ErrorEnvelope}, "5XX": {"model": ErrorEnvelope}},
    )
    app.state.settings = settings
    app.state.keys = [key.encode() for key in settings.accepted_keys()]
    app.state.bell = bell
    app.state.upload_slots = UploadSlots(settings.max_uploads_at_once)
    app.state.receiver = Receiver(webhooks or WebhookSettings())
    errors.install(app)
    for router in (
        files.router,
        uploads.router,
        batches.router,
        extensions.router,
        events.router,
        insight.router,
        models.router,
    ):
        app.include_router(router, dependencies=[Depends(authenticate)])
    app.include_router(webhook_endpoints.router, dependencies=[Depends(authenticate)])
    app.include_router(health.router)
    app.include_router(dashboard.router)
    # The last one added is the outermost.
    app.add_middleware(LastResort)
    pace = Pace(settings.client_silence_seconds, settings.client_min_bytes_per_second)
    app.add_middleware(Linger, pace=pace)
    app.add_middleware(Stamp)
    return app
