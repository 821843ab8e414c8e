"""A finished answer, and the templates that the frequent ones are written from."""

from typing import Any, NamedTuple

import orjson


class Answer(NamedTuple):
    """A finished body, how many tokens it took to say, and what its head has to say besides."""

    body: bytes
    tokens: int = 0
    prompt_tokens: int = 0
    headers: bytes = b""
    """Whole header lines; a `content-type` that stands first replaces that of JSON."""
    is_prefix_hit: bool | None = None
    """Whether its prefix was in the cache; None where there is no cache to look in."""


def template(shape: dict[str, Any]) -> bytes:
    """The shape as JSON, ready for `%`: `"%d"` takes a number, `"%b"` takes JSON, in this order."""
    return orjson.dumps(shape).replace(b'"%d"', b"%d").replace(b'"%b"', b"%b")
