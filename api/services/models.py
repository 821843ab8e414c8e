"""The models that the model server offers, in OpenAI's shape.

Promises: only our own key goes there, never a client's; a model is looked up in the server's list, so
that no client's text becomes a path of the model server.
"""

import logging
from typing import Any

import httpx
import orjson

from models import wire
from models.errors import ModelNotFound, Unavailable
from models.lines import MAX_ECHO
from models.settings import UpstreamSettings

log = logging.getLogger(__name__)

_SECONDS = 10.0


def connect(settings: UpstreamSettings) -> httpx.AsyncClient:
    """A client of the model server."""
    headers = {"accept": "application/json"}
    if settings.upstream_api_key is not None:
        headers["authorization"] = f"Bearer {settings.upstream_api_key.get_secret_value()}"
    return httpx.AsyncClient(
        base_url=settings.upstream_url,
        headers=headers,
        timeout=httpx.Timeout(_SECONDS, connect=settings.connect_timeout_seconds),
        follow_redirects=False,
        trust_env=not settings.is_local,
    )


async def list_(upstream: httpx.AsyncClient) -> wire.ModelList:
    """Show the models.

    Raises:
        Unavailable: the model server gives no list.
    """
    try:
        response = await upstream.get("/models")
        response.raise_for_status()
        listed = orjson.loads(response.content)["data"]
        return wire.ModelList(data=[_model(entry) for entry in listed])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        log.warning("the model server gives no list of models: %s", type(error).__name__)
        raise Unavailable("model server") from error


async def get(upstream: httpx.AsyncClient, *, model: str) -> wire.Model:
    """Show one model.

    Raises:
        ModelNotFound: the model server does not list it.
        Unavailable: the model server gives no list.
    """
    for listed in (await list_(upstream)).data:
        if listed.id == model:
            return listed
    raise ModelNotFound(model[:MAX_ECHO])


def _model(entry: Any) -> wire.Model:
    if not isinstance(entry, dict):
        message = "an entry of the list is no object"
        raise TypeError(message)
    created, owner = entry.get("created"), entry.get("owned_by")
    return wire.Model(
        id=str(entry["id"]),
        created=int(created) if isinstance(created, int | float) else 0,
        owned_by=owner if isinstance(owner, str) else "",
    )
