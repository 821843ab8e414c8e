"""A minimal instance of a JSON schema, for requests that ask for structured output.

Covers what OpenAI's strict mode allows, and whatever else has an obvious smallest value. Free
strings carry the simulated reply, so that answers of the same schema still differ from prompt to
prompt.
"""

from collections.abc import Callable
from typing import Any

_FORMATS = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "duration": "PT0S",
    "email": "simulated@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "time": "00:00:00Z",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_Grow = Callable[[Any], Any]


def minimal_instance(schema: Any, text: str) -> Any:
    """The smallest value the schema accepts, with `text` wherever a string is free."""
    return _instance(schema, schema, text, frozenset())


def _instance(schema: Any, root: Any, text: str, open_references: frozenset[str]) -> Any:
    if not isinstance(schema, dict):
        return None
    reference = schema.get("$ref")
    if isinstance(reference, str):
        # A reference met again inside itself has no finite instance; null ends it.
        if reference in open_references:
            return None
        return _instance(_target(reference, root), root, text, open_references | {reference})
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]

    def grow(part: Any) -> Any:
        return _instance(part, root, text, open_references)

    for keyword in ("anyOf", "oneOf", "allOf"):
        if schema.get(keyword):
            return grow(_plainest(schema[keyword]))
    return _of_kind(schema, text, grow)


def _of_kind(schema: dict[str, Any], text: str, grow: _Grow) -> Any:
    match _kind(schema):
        case "object":
            properties = schema.get("properties", {})
            names = schema.get("required", properties)
            return {name: grow(properties.get(name, {})) for name in names}
        case "array":
            item = schema.get("items", {"type": "string"})
            return [grow(item) for _ in range(schema.get("minItems", 0))]
        case "string":
            return _string(schema, text)
        case "integer" | "number":
            return _number(schema)
        case "boolean":
            return False
        case _:
            return None


def _kind(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        return next((name for name in kind if name != "null"), "null")
    if isinstance(kind, str):
        return kind
    return "object" if "properties" in schema else "string"


def _string(schema: dict[str, Any], text: str) -> str:
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    text = text[: schema.get("maxLength", len(text))]
    return text.ljust(schema.get("minLength", 0), ".")


def _number(schema: dict[str, Any]) -> float:
    step = schema.get("multipleOf", 1)
    if "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + step
    else:
        low = schema.get("minimum", min(0, schema.get("maximum", 0)))
    value: float = -(-low // step) * step
    return value


def _plainest(options: list[Any]) -> Any:
    """The first option that is not a reference: the smaller one, and the end of recursion."""
    return next((o for o in options if isinstance(o, dict) and "$ref" not in o), options[0])


def _target(reference: str, root: Any) -> Any:
    target = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        if step:
            target = target.get(step) if isinstance(target, dict) else None
    return target
