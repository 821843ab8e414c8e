"""Bearer keys.

Promises: how long the comparison takes tells nothing about a key; a key is never logged, and echoed
only masked; it is judged before a byte of the body is read.
"""

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.errors import Unauthorized

_MISSING = "Missing bearer or basic authentication in header"
_INCORRECT = (
    "Incorrect API key provided: {key}. You can find your API key at"
    " https://platform.openai.com/account/api-keys."
)
_SHOWN_START, _SHOWN_END, _SHORT = 8, 4, 20

_bearer = HTTPBearer(auto_error=False, description="A key from `OVERNIGHT_API_KEY`.")


async def authenticate(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> None:
    """Let the request pass if it carries an accepted key.

    Raises:
        Unauthorized: it carries none, or a wrong one.
    """
    if credentials is None or not credentials.credentials:
        raise Unauthorized(_MISSING)
    given = credentials.credentials.encode()
    accepted: list[bytes] = request.app.state.keys
    # Compared with every key, so that the time does not tell which one it resembles.
    matches = [hmac.compare_digest(given, key) for key in accepted]
    if not any(matches):
        raise Unauthorized(_INCORRECT.format(key=mask(credentials.credentials)), "invalid_api_key")


def mask(key: str) -> str:
    """Its first and last characters; of a short key nothing at all."""
    if len(key) < _SHORT or not (key.isascii() and key.isprintable()):
        return "****"
    return f"{key[:_SHOWN_START]}****{key[-_SHOWN_END:]}"
