"""Which prompts count as beginning alike."""

import json
from typing import Any

import pytest

from models.lines import Endpoint, LineChecker
from models.prefix import Prefix, prefix_of

SYSTEM = "You answer in one word. " * 20
LONG = "A long story. " * 300


def prefix(body: dict[str, Any], endpoint: Endpoint = Endpoint.CHAT_COMPLETIONS) -> Prefix | None:
    checker = LineChecker(endpoint, with_prefixes=True)
    line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": {"model": "m"} | body}
    assert checker.check(json.dumps(line).encode(), 1) is None
    return checker.prefix


def chat(*contents: Any, role: str = "system", **more: Any) -> Prefix | None:
    roles = [role, *["user", "assistant"] * len(contents)]
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return prefix({"messages": messages} | more)


def shared(one: Prefix | None, other: Prefix | None) -> list[bool]:
    assert one is not None
    assert other is not None
    return [a == b for a, b in zip(one, other, strict=True)]


def test_a_system_prompt_is_shared_whatever_follows() -> None:
    assert shared(chat(SYSTEM, "one"), chat(SYSTEM, "another")) == [True, True, True]
    assert shared(chat(SYSTEM, "x" * 700), chat(SYSTEM, "y" * 700)) == [True, True, False]
    assert shared(chat(SYSTEM, "one"), chat(SYSTEM + "!", "one")) == [False, False, False]


def test_long_prompts_of_the_same_length_are_told_apart_by_their_ends() -> None:
    assert shared(chat("a" + LONG, "q"), chat("b" + LONG, "q")) == [False, False, False]
    assert shared(chat(LONG + "a", "q"), chat(LONG + "b", "q")) == [False, False, False]


def test_examples_are_shared_up_to_the_last_message() -> None:
    one = chat(SYSTEM, "q1", LONG, "one")
    assert shared(one, chat(SYSTEM, "q1", LONG, "another")) == [True, True, True]
    assert shared(one, chat(SYSTEM, "q2", LONG, "one")) == [True, False, False]
    assert shared(one, chat(SYSTEM, "q1", LONG + "!", "one")) == [True, True, False]


def test_tools_come_before_the_messages() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": SYSTEM}}]
    assert shared(chat("hi", "one", tools=tools), chat("hi", "two", tools=tools)) == [True] * 3
    assert shared(chat(SYSTEM, "one", tools=tools), chat(SYSTEM, "one")) == [False] * 3


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        (Endpoint.CHAT_COMPLETIONS, "messages"),
        (Endpoint.COMPLETIONS, "prompt"),
        (Endpoint.RESPONSES, "input"),
    ],
)
def test_a_single_text_is_shared_by_its_first_bytes(endpoint: Endpoint, name: str) -> None:
    def of(text: str) -> Prefix | None:
        value = [{"role": "user", "content": text}] if name == "messages" else text
        return prefix({name: value}, endpoint)

    assert shared(of("a" * 1000 + "b" * 2000), of("a" * 1000 + "c" * 2000)) == [True, True, False]
    assert shared(of("a" * 600 + "b"), of("a" * 600 + "c")) == [True, True, True]
    assert shared(of("a" * 400 + "b" * 200), of("a" * 400 + "c" * 200)) == [False, False, False]
    assert of("a" * 300) is None


def test_instructions_are_shared() -> None:
    def of(text: str, instructions: str) -> Prefix | None:
        return prefix({"input": text, "instructions": instructions}, Endpoint.RESPONSES)

    assert shared(of("one", SYSTEM), of("two", SYSTEM)) == [True, True, True]
    assert shared(of("one", SYSTEM), of("one", SYSTEM + "!")) == [False, False, False]
    assert of("one", "Be brief.") is None


def test_keys_may_come_in_another_order() -> None:
    def of(system: str, user: str) -> Prefix | None:
        return prefix_of(
            json.dumps(
                [{"content": system, "role": "system"}, {"content": user, "role": "user"}],
                separators=(",", ":"),
            ).encode()
        )

    assert shared(of(SYSTEM, "one"), of(SYSTEM, "another")) == [True, True, True]


def test_braces_and_quotes_in_a_text_are_no_message() -> None:
    tricky = SYSTEM + ' {"role": "user"} {' + SYSTEM
    assert shared(chat(tricky, 'one {"role"'), chat(tricky, "another {")) == [True, True, True]


def test_parts_of_a_message_are_no_message() -> None:
    parts = [{"type": "text", "text": SYSTEM}, {"type": "text", "text": "{"}]
    assert shared(chat(parts, [{"type": "text", "text": "q"}]), chat(parts, "other")) == [True] * 3


def test_short_beginnings_do_not_count() -> None:
    assert chat("You are helpful.", "Hello") is None
    assert shared(chat("Hi", "a" * 600), chat("Hi", "b" * 600)) == [False, False, False]


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (Endpoint.EMBEDDINGS, {"input": LONG}),
        (Endpoint.MODERATIONS, {"input": LONG}),
        (Endpoint.IMAGE_GENERATIONS, {"prompt": LONG}),
        (Endpoint.VIDEOS, {"prompt": LONG}),
    ],
)
def test_other_endpoints_have_none(endpoint: Endpoint, body: dict[str, Any]) -> None:
    assert prefix(body, endpoint) is None


@pytest.mark.parametrize("text", [b"", b"7", b"[]", b"[[1,2],[3]]", b'[{"role"', b'[{"role":"u"}]'])
def test_anything_else_is_borne(text: bytes) -> None:
    assert prefix_of(text) is None


def test_a_bad_line_leaves_no_prefix_behind() -> None:
    checker = LineChecker(Endpoint.COMPLETIONS, with_prefixes=True)
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions"}
    good = json.dumps(line | {"body": {"model": "m", "prompt": LONG}}).encode()
    assert checker.check(good, 1) is None
    assert checker.prefix is not None
    assert checker.check(b"{", 2) is not None
    assert checker.prefix is None
