"""The API under requests that its own OpenAPI document makes up, good ones and bad ones.

No answer may be a 5xx, of a status, form or content type that the document does not name; what the
document does not allow must be refused. The requests are the same in every run.
"""

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, CheckContext, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.core.parameters import ParameterLocation
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import create_app
from api.document import TAGS
from models.settings import DatabaseSettings, UpstreamSettings, WebhookSettings
from tests.factories import input_file
from tests.fixtures.client import AUTHORIZATION, LiveApi, RecordingBell, api_settings, serve
from tests.fixtures.database import Postgres

pytestmark = pytest.mark.timeout(240)


def bad_bodies_are_refused(_: CheckContext, response: Response, case: Case[Any]) -> None:
    """Nothing that the document does not allow in a JSON body is taken.

    Not so for a form, where everything is a text or a file, nor for a query, where what nobody knows
    is left alone, as clients of proxies add to it.
    """
    body = case.meta.components.get(ParameterLocation.BODY) if case.meta else None
    if body is not None and body.mode.is_negative and case.media_type == "application/json":
        assert response.status_code >= 400, f"taken: {case.body!r}"


_CHECKS = [
    bad_bodies_are_refused,
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# For each operation and kind of data; a longer look: FUZZ_EXAMPLES=100 pytest --timeout 0 …
_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "5"))
_RUNS = [
    pytest.param(tag["name"], mode, id=f"{tag['name']}, {mode.value} data")
    for tag in TAGS
    for mode in GenerationMode
    # What takes nothing can be given nothing wrong.
    if (tag["name"], mode) != ("health", GenerationMode.NEGATIVE)
]
# Nothing listens there, so that the tests of webhook endpoints call nobody.
_NOWHERE = "http://127.0.0.1:9/hook"


@pytest.fixture
def fuzzed(
    database_settings: DatabaseSettings, upstream_settings: UpstreamSettings, bell: RecordingBell
) -> FastAPI:
    """The application, with limits that a few hundred requests do not reach."""
    return create_app(
        api_settings(max_batches_per_hour=0),
        database=database_settings,
        upstream=upstream_settings,
        webhooks=WebhookSettings.model_validate({"webhook_allow_private": True}),
        bell=bell,
    )


@pytest.fixture
def live(fuzzed: FastAPI) -> Iterator[LiveApi]:
    """It, on a port."""
    with serve(fuzzed) as running:
        yield running


def new_ids(client: httpx.Client) -> dict[str, str]:
    """One new object of each kind, by the name that paths have for its id."""
    form = {"file": ("in.jsonl", input_file())}
    file = client.post("files", data={"purpose": "batch"}, files=form)
    batch = {
        "input_file_id": file.json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    upload = {"filename": "x", "purpose": "batch", "bytes": 100, "mime_type": "text/plain"}
    # A project has room for only so many, and a long look makes more.
    for old in client.get("webhook_endpoints", params={"limit": 100}).json()["data"]:
        client.delete(f"webhook_endpoints/{old['id']}").raise_for_status()
    hook = {"name": "x", "url": _NOWHERE, "event_types": ["batch.completed"]}
    made = {
        "file_id": file,
        "batch_id": client.post("batches", json=batch),
        "upload_id": client.post("uploads", json=upload),
        "webhook_endpoint_id": client.post("webhook_endpoints", json=hook),
    }
    return {name: answer.raise_for_status().json()["id"] for name, answer in made.items()}


@pytest.mark.parametrize(("tag", "mode"), _RUNS)
def test_every_answer_is_one_of_the_document(
    live: LiveApi, fuzzed: FastAPI, tag: str, mode: GenerationMode
) -> None:
    document = fuzzed.openapi()
    seen = 0
    with httpx.Client(base_url=f"{live.base_url}/", headers=AUTHORIZATION) as client:
        for result in (
            schemathesis.openapi.from_dict(document).include(tag=tag).get_all_operations()
        ):
            assert isinstance(result, Ok)
            operation = result.ok()
            names = {parameter.name for parameter in operation.path_parameters}
            for of_objects in (False, True) if names - {"model"} else (False,):
                ids = {k: v for k, v in new_ids(client).items() if k in names}
                strategy = operation.as_strategy(mode, path_parameters=ids if of_objects else None)
                seen += _fuzz(strategy, live)
    assert seen


# These have nothing to ask the database for.
_NEED_NO_DATABASE = {
    "/",
    "/healthz",
    "/metrics",
    "/v1/models",
    "/v1/models/{model}",
    "/v1/webhook_event_types",
    "/v1/workers",
}


def test_without_a_database_every_answer_is_503_or_a_refusal(
    live: LiveApi, fuzzed: FastAPI, postgres: Postgres, database_name: str
) -> None:
    postgres.take_away(database_name)
    away: set[str] = set()
    every: set[str] = set()

    def is_503_or_refusal(_: CheckContext, response: Response, case: Case[Any]) -> None:
        if response.status_code == 503:
            away.add(f"{case.method} {case.path}")
            if case.path != "/readyz":
                assert response.json()["error"].keys() == {"message", "type", "param", "code"}
                assert response.json()["error"]["type"] == "server_error"
                assert "retry-after" in response.headers
        elif case.path not in _NEED_NO_DATABASE:
            assert 400 <= response.status_code < 500, response.status_code

    for result in schemathesis.openapi.from_dict(fuzzed.openapi()).get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        if operation.path not in _NEED_NO_DATABASE:
            every.add(f"{operation.method.upper()} {operation.path}")
            _fuzz(operation.as_strategy(GenerationMode.POSITIVE), live, [is_503_or_refusal])
    # Nearly all that the document allows gets as far as the database; of these the rest is refused before.
    assert every - away <= {"POST /v1/batches", "POST /v1/files", "POST /v1/webhook_endpoints"}


def _fuzz(strategy: Any, live: LiveApi, checks: list[Any] | None = None) -> int:
    seen = 0

    @given(case=strategy)
    @settings(
        max_examples=_EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case: Case[Any]) -> None:
        nonlocal seen
        seen += 1
        case.call_and_validate(
            base_url=live.url, headers=AUTHORIZATION, checks=checks or _CHECKS, timeout=20
        )

    send()
    return seen
