"""Write `docs/api.md` from the OpenAPI document: run it after changing a route or an object.

A test compares the file with `render()`, so the two cannot drift. A running API shows the same document at
`/openapi.json`, and at `/docs` in a form that sends requests.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from api.app import create_app
from api.examples import ANSWERS
from api.settings import ApiSettings
from models.settings import BrokerSettings, DatabaseSettings, UpstreamSettings

PATH = Path(__file__).parents[1] / "docs" / "api.md"
_HEAD = """\
# API reference

Every route, with its parameters and what it answers; the [objects](#objects) are at the end, each with an
example. The base URL is that of the API, such as `http://127.0.0.1:8080`. Every route under `/v1` wants
`Authorization: Bearer KEY`.

A refusal is an [ErrorEnvelope](#errorenvelope), whatever its status. Beside those that are named, every
route may answer 500 and 503, and under `/v1` 401 without a good key. How the answers compare with OpenAI's
is said in [compatibility](compatibility.md). A running API serves this as `/openapi.json`, and at `/docs`
as a page that sends requests.

This page is written by `scripts/write_api_reference.py`.
"""
_ALWAYS = {"401", "500", "503"}
_Json = dict[str, Any]


def document() -> _Json:
    """The OpenAPI document of an application with default settings; nothing is connected to."""
    app = create_app(
        ApiSettings.model_validate({"api_key": "sk-reference-0123456789"}),
        database=DatabaseSettings.model_validate({"database_url": "postgresql://localhost/none"}),
        broker=BrokerSettings.model_validate({"redis_url": "redis://localhost/0"}),
        upstream=UpstreamSettings.model_validate({"upstream_url": "http://localhost/v1"}),
    )
    return app.openapi()


def render() -> str:
    """The whole page."""
    openapi = document()
    parts = [_HEAD]
    for tag in openapi["tags"]:
        parts.append(f"## {tag['name'].capitalize()}\n\n{tag['description']}\n")
        parts += [
            _route(method, path, operation)
            for path, operations in openapi["paths"].items()
            for method, operation in operations.items()
            if operation["tags"] == [tag["name"]]
        ]
    parts.append("## Objects\n\nWhat answers are made of.\n")
    parts += [_schema(name, each) for name, each in openapi["components"]["schemas"].items()]
    return "\n".join(parts)


def _route(method: str, path: str, operation: _Json) -> str:
    lines = [f"### {method.upper()} {path}", "", operation["description"], ""]
    rows = [
        (each["name"], each["in"], each["required"], each["schema"], each["description"])
        for each in operation.get("parameters", [])
    ]
    lines += _table(rows)
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        form = "a form" if kind == "multipart/form-data" else "JSON"
        lines += [f"The body is {form}:", ""]
        lines += _members(content["schema"])
        if kind != "multipart/form-data":
            lines += _example(content["example"])
    lines += _answers(operation["responses"])
    return "\n".join(lines)


def _table(rows: list[tuple[str, str, bool, _Json, str]]) -> Iterator[str]:
    if not rows:
        return
    yield from ("| parameter | in | type | |", "|---|---|---|---|")
    for name, place, is_required, schema, description in rows:
        mark = ", required" if is_required and place != "path" else ""
        yield f"| `{name}` | {place}{mark} | {_type(schema)} | {_cell(description)} |"
    yield ""


def _members(schema: _Json) -> Iterator[str]:
    yield from ("| member | type | |", "|---|---|---|")
    for name, member in schema["properties"].items():
        notes = [_cell(member["description"])] if "description" in member else []
        if name in schema.get("required", ()) and "additionalProperties" in schema:
            notes.insert(0, "Required.")
        yield f"| `{name}` | {_type(member)} | {' '.join(notes)} |"
    yield ""


def _answers(responses: _Json) -> Iterator[str]:
    for status, answer in responses.items():
        if status >= "400":
            continue
        [(media_type, content)] = answer["content"].items()
        said = f" {_cell(answer['description'])}" if status != "200" else ""
        shape = _type(content["schema"]) if "schema" in content else f"`{media_type}`"
        yield f"**{status}**: {shape}.{said}"
        yield ""
    refusals = [
        f"{status} ({answer['description'].split('.')[0].split(';')[0].lower()})"
        for status, answer in responses.items()
        if status >= "400" and status not in _ALWAYS
    ]
    if refusals:
        yield f"Refused with: {', '.join(refusals)}."
        yield ""


def _schema(name: str, schema: _Json) -> str:
    lines = [f"### {name}", ""]
    if "description" in schema:
        lines += [_cell(schema["description"].partition("\n\n")[0]), ""]
    lines += _members(schema)
    if name in ANSWERS:
        lines += _example(ANSWERS[name])
    return "\n".join(lines)


def _example(value: object) -> Iterator[str]:
    yield from ("```json", json.dumps(value, indent=2, ensure_ascii=False), "```", "")


def _type(schema: _Json) -> str:
    """A schema in a few words; the names of objects are links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(each)}`" for each in schema["enum"])
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return " or ".join(dict.fromkeys(_type(each) for each in schema[word]))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"array of {_type(schema.get('items', {}))}"
    if schema.get("format") == "binary":
        return "bytes"
    bounds = [str(schema[each]) for each in ("minimum", "maximum") if each in schema]
    return f"{kind}, {' to '.join(bounds)}" if len(bounds) == 2 else str(kind)


def _cell(text: str) -> str:
    """Text that fits into a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    PATH.write_text(render())
