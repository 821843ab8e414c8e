"""Keys, unknown places, headers, and what holds for every answer (sections 1, 3 and 8)."""

import httpx
import openai

from tests.conformance.kit.case import case
from tests.conformance.kit.expect import conforms, fits, json_of, ok, raises, refused, same
from tests.conformance.kit.server import json_lines
from tests.conformance.kit.subject import Subject

ROUTES = [
    ("GET", "files"),
    ("POST", "files"),
    ("GET", "files/file-none"),
    ("DELETE", "files/file-none"),
    ("GET", "files/file-none/content"),
    ("GET", "batches"),
    ("POST", "batches"),
    ("GET", "batches/batch_none"),
    ("POST", "batches/batch_none/cancel"),
    ("POST", "uploads"),
    ("POST", "uploads/upload_none/parts"),
    ("POST", "uploads/upload_none/complete"),
    ("POST", "uploads/upload_none/cancel"),
    ("GET", "models"),
    ("GET", "models/none"),
    ("GET", "webhook_endpoints"),
    ("POST", "webhook_endpoints"),
    ("GET", "webhook_endpoints/none"),
    ("POST", "webhook_endpoints/none"),
    ("DELETE", "webhook_endpoints/none"),
    ("POST", "webhook_endpoints/none/rotate_secret"),
    ("POST", "webhook_endpoints/none/test"),
    ("GET", "webhook_event_types"),
]
_ROWS = [{"method": method, "path": path} for method, path in ROUTES]
NO_KEY = "Missing bearer or basic authentication in header"


@case("3.15", "{method} /{path} without a key", also=["1.1", "2.30"], rows=_ROWS)
def without_a_key(server: Subject, method: str, path: str) -> None:
    refused(server.anonymous.request(method, path), 401, NO_KEY)


@case(
    "3.15",
    "an Authorization that is no bearer key: '{given}'",
    rows=[{"given": "Bearer"}, {"given": "sk-123"}],
)
def no_bearer_key(server: Subject, given: str) -> None:
    response = server.anonymous.get("files", headers={"authorization": given})
    refused(response, 401, NO_KEY)


@case("3.16", "{method} /{path} with a wrong key", also=["1.1"], rows=_ROWS)
def with_a_wrong_key(server: Subject, method: str, path: str) -> None:
    headers = {"authorization": "Bearer sk-invalid-0123456789-garbage"}
    response = server.anonymous.request(method, path, headers=headers)
    message = refused(
        response,
        401,
        code="invalid_api_key",
        like="Incorrect API key provided: .*\\*.* You can find your API key at .*",
    )
    assert "0123456789" not in message, "the key is not masked"


@case("3.16", "the SDK raises AuthenticationError", also=["3.37"])
def the_sdk_is_told_of_a_wrong_key(server: Subject) -> None:
    with openai.OpenAI(base_url=server.base_url, api_key="sk-wrong", max_retries=0) as client:
        error = raises(openai.AuthenticationError, client.batches.list)
    same(error.code, "invalid_api_key", "the code")


@case(
    "3.17",
    "{method} /{path}",
    rows=[
        {"method": "GET", "path": "foo"},
        {"method": "PUT", "path": "files"},
        {"method": "PATCH", "path": "batches/batch_none"},
        {"method": "GET", "path": "batches/batch_none/cancel"},
        {"method": "GET", "path": "files/"},
    ],
)
def an_unknown_url(server: Subject, method: str, path: str) -> None:
    like = f"Unknown request URL: {method} /.*{path}\\. Please check the URL for typos, or .*"
    refused(server.http.request(method, path), 404, code="unknown_url", like=like)


@case(
    "1.19",
    "{method} /batches/ID",
    rows=[{"method": "DELETE"}, {"method": "POST"}, {"method": "PATCH"}],
)
def a_batch_cannot_be_changed(server: Subject, method: str) -> None:
    batch = server.runs["failed"].ended()
    response = server.http.request(method, f"batches/{batch['id']}")
    refused(response, 404, code="unknown_url", like="Unknown request URL.*")
    same(server.batch(batch["id"]), batch, "the batch")


@case("1.2", "organization and project headers")
def organization_and_project(server: Subject) -> None:
    headers = {"openai-organization": "org-kit", "openai-project": "proj_kit"}
    response = server.http.get("batches", headers=headers)
    # A service with organizations may say that this one is not ours; nothing may break.
    if response.status_code == 200:
        ok(response)
    else:
        assert response.status_code in {401, 403}, f"the status is {response.status_code}"


@case(
    "1.3",
    "GET /{path} is JSON",
    rows=[{"path": p} for p in ("files", "batches", "models", "files/file-none")],
)
def answers_are_json(server: Subject, path: str) -> None:
    json_of(server.http.get(path))


def _answers(server: Subject) -> list[httpx.Response]:
    return [
        server.http.get("files", params={"limit": 1}),
        server.http.get("batches", params={"limit": 1}),
        server.http.get("batches/batch_none"),
        server.http.get("nowhere"),
        server.anonymous.get("files"),
        server.http.get("files", params={"limit": "x"}),
    ]


@case("8.1", "x-request-id on successes and errors, another each time")
def request_ids(server: Subject) -> None:
    found = [response.headers.get("x-request-id") for response in _answers(server)]
    assert all(found), f"some are missing: {found}"
    same(len(set(found)), len(found), "the number of different ids")


@case("8.1", "the SDK shows it on objects and exceptions")
def request_ids_in_the_sdk(server: Subject) -> None:
    batch = server.sdk.batches.retrieve(server.runs["failed"].ended()["id"])
    assert batch._request_id, "the object has none"
    error = raises(openai.NotFoundError, lambda: server.sdk.batches.retrieve("batch_none"))
    assert error.request_id, "the exception has none"


