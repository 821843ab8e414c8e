"""The OpenAPI document: whole, true to the routes, and with examples that are true to it."""

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import jsonschema_rs
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from api import routes
from api.document import REFUSED_WITH, TAGS
from api.examples import ANSWERS, CONTENTS, PARAMETERS, REFUSALS, REQUESTS

Operation = dict[str, Any]
_ENVELOPE = "#/components/schemas/ErrorEnvelope"


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    """The document as clients fetch it."""
    return app.openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, Operation]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def assert_valid(document: dict[str, Any], schema: dict[str, Any], value: object) -> None:
    """The value is of the schema, whose references lead into the document."""
    whole = schema | {"components": document["components"]}
    jsonschema_rs.Draft202012Validator(whole).validate(value)


def test_every_route_is_in_it(document: dict[str, Any]) -> None:
    """Also those of a module that nobody has included. HEAD goes without saying."""
    shown = {(method, path) for method, path, _ in operations(document)}
    modules = [
        import_module(f"{routes.__name__}.{found.name}")
        for found in pkgutil.iter_modules(routes.__path__)
    ]
    there = {
        (method, route.path.replace(":path}", "}"))
        for module in modules
        for route in module.router.routes
        if isinstance(route, APIRoute)
        for method in (route.methods or set()) - {"HEAD"}
    }
    # In the words of Prometheus.
    assert shown == there - {("GET", "/metrics")}
    assert len(shown) > 25


def test_every_route_says_what_it_is(document: dict[str, Any]) -> None:
    tags = {tag["name"]: tag["description"] for tag in TAGS}
    assert document["tags"] == list(TAGS)
    seen = []
    for method, path, operation in operations(document):
        place = f"{method} {path}"
        assert operation["summary"], place
        assert operation["description"], place
        assert [tags[tag] for tag in operation["tags"]], place
        seen.append(operation["operationId"])
    assert len(seen) == len(set(seen))


def test_every_route_that_needs_a_key_says_so(document: dict[str, Any]) -> None:
    [(name, scheme)] = document["components"]["securitySchemes"].items()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert scheme["description"]
    for _, path, operation in operations(document):
        wanted: list[dict[str, list[str]]] | None = (
            [{name: []}] if path.startswith("/v1/") else None
        )
        assert operation.get("security") == wanted, path


def test_every_route_says_with_what_it_refuses(document: dict[str, Any]) -> None:
    """And never with FastAPI's own 422, or a class of statuses."""
    for method, path, operation in operations(document):
        place = f"{method} {path}"
        answers = operation["responses"]
        assert not {"422", "4XX", "5XX", "default"} & set(answers), place
        assert "500" in answers, place
        if path.startswith("/v1/"):
            assert {"401", "500", "503"} <= set(answers), place
        for status, answer in answers.items():
            if status < "400" or path == "/readyz":
                continue
            [(kind, content)] = answer["content"].items()
            assert kind == "application/json", place
            assert content["schema"] == {"$ref": _ENVELOPE}, place
            assert_valid(document, content["schema"], content["example"])
            assert answer["description"], place


def test_the_tables_speak_of_what_is_there(document: dict[str, Any]) -> None:
    """A new route must say with what it refuses; one that is gone must leave the tables."""
    found = list(operations(document))
    names = {o["operationId"] for _, path, o in found if path.startswith("/v1/")}
    assert set(REFUSED_WITH) == names
    assert set(REQUESTS) == {o["operationId"] for _, _, o in found if "requestBody" in o}
    assert set(CONTENTS) <= {o["operationId"] for _, _, o in found}
    assert {p["name"] for _, _, o in found for p in o.get("parameters", [])} <= {
        *PARAMETERS,
        "Range",
    }
    assert set(ANSWERS) <= set(document["components"]["schemas"])
    statuses = {status for declared in REFUSED_WITH.values() for status in declared}
    assert set(REFUSALS) == statuses | {401, 500, 503}


def test_every_answer_has_a_schema_and_an_example(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        for status, answer in operation["responses"].items():
            place = f"{method} {path} {status}"
            assert answer["content"], place
            for kind, content in answer["content"].items():
                assert "example" in content, place
                if kind == "text/event-stream":
                    # A stream is never whole, so a schema would judge what nobody receives.
                    assert "schema" not in content, place
                    continue
                assert content["schema"], place
                assert_valid(document, content["schema"], content["example"])
            assert "x-request-id" in answer["headers"], place


def test_every_body_has_a_schema_and_an_example(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert_valid(document, content["schema"], content["example"])
            assert content["schema"]["properties"], f"{method} {path}"


def test_every_parameter_is_described_and_bounded(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        for parameter in operation.get("parameters", []):
            place = f"{method} {path} {parameter['name']}"
            schema = parameter["schema"]
            assert parameter["description"], place
            assert "anyOf" not in schema, place
            if schema["type"] == "integer":
                assert {"minimum", "maximum"} <= set(schema), place
            if "example" in parameter:
                assert_valid(document, schema, parameter["example"])
            else:
                assert parameter["name"] == "after", place


def test_every_member_of_a_body_has_its_limits(document: dict[str, Any]) -> None:
    """Integers have bounds, arrays a least length, and nothing unknown is let in."""
    for method, path, operation in operations(document):
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            place = f"{method} {path}"
            assert content["schema"]["additionalProperties"] is False, place
            for name, schema in content["schema"]["properties"].items():
                if schema.get("type") == "integer":
                    assert {"minimum", "maximum"} <= set(schema), f"{place} {name} ({kind})"
                if schema.get("type") == "array":
                    assert "minItems" in schema, f"{place} {name}"
