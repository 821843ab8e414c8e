"""Made-up embeddings: unit vectors cut from one fixed bank of random numbers.

A vector depends on its input and the number of dimensions alone. There are 4,096 places to cut, so
two inputs rarely share a vector, and the encoded ones are kept: making 1,536 numbers anew would
cost more than all the rest.
"""

import base64
import math
import random
from array import array
from functools import cache, lru_cache

import orjson

PLACES = 4_096
MOST_DIMENSIONS = 8_192


@lru_cache(maxsize=512)
def encoded_vector(mark: str, dimensions: int, *, as_base64: bool) -> orjson.Fragment:
    """The vector for an input's hash, as JSON: a base64 string of float32, or a list of numbers."""
    place = int(mark, 16) % PLACES
    cut = _bank()[place : place + dimensions]
    length = math.sqrt(sum(x * x for x in cut))
    vector = array("f", (x / length for x in cut))
    if as_base64:
        return orjson.Fragment(b'"' + base64.b64encode(vector.tobytes()) + b'"')
    return orjson.Fragment(orjson.dumps([float(f"{x:.8g}") for x in vector]))


@cache
def _bank() -> list[float]:
    rng = random.Random(0)
    return [rng.gauss(0.0, 1.0) for _ in range(PLACES + MOST_DIMENSIONS)]
