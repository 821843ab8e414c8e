"""Section 3, the grammar: every parameter of every body, query and form."""

from collections.abc import Sequence
from typing import Any

import httpx

from tests.conformance.kit.case import case
from tests.conformance.kit.expect import (
    above,
    below,
    empty_array,
    missing,
    not_in_set,
    refused,
    ungrammatical,
    unknown,
    wrong_type,
)
from tests.conformance.kit.server import INPUTS
from tests.conformance.kit.subject import Subject

LIFE = {"anchor": "created_at", "seconds": 3600}
BODIES: dict[str, dict[str, Any]] = {
    "batches": {
        "input_file_id": "file-none",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
    "uploads": {
        "filename": "in.jsonl",
        "purpose": "batch",
        "bytes": 100,
        "mime_type": "application/jsonl",
    },
    "uploads/ID/complete": {"part_ids": ["part_none"]},
    "webhook_endpoints": {
        "name": "kit",
        "url": "https://example.com/hook",
        "event_types": ["batch.completed"],
    },
    "webhook_endpoints/ID": {},
    "webhook_endpoints/ID/rotate_secret": {},
    "webhook_endpoints/ID/test": {"event_type": "batch.completed"},
}
"""A good body of each route that takes one; `ID` is the id of a new object."""


_NO_OBJECTS: tuple[object, ...] = ([], "x")
_NO_STRINGS: tuple[object, ...] = (["a"], 5, 1.5, True, None, {})


def send(server: Subject, path: str, body: object) -> httpx.Response:
    """POST a body; where the route is below an object, that is made first."""
    parent, below_it, rest = path.partition("/ID")
    if not below_it:
        return server.post(path, body)
    made = server.post(parent, BODIES[parent])
    assert made.status_code == 200, f"POST /{parent}: {made.status_code} {made.text[:200]}"
    try:
        return server.post(f"{parent}/{made.json()['id']}{rest}", body)
    finally:
        if parent == "uploads":
            server.post(f"uploads/{made.json()['id']}/cancel")
        else:
            server.http.delete(f"{parent}/{made.json()['id']}")


def _rows(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"path": path, "name": name} for path, name in pairs]


@case(
    "3.1",
    "POST /{path} without {name}",
    also=["3.12"],
    rows=_rows(
        ("batches", "input_file_id"),
        ("batches", "endpoint"),
        ("batches", "completion_window"),
        ("uploads", "filename"),
        ("uploads", "purpose"),
        ("uploads", "bytes"),
        ("uploads", "mime_type"),
        ("uploads/ID/complete", "part_ids"),
        ("webhook_endpoints", "name"),
        ("webhook_endpoints", "url"),
        ("webhook_endpoints", "event_types"),
        ("webhook_endpoints/ID/test", "event_type"),
    ),
)
def a_missing_parameter(server: Subject, path: str, name: str) -> None:
    body = {key: value for key, value in BODIES[path].items() if key != name}
    ungrammatical(send(server, path, body), missing(name))


@case(
    "3.1",
    "POST /{path}: {name} without {member}",
    rows=[
        {"path": path, "name": name, "member": member}
        for path, name in (("batches", "output_expires_after"), ("uploads", "expires_after"))
        for member in LIFE
    ],
)
def a_missing_member(server: Subject, path: str, name: str, member: str) -> None:
    life = {key: value for key, value in LIFE.items() if key != member}
    ungrammatical(send(server, path, BODIES[path] | {name: life}), missing(f"{name}.{member}"))


@case("3.2", "POST /{path} with a key that nobody knows", rows=[{"path": path} for path in BODIES])
def an_unknown_parameter(server: Subject, path: str) -> None:
    ungrammatical(send(server, path, BODIES[path] | {"priority": 1}), unknown("priority"))


@case(
    "3.2",
    "POST /{path}: {name} with a member that nobody knows",
    rows=_rows(("batches", "output_expires_after"), ("uploads", "expires_after")),
)
def an_unknown_member(server: Subject, path: str, name: str) -> None:
    body = BODIES[path] | {name: LIFE | {"minutes": 1}}
    ungrammatical(send(server, path, body), unknown(f"{name}.minutes"))


