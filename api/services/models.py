"""The models that the model servers offer, in OpenAI's shape.

Promises: only our own keys go there, never a client's; a model is looked up in the servers' lists, so
that no client's text becomes a path of a model server. The servers are asked at once, for a few seconds
at most, and what they say is good for a few more. One that gives no list is left out.
"""

import asyncio
import logging
import ssl
from functools import cache
from typing import Any

import httpx
import orjson

from models import wire
from models.errors import ModelNotFound, Unavailable
from models.lines import MAX_ECHO
from models.upstreams import ModelServer, Upstreams

log = logging.getLogger(__name__)

_SECONDS = 3.0
FRESH_SECONDS = 5.0
"""How long an answer, or the lack of one, is good for."""

MOST_BYTES = 8 * 1024 * 1024
"""A longer list is none: a model server must not be able to fill this process's memory."""


@cache
def _certificates() -> ssl.SSLContext:
    """Whom to trust: read once for all servers, for that takes a twentieth of a second."""
    return httpx.create_ssl_context()


class _Listing:
    """One server's list of models, asked for when it is wanted and not fresh any more."""

    def __init__(self, server: ModelServer) -> None:
        self._name = server.name
        self._client = httpx.AsyncClient(
            base_url=server.url,
            headers={"accept": "application/json", "accept-encoding": "identity"}
            | server.own_headers(),
            timeout=_SECONDS,
            follow_redirects=False,
            trust_env=not server.is_local,
            verify=_certificates(),
        )
        self._asking = asyncio.Lock()
        self._found: list[wire.Model] | None = None
        self._fresh_until = float("-inf")

    async def models(self) -> list[wire.Model] | None:
        """What the server lists, each model once; null if it gives no list."""
        clock = asyncio.get_running_loop().time
        # Of many who want it at once, one asks.
        async with self._asking:
            if clock() >= self._fresh_until:
                self._found = await self._ask()
                self._fresh_until = clock() + FRESH_SECONDS
        return self._found

    async def _ask(self) -> list[wire.Model] | None:
        try:
            async with asyncio.timeout(_SECONDS):
                page = await self._read()
            listed = [_model(entry) for entry in orjson.loads(page)["data"]]
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            TimeoutError,
            ValueError,
            LookupError,
            TypeError,
        ) as error:
            log.warning(
                "the model server %s gives no list of models: %s", self._name, type(error).__name__
            )
            return None
        return list({model.id: model for model in reversed(listed)}.values())[::-1]

    async def _read(self) -> bytes:
        page = bytearray()
        async with self._client.stream("GET", "/models") as response:
            response.raise_for_status()
            # Undecoded: a few compressed bytes, which were not asked for, may stand for gigabytes.
            async for piece in response.aiter_raw():
                page += piece
                if len(page) > MOST_BYTES:
                    message = "the list of models is too long"
                    raise ValueError(message)
        return bytes(page)

    async def aclose(self) -> None:
        await self._client.aclose()


class ModelCatalog:
    """All model servers' lists, and the models of the settings."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams
        # Of the others nobody could ask for a model.
        asked = {route.server.name for route in upstreams.routes.values()}
        if upstreams.default is not None:
            asked.add(upstreams.default.name)
        self._listings = {name: _Listing(upstreams.servers[name]) for name in asked}

    @property
    def servers(self) -> list[str]:
        """The names of all model servers."""
        return list(self._upstreams.servers)

    async def known(self) -> tuple[dict[str, wire.Model], bool]:
        """Every model by its id, and whether these are all: the default server has given its list.

        A model of the settings is its server's there; the default server adds what it lists.
        """
        names = list(self._listings)
        lists = await asyncio.gather(*(each.models() for each in self._listings.values()))
        listed = dict(zip(names, lists, strict=True))
        found: dict[str, wire.Model] = {}
        for name, route in self._upstreams.routes.items():
            there = listed[route.server.name] or []
            sent = route.model or name
            created = next((each.created for each in there if each.id == sent), 0)
            found[name] = wire.Model(id=name, created=created, owned_by=route.server.name)
        default = self._upstreams.default
        if default is None:
            return found, True
        of_default = listed[default.name]
        for model in of_default or []:
            found.setdefault(model.id, model)
        return found, of_default is not None

    async def aclose(self) -> None:
        """Close every connection."""
        for listing in self._listings.values():
            await listing.aclose()


async def list_(catalog: ModelCatalog) -> wire.ModelList:
    """Show the models.

    Raises:
        Unavailable: the model server gives no list, and the settings name no model.
    """
    found, is_whole = await catalog.known()
    if not found and not is_whole:
        raise Unavailable("model server")
    return wire.ModelList(data=list(found.values()))


async def get(catalog: ModelCatalog, *, model: str) -> wire.Model:
    """Show one model.

    Raises:
        ModelNotFound: no server has it.
        Unavailable: the server that may have it gives no list.
    """
    found, is_whole = await catalog.known()
    if model in found:
        return found[model]
    if not is_whole:
        raise Unavailable("model server")
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
