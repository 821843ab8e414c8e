"""The endpoints that measure text: embeddings and moderations."""

from typing import Any

import orjson

from cli.simulator.answer import Answer
from cli.simulator.body import read_inputs, read_integer
from cli.simulator.refusal import Refusal
from cli.simulator.settings import SimulatorSettings
from cli.simulator.text import count_tokens, digest, message_text
from cli.simulator.vectors import MOST_DIMENSIONS, encoded_vector

DEFAULT_DIMENSIONS = 1_536

_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
_NOT_FLAGGED = orjson.Fragment(
    orjson.dumps(
        {
            "flagged": False,
            "categories": dict.fromkeys(_CATEGORIES, False),
            "category_scores": dict.fromkeys(_CATEGORIES, 0.000001),
            "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
        }
    )
)


def embeddings(body: dict[str, Any], _settings: SimulatorSettings) -> Answer:
    """A vector for each input, as numbers or base64, of the asked number of dimensions."""
    inputs = read_inputs(body, "input")
    dimensions = read_integer(body, "dimensions", DEFAULT_DIMENSIONS, MOST_DIMENSIONS)
    encoding = body.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise Refusal(
            400,
            f"Invalid value: '{encoding}'. Supported values are: 'float' and 'base64'.",
            code="invalid_value",
            param="encoding_format",
        )
    as_base64 = encoding == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": encoded_vector(digest(text), dimensions, as_base64=as_base64),
        }
        for index, text in enumerate(inputs)
    ]
    tokens = sum(map(count_tokens, inputs))
    said = {
        "object": "list",
        "data": data,
        "model": body["model"],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Answer(orjson.dumps(said), prompt_tokens=tokens)


def moderation(body: dict[str, Any], _settings: SimulatorSettings) -> Answer:
    """A clean bill for each input; a list of parts is one input."""
    given = body.get("input")
    if isinstance(given, list) and given and isinstance(given[0], dict):
        inputs = [message_text(given)]
    else:
        inputs = read_inputs(body, "input")
    said = {
        "id": f"modr-{digest(inputs[0])}",
        "model": body.get("model") or "omni-moderation-latest",
        "results": [_NOT_FLAGGED] * len(inputs),
    }
    return Answer(orjson.dumps(said))
