"""The page at `/`, its files, and the session that a browser has instead of a key.

Promises: the key is sent once and never kept, neither here nor by the page; the cookie is out of reach of
scripts and is not sent along by other sites' pages.
"""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from starlette.exceptions import HTTPException

from api.auth import SESSION_COOKIE, caller_of_session, open_with, require_own_page
from api.dashboard.assets import HEADERS, PAGE, assets
from api.deps import DatabaseDep, SettingsDep
from api.document import own_version
from api.grammar import refusal_of
from api.params import read_json
from api.services import sessions
from models.project import DEFAULT_PROJECT_PK, Caller

router = APIRouter(include_in_schema=False)

_NOT_STORED = {"cache-control": "no-store"}


class SignIn(BaseModel):
    """What a browser sends to open a session."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: Annotated[str, StringConstraints(min_length=1, max_length=512)]


class Session(BaseModel):
    """Who is signed in: nobody, if there is no project."""

    project: str | None = None
    is_operator: bool = False
    version: str


@router.get("/")
async def root(request: Request, settings: SettingsDep) -> Response:
    """The page, for a browser; for anybody else what this is."""
    if settings.dashboard and "text/html" in request.headers.get("accept", ""):
        return _serve(request, PAGE, {"vary": "accept"})
    body = {"name": "Overnight", "api": "/v1", "documentation": "/docs"}
    return JSONResponse(body, headers={"vary": "accept"})


@router.get("/dashboard/static/{name:path}")
async def static(name: str, request: Request, settings: SettingsDep) -> Response:
    """One file of the page."""
    if not settings.dashboard or name == PAGE or name not in assets():
        raise HTTPException(404)
    return _serve(request, name, {})


def _serve(request: Request, name: str, headers: dict[str, str]) -> Response:
    asset = assets()[name]
    headers = {**HEADERS, **headers, "etag": asset.etag}
    if request.headers.get("if-none-match") == asset.etag:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.media_type)


async def _own_page(request: Request, settings: SettingsDep) -> None:
    if not settings.dashboard:
        raise HTTPException(404)
    require_own_page(request)


_OWN_PAGE = [Depends(_own_page)]


@router.get("/dashboard/session", dependencies=_OWN_PAGE)
async def show_session(request: Request) -> Response:
    """Who is signed in."""
    return _shown(await caller_of_session(request))


@router.post("/dashboard/session", dependencies=_OWN_PAGE)
async def open_session(request: Request, database: DatabaseDep, settings: SettingsDep) -> Response:
    """Sign in: show a key, and get a cookie."""
    try:
        key = SignIn.model_validate(await read_json(request)).key.strip()
    except ValidationError as error:
        raise refusal_of(error.errors(include_url=False, include_input=False)) from None
    caller, is_of_settings = await open_with(request, key)
    life = timedelta(hours=settings.dashboard_session_hours)
    token = await sessions.open_session(
        database, caller, key=key, is_of_settings=is_of_settings, life=life
    )
    response = _shown(caller)
    _set_cookie(request, response, token, max_age_seconds=int(life.total_seconds()))
    return response


@router.delete("/dashboard/session", dependencies=_OWN_PAGE)
async def close_session(request: Request, database: DatabaseDep) -> Response:
    """Sign out."""
    token = request.cookies.get(SESSION_COOKIE)
    if token:
        await sessions.close_session(database, token)
    response = _shown(None)
    _set_cookie(request, response, "", max_age_seconds=0)
    return response


def _shown(caller: Caller | None) -> Response:
    shown = Session(version=own_version())
    if caller is not None:
        is_operator = caller.project_pk == DEFAULT_PROJECT_PK
        shown = Session(project=caller.project_id, is_operator=is_operator, version=own_version())
    return JSONResponse(shown.model_dump(), headers=_NOT_STORED)


def _set_cookie(request: Request, response: Response, token: str, *, max_age_seconds: int) -> None:
    response.set_cookie(
        SESSION_COOKIE,
        token,
        max_age=max_age_seconds,
        path="/",
        httponly=True,
        samesite="strict",
        # Behind TLS the browser must not send it in the clear; on loopback there is no TLS.
        secure=request.url.scheme == "https",
    )
