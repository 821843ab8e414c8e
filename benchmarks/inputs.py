"""Inputs of any size for the benchmarks: `python -m benchmarks.inputs OUT --lines N --line-bytes N`.

Promises: the same arguments give the same bytes; every line has exactly the size asked for; the text
compresses no better than real text does.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from cli.simulator.words import invent_text

# Lines are cut from one long text: drawing every word of a large file anew would take minutes. So
# long that by chance a compressed piece repeats less than 2 % of it.
POOL_BYTES = 16 * 1024 * 1024
MODEL = "gpt-4o-mini"
INSTRUCTION = (
    "Answer the question at the end of the text. If the text does not say, answer: unknown."
)
_TEXT = "\0"


def write_input(
    path: Path,
    *,
    lines: int,
    line_bytes: int,
    seed: int = 1,
    model: str = MODEL,
    instructions: Sequence[str] = (INSTRUCTION,),
) -> None:
    """Write a batch input of chat completions, `lines` times `line_bytes` bytes long.

    Of several instructions (system prompts), the lines have one after the other in turn.
    """
    rng = random.Random(seed)
    pool = invent_text(rng, max(line_bytes, min(POOL_BYTES, lines * line_bytes)))
    with path.open("w", encoding="ascii", newline="\n") as file:
        for number in range(1, lines + 1):
            instruction = instructions[number % len(instructions)]
            before, after = _frame(number, model=model, instruction=instruction)
            room = line_bytes - len(before) - len(after)
            if room < 1:
                message = f"a line needs at least {len(before) + len(after) + 1} bytes"
                raise ValueError(message)
            start = rng.randrange(len(pool) - room + 1)
            file.write(before + pool[start : start + room] + after)


def _frame(number: int, *, model: str, instruction: str) -> tuple[str, str]:
    body = {
        "model": model,
        "messages": [
            {"role": "system", "content": instruction},
            {"role": "user", "content": f"Text {number}. {_TEXT}"},
        ],
        "max_tokens": 100,
    }
    line = {"custom_id": f"line-{number:06}", "method": "POST", "url": "/v1/chat/completions"}
    before, _, after = json.dumps({**line, "body": body}, separators=(",", ":")).partition(
        "\\u0000"
    )
    return before, f"{after}\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a batch input of invented text.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--line-bytes", type=int, default=350)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    write_input(chosen.out, lines=chosen.lines, line_bytes=chosen.line_bytes, seed=chosen.seed)