@case("8.1", "on content of a file")
def request_ids_of_content(server: Subject) -> None:
    output = server.runs["clean"].ended()["output_file_id"]
    assert server.http.get(f"files/{output}/content").headers.get("x-request-id"), "there is none"


@case("8.2", "openai-processing-ms is a whole number")
def processing_time(server: Subject) -> None:
    for response in _answers(server):
        fits(response.headers.get("openai-processing-ms"), "[0-9]+", "openai-processing-ms")


@case("8.3", "openai-version")
def version(server: Subject) -> None:
    for response in _answers(server):
        same(response.headers.get("openai-version"), "2020-10-01", "openai-version")


@case("8.4", "openai-organization")
def organization(server: Subject) -> None:
    response = server.http.get("files", params={"limit": 1})
    assert response.headers.get("openai-organization"), "there is none"


@case("8.6", "a client's own request id")
def a_clients_own_request_id(server: Subject) -> None:
    headers = {"x-client-request-id": "kit-0123456789"}
    response = server.http.get("batches", params={"limit": 1}, headers=headers)
    ok(response)
    assert response.headers.get("x-request-id"), "there is no x-request-id"


@case(
    "8.7",
    "a refusal of the request is not to be tried again: {path}",
    rows=[{"path": "batches/batch_none"}, {"path": "files?limit=x"}],
)
def refusals_are_not_retried(server: Subject, path: str) -> None:
    response = server.http.get(path)
    assert response.status_code not in {408, 409, 429}, f"the status is {response.status_code}"
    assert response.status_code < 500, f"the status is {response.status_code}"
    assert response.headers.get("x-should-retry") != "true", "x-should-retry is true"


@case("8.11", "Accept: {accept}", rows=[{"accept": "application/binary"}, {"accept": "text/plain"}])
def any_accept_will_do(server: Subject, accept: str) -> None:
    file = server.upload_lines(server.line())
    response = server.http.get(f"files/{file['id']}/content", headers={"accept": accept})
    same(response.status_code, 200, "the status")
    same(response.content, json_lines(server.line()), "the content")


@case(
    "8.12",
    "GET {path}",
    rows=[{"path": p} for p in ("files/", "batches/", "models/", "files//content")],
)
def no_redirect(server: Subject, path: str) -> None:
    response = server.http.get(path)
    assert not 300 <= response.status_code < 400, f"the status is {response.status_code}"


@case(
    "2.30",
    "the envelope of {title}",
    rows=[{"title": t} for t in ("a 400", "a 401", "a 404", "a 409")],
)
def the_envelope(server: Subject, title: str) -> None:
    failed = server.runs["failed"].ended()["id"] if title == "a 409" else ""
    response = {
        "a 400": lambda: server.http.get("batches?limit=x"),
        "a 401": lambda: server.anonymous.get("batches"),
        "a 404": lambda: server.http.get("batches/batch_none"),
        "a 409": lambda: server.http.post(f"batches/{failed}/cancel"),
    }[title]()
    same(response.status_code, int(title[2:]), "the status")
    error = json_of(response)["error"]
    same(sorted(error), ["code", "message", "param", "type"], "the error's keys")


@case("3.37", "no 422: {title}", rows=[{"title": t} for t in ("JSON", "query", "form", "path")])
def no_status_of_the_framework(server: Subject, title: str) -> None:
    response = {
        "JSON": lambda: server.post("batches", {"input_file_id": 1}),
        "query": lambda: server.http.get("files?limit=x"),
        "form": lambda: server.http.post("files", data={"purpose": "batch"}),
        "path": lambda: server.http.get("files/%00"),
    }[title]()
    assert response.status_code in {400, 404}, f"the status is {response.status_code}"
    same(list(json_of(response)), ["error"], "the body's keys")


@case(
    "3.37",
    "the SDK's exception for a {status}",
    rows=[{"status": 400}, {"status": 404}, {"status": 409}],
)
def exceptions_of_the_sdk(server: Subject, status: int) -> None:
    failed = server.runs["failed"].ended()["id"]
    if status == 400:
        raises(openai.BadRequestError, lambda: server.sdk.batches.list(limit=101))
    elif status == 404:
        raises(openai.NotFoundError, lambda: server.sdk.batches.retrieve("batch_none"))
    else:
        raises(openai.ConflictError, lambda: server.sdk.batches.cancel(failed))


@case("1.17", "every model of the list can be shown", also=["2.28", "2.29"])
def models(server: Subject) -> None:
    listed = ok(server.http.get("models"))
    same((listed["object"], set(listed)), ("list", {"object", "data"}), "the list")
    assert listed["data"], "there is no model"
    for model in listed["data"][:5]:
        conforms(openai.types.Model, model, ["shutdown_date"])
        same(ok(server.http.get(f"models/{model['id']}")), model, "the model")


@case("1.17", "a model that is not there")
def no_model(server: Subject) -> None:
    response = server.http.get("models/no-such-model")
    refused(
        response,
        404,
        code="model_not_found",
        param="model",
        like="The model 'no-such-model' does not exist.*",
    )


@case("2.29", "the list of models ignores pages")
def models_have_no_pages(server: Subject) -> None:
    whole = ok(server.http.get("models"))
    same(ids_of(ok(server.http.get("models", params={"limit": 1}))), ids_of(whole), "the list")
    same(ids_of(whole), [model.id for model in server.sdk.models.list()], "the SDK's list")


def ids_of(listed: dict[str, list[dict[str, str]]]) -> list[str]:
    return [model["id"] for model in listed["data"]]
