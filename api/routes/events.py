"""/v1/events: what changes, as it changes. An extension, described in docs/extensions.md."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from api.auth import CallerDep
from api.services.events import Watches

router = APIRouter(prefix="/v1/events", tags=["extensions"])

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events, without an end.",
        # No schema: that of a stream is told of its events by some and of its text by others.
        "content": {"text/event-stream": {}},
    }
}
_HEADERS = {
    "cache-control": "no-store",
    # What nginx needs to hear in order to pass on each event at once.
    "x-accel-buffering": "no",
}


async def _watches(request: Request) -> Watches:
    found: Watches = request.app.state.watches
    return found


@router.get("", response_class=Response, responses=_STREAM)
async def stream_events(
    caller: CallerDep, watches: Annotated[Watches, Depends(_watches)]
) -> Response:
    """Hear of each change of the project's batches, about a second after it."""
    events = await watches.listen(caller)
    return StreamingResponse(events, headers=_HEADERS, media_type="text/event-stream")
