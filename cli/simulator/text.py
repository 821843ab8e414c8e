"""The simulated text: what a request asks, reduced to a string, and the made-up reply to it.

The reply depends on the prompt alone, so that a test can tell which line an answer belongs to
without keeping a table: it calls `simulated_text` on the line's prompt and compares.
"""

import hashlib
import random
from functools import cache
from typing import Any

from cli.simulator.words import invent_text

ECHO_CHARACTERS = 60
_FILLER_CHARACTERS = 1_048_576


def digest(text: str) -> str:
    """Eight bytes of hash, as 16 hexadecimal digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def simulated_text(prompt: str, reply_bytes: int | None = None, index: int = 0) -> str:
    """The reply to a prompt: the word simulated, the prompt's hash, and its beginning.

    `index` tells the choices of one answer apart. With `reply_bytes` the text is cut or filled to
    exactly that size.
    """
    return reply(prompt, digest(prompt), reply_bytes, index)


def reply(prompt: str, mark: str, reply_bytes: int | None, index: int) -> str:
    """`simulated_text` for a caller who has the prompt's hash already."""
    variant = f", choice {index}" if index else ""
    text = f"Simulated answer {mark}{variant}: {prompt[:ECHO_CHARACTERS]}"
    if reply_bytes is None:
        return text
    raw = text.encode("utf-8", "replace")[:reply_bytes].decode("utf-8", "ignore")
    missing = reply_bytes - len(raw.encode())
    return raw + _cut_filler(missing, int(mark, 16) + index) if missing else raw


def count_tokens(text: str) -> int:
    """A token for every four characters, which is near enough for English."""
    return max(1, len(text) // 4)


def message_text(content: Any) -> str:
    """The text of a message's content, given as a string or as a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(
            part["text"]
            for part in content
            if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return ""


def conversation(messages: list[Any]) -> tuple[str, int]:
    """The last user message's text, and the length in characters of all messages together."""
    last = ""
    characters = 0
    for message in messages:
        if isinstance(message, dict):
            content = message.get("content")
            text = content if isinstance(content, str) else message_text(content)
            characters += len(text)
            if text and (message.get("role") == "user" or not last):
                last = text
    return last, characters


@cache
def filler() -> str:
    """What fills replies to the size asked for; made on first use, which takes a moment."""
    return " " + invent_text(random.Random(0), _FILLER_CHARACTERS - 1)


def _cut_filler(size: int, start: int) -> str:
    text = filler()
    offset = start % len(text)
    piece = text[offset : offset + size]
    while len(piece) < size:
        piece += text[: size - len(piece)]
    return piece