_TYPES: tuple[tuple[str, str, str, Sequence[object]], ...] = (
    ("batches", "input_file_id", "a string", (5, 1.5, True, [], {}, None)),
    ("batches", "endpoint", "a string", (5, True, [], {}, None)),
    ("batches", "completion_window", "a string", (24, False, ["24h"], {}, None)),
    ("batches", "metadata", "an object", ("k=v", 5, [], True)),
    ("batches", "output_expires_after", "an object", ("24h", 3600, [], True)),
    ("batches", "output_expires_after.anchor", "a string", (5, None, [])),
    ("batches", "output_expires_after.seconds", "an integer", ("3600", 3600.5, True, None)),
    ("uploads", "filename", "a string", (5, None, [])),
    ("uploads", "purpose", "a string", (5, None, {})),
    ("uploads", "bytes", "an integer", ("100", 1.5, True, None)),
    ("uploads", "mime_type", "a string", (5, None)),
    ("uploads", "expires_after", "an object", ("1h", [])),
    ("uploads", "expires_after.seconds", "an integer", ("3600", None)),
    ("uploads/ID/complete", "part_ids", "an array", ("part_1", {}, 5, None)),
    ("uploads/ID/complete", "md5", "a string", (5, [])),
    ("webhook_endpoints", "name", "a string", (5, None)),
    ("webhook_endpoints", "url", "a string", (5, None, [])),
    ("webhook_endpoints", "event_types", "an array", ("batch.completed", {}, None)),
    ("webhook_endpoints/ID", "url", "a string", (5,)),
    ("webhook_endpoints/ID", "event_types", "an array", ("batch.completed",)),
    (
        "webhook_endpoints/ID/rotate_secret",
        "keep_old_secret_active_for_24_hours",
        "a boolean",
        ("yes", 1),
    ),
    ("webhook_endpoints/ID/test", "event_type", "a string", (5, [])),
)


@case(
    "3.3",
    "POST /{path}: {name} must be {expected}, is {value!r}",
    rows=[
        {"path": path, "name": name, "expected": expected, "value": value}
        for path, name, expected, values in _TYPES
        for value in values
    ],
)
def a_wrong_type(server: Subject, path: str, name: str, expected: str, value: object) -> None:
    parent, _, member = name.partition(".")
    given = LIFE | {member: value} if member else value
    response = send(server, path, BODIES[path] | {parent: given})
    ungrammatical(response, wrong_type(name, expected, value))


@case(
    "3.3",
    "POST /{path}: {name} holds {value!r}",
    rows=[
        {"path": "uploads/ID/complete", "name": "part_ids", "value": 5},
        {"path": "webhook_endpoints", "name": "event_types", "value": None},
    ],
)
def a_wrong_type_within(server: Subject, path: str, name: str, value: object) -> None:
    response = send(server, path, BODIES[path] | {name: [BODIES[path][name][0], value]})
    ungrammatical(response, wrong_type(f"{name}[1]", "a string", value))


@case(
    "3.3",
    "POST /{path} with a body that is {value!r}",
    rows=[
        {"path": path, "value": value} for path in ("batches", "uploads") for value in _NO_OBJECTS
    ],
)
def a_body_of_the_wrong_type(server: Subject, path: str, value: object) -> None:
    refused(server.post(path, value), 400, code="invalid_type", like="Invalid type for .*object.*")


_EVENTS = "batch.nothing"
_SETS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("batches", "endpoint", "/v1/nowhere", tuple(INPUTS)),
    ("batches", "output_expires_after.anchor", "last_active_at", ("created_at",)),
    ("uploads", "expires_after.anchor", "last_active_at", ("created_at",)),
)


