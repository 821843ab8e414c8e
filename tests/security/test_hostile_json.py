"""JSON that is meant to break its reader, wherever JSON is read: an answer or an error, and no crash.

What the API's own bodies and forms are sent is in `tests/conformance/test_malformed.py`.
"""

import itertools
import json
from typing import Any

import pytest

from models.lifecycle import BatchStatus
from models.lines import Endpoint, LineChecker, decode_input_line, is_json_object
from tests.factories import input_line, json_lines, make_batch, make_file
from tests.fixtures.runtime import (
    Reply,
    Request,
    ScriptedServer,
    read_file,
    reload,
    run_to_end,
    started_batch,
)
from worker.answer import BrokenAnswer, error_envelope, on_one_line, read_usage
from worker.runtime import Runtime
from worker.stages.validate import validate_batch

DEEP, MANY = 100_000, 1_000_000
REFUSED = {
    "deep arrays": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "arrays without an end": b"[" * DEEP,
    "objects without an end": b'{"a":' * DEEP,
    "no number": b"NaN",
    "infinity": b"-Infinity",
    "a lone surrogate": b'"\\ud800"',
    "the other half": b'"\\udc00x"',
    "no UTF-8": b'"\xff"',
    "overlong UTF-8": b'"\xc0\xaf"',
    "a surrogate in UTF-8": b'"\xed\xa0\x80"',
    "a NUL byte": b'"\0"',
    "a comment": b"1 /* x */",
    "two values": b"1 2",
}
"""No JSON, or more nested than any request is."""

GOOD = {
    "a million digits": b"9" * MANY,
    "a million digits below zero": b"-" + b"9" * MANY,
    "a long fraction": b"0." + b"9" * MANY,
    "1e400": b"1e400",
    "a long exponent": b"1e" + b"9" * 10_000,
    "one below nothing": b"-1e-400",
    "a hundred thousand lists": b"[" + b"[]," * DEEP + b"[]]",
    "as many escapes": b'"' + b"\\u0000" * DEEP + b'"',
    "as many backslashes": b'"' + b"\\\\" * DEEP + b'"',
    "as many names": b"{" + b",".join(b'"%d":0' % number for number in range(DEEP)) + b"}",
    "one name as many times": b"{" + b",".join([b'"a":0'] * DEEP) + b"}",
    "the name of a prototype": b'{"__proto__": {"x": 1}}',
}
"""Unusual, and JSON by its grammar."""

MEMBERS = ("model", "messages", "stream", "tools", "metadata")


def body_with(member: str, value: bytes) -> bytes:
    """A chat request with this value in it, last and so the one that counts."""
    return b'{"model": "m", "messages": [], "%b": %b}' % (member.encode(), value)


def line_with(value: bytes, *, member: str = "x", place: str = "body") -> bytes:
    """An input line with this value in its body, or beside it."""
    body = body_with(member, value) if place == "body" else body_with("x", b"1")
    other = b"" if place == "body" else b', "%b": %b' % (place.encode(), value)
    return b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": %b%b}' % (
        body,
        other,
    )


def all_lines(value: bytes) -> list[bytes]:
    """The value in every place that a line has."""
    in_body = [line_with(value, member=member) for member in MEMBERS]
    places = ("custom_id", "method", "url", "body.", "headers")
    return in_body + [line_with(value, place=place) for place in places]


def fault_of(raw: bytes) -> str | None:
    """The code of what is wrong with a line."""
    found = LineChecker(Endpoint.CHAT_COMPLETIONS, with_prefixes=True).check(raw, 1)
    return None if found is None else found.code


@pytest.mark.parametrize("name", REFUSED)
def test_an_input_line_that_is_no_json(name: str) -> None:
    for raw in all_lines(REFUSED[name]):
        assert fault_of(raw) == "invalid_json_line"
        is_json_object(raw)  # it is asked first, at the upload, and may say what it likes


@pytest.mark.parametrize("name", GOOD)
def test_an_input_line_that_is_only_strange(name: str) -> None:
    for raw in all_lines(GOOD[name]):
        assert fault_of(raw) != "invalid_json_line"
        assert is_json_object(raw)
    taken = line_with(GOOD[name])
    assert fault_of(taken) is None
    assert bytes(decode_input_line(taken).body) == body_with("x", GOOD[name])


@pytest.mark.parametrize("name", [*REFUSED, *GOOD])
@pytest.mark.parametrize(
    "where", ['{"x": %b}', '{"usage": %b}', '{"usage": {"prompt_tokens": %b}}']
)
def test_an_upstreams_answer(where: str, name: str) -> None:
    body = where.encode() % (REFUSED | GOOD)[name]
    try:
        usage = read_usage(body)
    except BrokenAnswer:
        assert name in REFUSED
    else:
        # Text that was cut within an emoji is taken, and paid for.
        assert name in GOOD or "surrogate" in name or name == "the other half"
        assert 0 <= usage.input_tokens <= 2**53
    made = error_envelope(body, 400)
    assert b"\n" not in on_one_line(made)
    assert made.startswith(b"{")


async def test_a_batch_of_nothing_else(scripted_runtime: Runtime, scripted: ScriptedServer) -> None:
    """Each line gets its line, whatever it holds and whatever it is answered."""
    kinds = REFUSED | {name: value for name, value in GOOD.items() if len(value) < MANY}
    asked = {name: line_with(value) for name, value in kinds.items() if name in GOOD}
    lines = [
        raw.replace(b'"a"', b'"%d"' % number, 1)
        for number, raw in enumerate(itertools.islice(itertools.cycle(asked.values()), len(kinds)))
    ]
    statuses = dict.fromkeys(kinds, 200)

    async def answer(_: Request) -> Reply:
        # Each once with a success and then, if that was none, with a refusal.
        name = next(iter(statuses))
        status = statuses.pop(name)
        if status == 200 and name in REFUSED:
            statuses[name] = 400
        value = kinds[name]
        return Reply(status, b'{"usage": {"total_tokens": %b}, "x": %b}' % (value, value))

    scripted.script = answer
    batch = await started_batch(scripted_runtime, b"\n".join(lines) + b"\n")
    batch = await run_to_end(scripted_runtime, batch)

    assert batch.status == BatchStatus.COMPLETED
    database = scripted_runtime.database
    content = await read_file(database, batch.output_file_id)
    content += await read_file(database, batch.error_file_id)
    # The standard library builds no integer of more than 4,300 digits.
    written = [json.loads(raw, parse_int=len) for raw in content.splitlines()]
    assert sorted(int(line["custom_id"]) for line in written) == list(range(len(kinds)))


async def test_a_file_of_nothing_else_fails_its_batch_by_line(runtime: Runtime) -> None:
    bad = [line_with(value) for value in REFUSED.values()]
    content = b"".join(raw + b"\n" for raw in bad) + json_lines(input_line())
    file = await make_file(runtime.database, content)
    batch = await make_batch(runtime.database, input_file_id=file.id)
    await validate_batch(runtime, batch.pk)
    batch = await reload(runtime.database, batch)
    assert batch.status == BatchStatus.FAILED
    errors: list[dict[str, Any]] = json.loads(json.dumps(batch.errors))
    assert [error["line"] for error in errors] == list(range(1, len(bad) + 1))
    assert {error["code"] for error in errors} == {"invalid_json_line"}
