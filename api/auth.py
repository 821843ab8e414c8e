"""Bearer keys: those of the settings, which open the default project, and those in the database.

Promises: how long the comparison takes tells nothing about a key; a key is never logged, and echoed
only masked; it is judged before a byte of the body is read.
"""

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.errors import Unauthorized
from api.services import keys
from models.project import DEFAULT_CALLER, Caller

_MISSING = "Missing bearer or basic authentication in header"
_INCORRECT = (
    "Incorrect API key provided: {key}. You can find your API key at"
    " https://platform.openai.com/account/api-keys."
)
_SHOWN_START, _SHOWN_END, _SHORT = 8, 4, 20

_bearer = HTTPBearer(
    auto_error=False,
    description="A key of `overnight keys create`, or one from `OVERNIGHT_API_KEY`.",
)


async def authenticate(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """The project whose key the request carries.

    Raises:
        Unauthorized: it carries none, or one that is wrong, revoked or expired.
    """
    if credentials is None or not credentials.credentials:
        raise Unauthorized(_MISSING)
    key = credentials.credentials
    accepted: list[bytes] = request.app.state.keys
    # Compared with every key, so that the time does not tell which one it resembles.
    matches = [hmac.compare_digest(key.encode(), each) for each in accepted]
    caller = DEFAULT_CALLER if any(matches) else await keys.find(request.app.state.database, key)
    if caller is None:
        raise Unauthorized(_INCORRECT.format(key=mask(key)), "invalid_api_key")
    return caller


CallerDep = Annotated[Caller, Depends(authenticate)]


def mask(key: str) -> str:
    """Its first and last characters; of a short key nothing at all."""
    if len(key) < _SHORT or not (key.isascii() and key.isprintable()):
        return "****"
    return f"{key[:_SHOWN_START]}****{key[-_SHOWN_END:]}"
