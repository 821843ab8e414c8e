"""A prefix cache, as model servers have one: what begins as an earlier call did is not read again.

A simple model of it: a prefix is there or it is not, from the moment the first call with it enters
service, and the least recently used one goes. Real servers share by blocks of some tokens.
"""

from typing import Any

import orjson

PROMPT_BYTES = 512
_INSTRUCTING = frozenset({"system", "developer"})


class Prefixes:
    """The latest prefixes, the least recently used first."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self._kept: dict[bytes, None] = {}

    def look_up(self, prefix: bytes, most: int) -> bool:
        """Whether it was there; it is now. At most so many are kept."""
        is_hit = prefix in self._kept
        if is_hit:
            del self._kept[prefix]
        self._kept[prefix] = None
        while len(self._kept) > most:
            del self._kept[next(iter(self._kept))]
        return is_hit


def prefix_of(body: dict[str, Any]) -> bytes:
    """What a call for text is likely to share with others.

    Its instructions and tools; without any, the first `PROMPT_BYTES` bytes of its prompt.
    """
    asked = body.get("messages") or body.get("input") or body.get("prompt")
    shared = [body.get("instructions"), body.get("tools"), *_instructing(asked)]
    text = orjson.dumps(shared) if any(shared) else orjson.dumps(asked)[:PROMPT_BYTES]
    return orjson.dumps(body.get("model")) + text


def _instructing(asked: Any) -> list[Any]:
    """The system and developer messages that the conversation begins with."""
    leading = []
    for message in asked if isinstance(asked, list) else []:
        if not isinstance(message, dict) or message.get("role") not in _INSTRUCTING:
            break
        leading.append(message)
    return leading
