"""Invented words: text that means nothing, yet has the weight of real text.

Words come from a vocabulary with the frequencies of a natural language, so that what is made of them
compresses no better than real text does (zstd 1: to a 2.3rd; the documentation of Python: to a 3.3rd).
"""

import itertools
import random

VOCABULARY_WORDS = 8_000
_ONSETS = (
    *("b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w"),
    *("br", "ch", "cl", "cr", "dr", "fl", "gr", "pl", "pr", "sh", "sl", "st", "str", "th", "tr"),
)
_VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ea", "ee", "ie", "oa", "ou")
_CODAS = ("", "", "", "n", "r", "s", "t", "l", "d", "m", "ng", "nt", "st", "ck", "nd")
_ENDINGS = ((",", 0.06), (".", 0.05), ("?", 0.005))


def invent_text(rng: random.Random, characters: int) -> str:
    """So many characters of ASCII text: words, spaces, commas, full stops and question marks."""
    words, weights = _vocabulary(rng)
    pieces: list[str] = []
    length = 0
    while length < characters:
        pieces.append(" ".join(rng.choices(words, cum_weights=weights, k=10_000)))
        length += len(pieces[-1]) + 1
    return " ".join(pieces)[:characters]


def _vocabulary(rng: random.Random) -> tuple[list[str], list[float]]:
    """The words, short ones first, with and without an ending; and Zipf's weights, added up."""
    words: set[str] = set()
    while len(words) < VOCABULARY_WORDS:
        syllables = rng.choices((1, 2, 3, 4), (3, 4, 2, 1))[0]
        words.add(
            "".join(
                rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
                for _ in range(syllables)
            )
        )
    # By name first: a set's order is another in every process.
    ranked = sorted(sorted(words), key=lambda word: len(word) + rng.uniform(0, 6))
    weights = [1 / (rank + 2.7) for rank in range(len(ranked))]
    forms, form_weights = list(ranked), list(weights)
    for ending, share in _ENDINGS:
        forms += [word + ending for word in ranked]
        form_weights += [weight * share for weight in weights]
    return forms, list(itertools.accumulate(form_weights))
