"""Bearer keys: those of the settings, which open the default project, and those in the database.

Promises: how long the comparison takes tells nothing about a key; a key is never logged, and echoed
only masked; it is judged before a byte of the body is read. Without a key, the session of a browser will
do (`api.dashboard`), but only for requests that its own page can have sent.
"""

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.errors import ForeignPage, Unauthorized
from api.services import keys, sessions
from models.project import DEFAULT_CALLER, Caller

_MISSING = "Missing bearer or basic authentication in header"
_INCORRECT = (
    "Incorrect API key provided: {key}. You can find your API key at"
    " https://platform.openai.com/account/api-keys."
)
SESSION_COOKIE = "overnight_session"
PAGE_HEADER = "x-overnight-dashboard"
"""What the dashboard's page sends with each request; no other site's page can, without asking first."""

_FOREIGN = "This request carries a browser's session, but was not sent by the dashboard's own page."
_SAFE = {"GET", "HEAD"}
_SHOWN_START, _SHOWN_END, _SHORT = 8, 4, 20

_bearer = HTTPBearer(
    auto_error=False,
    description="A key of `overnight keys create`, or one from `OVERNIGHT_API_KEY`.",
)


async def authenticate(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """The project whose key, or else whose session, the request carries.

    Raises:
        Unauthorized: it carries none, or one that is wrong, revoked or expired.
        ForeignPage: it carries a session, and comes from another site's page.
    """
    if credentials is not None and credentials.credentials:
        caller, _ = await open_with(request, credentials.credentials)
        return caller
    session_caller = await caller_of_session(request)
    if session_caller is None:
        raise Unauthorized(_MISSING)
    require_own_page(request)
    return session_caller


async def open_with(request: Request, key: str) -> tuple[Caller, bool]:
    """The project that a key opens, and whether the key is one of the settings.

    Raises:
        Unauthorized: it opens none.
    """
    accepted: list[bytes] = request.app.state.keys
    # Compared with every key, so that the time does not tell which one it resembles.
    matches = [hmac.compare_digest(key.encode(), each) for each in accepted]
    if any(matches):
        return DEFAULT_CALLER, True
    caller = await keys.find(request.app.state.database, key)
    if caller is None:
        raise Unauthorized(_INCORRECT.format(key=mask(key)), "invalid_api_key")
    return caller, False


async def caller_of_session(request: Request) -> Caller | None:
    """The project of the session whose cookie the request carries."""
    token = request.cookies.get(SESSION_COOKIE)
    if not token or not request.app.state.settings.dashboard:
        return None
    state = request.app.state
    return await sessions.find(state.database, token, settings_keys=state.keys)


def require_own_page(request: Request) -> None:
    """Let pass only what the dashboard's own page, or a person who follows its link, can have sent.

    The cookie is for the same site only, which includes other ports of this host. So the browser's word
    for where a request comes from counts, and what changes something needs a header that a page of
    another origin cannot send without asking this server, which allows it to nobody.

    Raises:
        ForeignPage: it comes from elsewhere.
    """
    site = request.headers.get("sec-fetch-site", "same-origin")
    is_asked_for = request.method in _SAFE or PAGE_HEADER in request.headers
    if site not in {"same-origin", "none"} or not is_asked_for:
        raise ForeignPage(_FOREIGN)


CallerDep = Annotated[Caller, Depends(authenticate)]


def mask(key: str) -> str:
    """Its first and last characters; of a short key nothing at all."""
    if len(key) < _SHORT or not (key.isascii() and key.isprintable()):
        return "****"
    return f"{key[:_SHOWN_START]}****{key[-_SHOWN_END:]}"