@case(
    "3.4",
    "POST /{path}: {name} is {value}",
    rows=[
        {"path": path, "name": name, "value": value, "allowed": allowed}
        for path, name, value, allowed in _SETS
    ],
)
def not_one_of(server: Subject, path: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    parent, _, member = name.partition(".")
    given = LIFE | {member: value} if member else value
    response = send(server, path, BODIES[path] | {parent: given})
    ungrammatical(response, not_in_set(name, value, allowed))


@case(
    "3.4",
    "POST /{path}: {name} is no word of its set",
    rows=[
        {"path": "uploads", "name": "purpose", "value": "answers", "param": "purpose"},
        {
            "path": "webhook_endpoints",
            "name": "event_types",
            "value": [_EVENTS],
            "param": "event_types[0]",
        },
        {
            "path": "webhook_endpoints/ID/test",
            "name": "event_type",
            "value": _EVENTS,
            "param": "event_type",
        },
    ],
)
def no_word_of_the_set(server: Subject, path: str, name: str, value: object, param: str) -> None:
    response = send(server, path, BODIES[path] | {name: value})
    word = value[0] if isinstance(value, list) else value
    like = f"Invalid value: '{word}'. Supported values are: '.*'\\."
    refused(response, 400, code="invalid_value", param=param, like=like)


@case(
    "3.5",
    "POST /{path}: {name} is {value}",
    rows=[
        {"path": "batches", "name": "output_expires_after.seconds", "value": 3599, "least": 3600},
        {"path": "batches", "name": "output_expires_after.seconds", "value": -1, "least": 3600},
        {"path": "uploads", "name": "expires_after.seconds", "value": 3599, "least": 3600},
        {"path": "uploads", "name": "bytes", "value": -1, "least": None},
    ],
)
def too_small(server: Subject, path: str, name: str, value: int, least: int | None) -> None:
    response = send(server, path, _with(path, name, value))
    if least is None:
        like = (
            f"Invalid '{name}': integer below minimum value\\."
            f" Expected a value >= [01], but got {value} instead\\."
        )
        refused(response, 400, code="integer_below_min_value", param=name, like=like)
    else:
        ungrammatical(response, below(name, least, value))


@case(
    "3.6",
    "POST /{path}: {name} is {value}",
    rows=[
        {
            "path": "batches",
            "name": "output_expires_after.seconds",
            "value": 2_592_001,
            "most": 2_592_000,
        },
        {"path": "uploads", "name": "expires_after.seconds", "value": 2_592_001, "most": 2_592_000},
    ],
)
def too_large(server: Subject, path: str, name: str, value: int, most: int) -> None:
    ungrammatical(send(server, path, _with(path, name, value)), above(name, most, value))


def _with(path: str, name: str, value: object) -> dict[str, Any]:
    parent, _, member = name.partition(".")
    return BODIES[path] | {parent: LIFE | {member: value} if member else value}


@case(
    "3.11",
    "POST /{path}: {name} is empty",
    rows=_rows(("uploads/ID/complete", "part_ids"), ("webhook_endpoints", "event_types")),
)
def an_empty_array(server: Subject, path: str, name: str) -> None:
    ungrammatical(send(server, path, BODIES[path] | {name: []}), empty_array(name))


_PRECEDENCE: tuple[tuple[str, dict[str, Any], tuple[str, str]], ...] = (
    (
        "missing before unknown",
        {"input_file_id": ..., "x": 1},
        ("missing_required_parameter", "input_file_id"),
    ),
    (
        "missing before a type",
        {"input_file_id": ..., "endpoint": 5},
        ("missing_required_parameter", "input_file_id"),
    ),
    (
        "a missing member before unknown",
        {"output_expires_after": {"seconds": 3600}, "x": 1},
        ("missing_required_parameter", "output_expires_after.anchor"),
    ),
    ("unknown before a type", {"endpoint": 5, "x": 1}, ("unknown_parameter", "x")),
    ("unknown before a set", {"completion_window": "1w", "x": 1}, ("unknown_parameter", "x")),
    (
        "a type before a set",
        {"endpoint": "/v1/no", "input_file_id": 5},
        ("invalid_type", "input_file_id"),
    ),
    (
        "a type before a bound",
        {"output_expires_after": LIFE | {"seconds": 1}, "metadata": {"k": 1}},
        ("invalid_type", "metadata.k"),
    ),
)


@case(
    "3.13",
    "{title}",
    rows=[
        {"title": title, "changes": changes, "told": told} for title, changes, told in _PRECEDENCE
    ],
)
def one_of_several_faults(
    server: Subject, title: str, changes: dict[str, Any], told: tuple[str, str]
) -> None:
    del title
    body = {k: v for k, v in (BODIES["batches"] | changes).items() if v is not ...}
    refused(server.post("batches", body), 400, code=told[0], param=told[1])


@case("3.7", "metadata of 17 pairs", also=["1.25"])
def too_many_pairs(server: Subject) -> None:
    message = (
        "Invalid 'metadata': too many properties. Expected an object with at most 16 properties,"
        " but got an object with 17 properties instead."
    )
    metadata = {f"k{number}": "v" for number in range(17)}
    response = server.post("batches", server.batch_body(metadata=metadata))
    ungrammatical(response, ("object_above_max_properties", "metadata", message))


@case("3.8", "a metadata key of 65 characters", also=["1.25"])
def a_long_key(server: Subject) -> None:
    key = "k" * 65
    message = (
        f"Invalid property name in 'metadata': '{key}' is too long. Expected a string with maximum"
        " length 64, but got a string with length 65 instead."
    )
    response = server.post("batches", server.batch_body(metadata={key: "v"}))
    ungrammatical(response, ("property_name_above_max_length", f"metadata.{key}", message))


@case("3.9", "a metadata value of 513 characters", also=["1.25"])
def a_long_value(server: Subject) -> None:
    message = (
        "Invalid 'metadata.k': string too long. Expected a string with maximum length 512, but got"
        " a string with length 513 instead."
    )
    response = server.post("batches", server.batch_body(metadata={"k": "v" * 513}))
    ungrammatical(response, ("string_above_max_length", "metadata.k", message))


@case(
    "3.10",
    "a metadata value that is {value!r}",
    rows=[{"value": value} for value in _NO_STRINGS],
)
def a_value_of_the_wrong_type(server: Subject, value: object) -> None:
    response = server.post("batches", server.batch_body(metadata={"tags": value}))
    ungrammatical(response, wrong_type("metadata.tags", "a string", value))


@case("3.14", "512 characters of four bytes each are not too long", also=["1.25"])
def lengths_in_code_points(server: Subject) -> None:
    metadata = {"k" * 64: "𝄞" * 512}
    batch = server.create(metadata=metadata)
    assert batch["metadata"] == metadata
    server.post(f"batches/{batch['id']}/cancel")


@case("3.12", "a body that is no JSON")
def no_json(server: Subject) -> None:
    response = server.http.post(
        "batches", content=b'{"input_file_id": ', headers={"content-type": "application/json"}
    )
    refused(response, 400)
