"""The beginnings of a line's prompt, as numbers: lines with one in common can share a cache. Pure.

A model server that keeps its work on a prompt's beginning (its prefix cache) does it once for lines
that share it, if they come together. A beginning is known by its bytes as written, and a long one by its
length and both its ends, so that a line costs much the same whatever its size. A wrong
guess costs a little order, never a line.
"""

from typing import NamedTuple

MIN_PREFIX_BYTES = 200
"""A shorter one is not worth moving a line for: what servers keep is counted in blocks of tokens."""

_SHORT_BLOCK = 512
_LONG_BLOCK = 2048
_END = 512
_OPENERS = (b'{"role"', b'{"content"', b'{"type"')


class Prefix(NamedTuple):
    """Three beginnings of one prompt, each part of the next, as 64-bit numbers.

    One that is too short to count has the number of the next, and one that the prompt is too short
    for that of the one before. The numbers mean nothing in another process.
    """

    first: int
    second: int
    third: int


def prefix_of(text: bytes, *, before: bytes = b"") -> Prefix | None:
    """The beginnings of a prompt, written in JSON as messages, as a string, or as anything else.

    Of several messages: the first (a system prompt, mostly), a block more, and all but the last
    (examples, an earlier conversation). Of any other prompt: its first 512 and 2,048 bytes. `before` is
    what a server puts in front of them: tools, instructions.

    `None` if none of them has `MIN_PREFIX_BYTES`.
    """
    first, second, third = _cuts(text)
    size = len(text)
    number, begin = 0, 0
    numbers: list[int] = []
    for end in (first, second, third):
        if end > size:
            break
        if len(before) + end >= MIN_PREFIX_BYTES:
            if end - begin > 2 * _END:
                known = hash(text[begin : begin + _END]) ^ hash(text[end - _END : end]) ^ end
            else:
                known = hash(text[begin:end])
            number = hash((number, known)) if number else known ^ hash(before)
            numbers.append(number)
            begin = end
    if not numbers:
        return None
    return Prefix(numbers[0], numbers[-2] if len(numbers) > 1 else number, number)


def _cuts(text: bytes) -> tuple[int, int, int]:
    """Where the three beginnings end, in ascending order; some may lie beyond the text."""
    for opener in _OPENERS:
        # A quote inside a JSON string is escaped, so these bytes can only begin an object.
        if text.startswith(opener, 1):
            break
    else:
        return 0, _SHORT_BLOCK, _LONG_BLOCK
    # A single brace is found several times faster, and mostly it is the one.
    second = text.find(b"{", 2)
    if not text.startswith(opener, second):
        second = text.find(opener, 2)
    if second < 0:
        return 0, _SHORT_BLOCK, _LONG_BLOCK
    last = text.rfind(b"{")
    if not text.startswith(opener, last):
        last = text.rfind(opener)
    if last > second + _SHORT_BLOCK:
        return second, second + _SHORT_BLOCK, last
    return second, second + _SHORT_BLOCK, second + _LONG_BLOCK
