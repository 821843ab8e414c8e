"""A finished answer, and the templates that the frequent ones are written from."""

from typing import Any, NamedTuple

import orjson


class Answer(NamedTuple):
    """A finished body, and how many tokens it took to say."""

    body: bytes
    tokens: int = 0


def template(shape: dict[str, Any]) -> bytes:
    """The shape as JSON, ready for `%`: `"%d"` takes a number, `"%b"` takes JSON, in this order."""
    return orjson.dumps(shape).replace(b'"%d"', b"%d").replace(b'"%b"', b"%b")
