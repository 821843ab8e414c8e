"""The endpoints that draw: images made from a prompt, and images edited by one.

Each image is a whole PNG of one grey pixel whose comment is the simulated reply, so that it, too,
tells which prompt it belongs to.
"""

import base64
import struct
import time
import zlib
from typing import Any

import orjson

from cli.simulator import refusal
from cli.simulator.answer import Answer
from cli.simulator.body import read_integer, required_list, required_text
from cli.simulator.refusal import Refusal
from cli.simulator.settings import SimulatorSettings
from cli.simulator.text import count_tokens, simulated_text

MOST_IMAGES = 10
MOST_INPUT_IMAGES = 16

# What OpenAI counts for a square of low quality, and about what for one that is looked at.
_TOKENS_DRAWN = 272
_TOKENS_SEEN = 323


def image_generation(body: dict[str, Any], settings: SimulatorSettings) -> Answer:
    """Draw the prompt, `n` times."""
    return _drawn(body, settings, seen=0)


def image_edit(body: dict[str, Any], settings: SimulatorSettings) -> Answer:
    """Edit the images that the JSON body refers to by URL or file id."""
    given = required_list(body, "images")
    if len(given) > MOST_INPUT_IMAGES:
        raise Refusal(400, f"Too many images: at most {MOST_INPUT_IMAGES} are edited at once.")
    for index, image in enumerate(given):
        if not isinstance(image, dict):
            raise refusal.wrong_type(f"images[{index}]", "an object", image)
        if (image.get("image_url") is None) == (image.get("file_id") is None):
            raise refusal.missing(f"images[{index}].image_url")
    return _drawn(body, settings, seen=len(given))


def png(comment: str) -> bytes:
    """A picture of one pixel, with a comment."""
    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    text = b"Comment\0\0\0\0\0" + comment.encode("utf-8", "replace")
    pixel = zlib.compress(b"\0\x80")
    chunks = ((b"IHDR", head), (b"iTXt", text), (b"IDAT", pixel), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _drawn(body: dict[str, Any], settings: SimulatorSettings, *, seen: int) -> Answer:
    prompt = required_text(body, "prompt")
    count = read_integer(body, "n", 1, MOST_IMAGES)
    as_url = body.get("response_format") == "url"
    data = []
    for index in range(count):
        picture = png(simulated_text(prompt, settings.reply_bytes, index))
        written = base64.b64encode(picture).decode()
        data.append(
            {"url": f"data:image/png;base64,{written}"} if as_url else {"b64_json": written}
        )
    text_tokens, image_tokens, drawn = (
        count_tokens(prompt),
        seen * _TOKENS_SEEN,
        count * _TOKENS_DRAWN,
    )
    said = {
        "created": int(time.time()),
        "background": "opaque",
        "data": data,
        "output_format": "png",
        "quality": "low",
        "size": "1024x1024",
        "usage": {
            "input_tokens": text_tokens + image_tokens,
            "input_tokens_details": {"text_tokens": text_tokens, "image_tokens": image_tokens},
            "output_tokens": drawn,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": drawn},
            "total_tokens": text_tokens + image_tokens + drawn,
        },
    }
    return Answer(orjson.dumps(said), drawn)
