"""Writes the example inputs: `python examples/make_requests.py`, from the repository's root.

The same files each time: a hundred thousand other reviews are one seed away.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
INSTRUCTION = "Judge the review in one word: positive, negative or mixed."

PRODUCTS = (
    *("coffee grinder", "desk lamp", "rain jacket", "office chair", "bread knife", "bike light"),
    *("electric kettle", "pair of headphones", "garden hose", "suitcase", "robot vacuum", "tent"),
    *("water bottle", "standing desk", "film camera", "phone charger", "sleeping bag", "toaster"),
)
OPENINGS = (
    "Bought this {product} {when}.",
    "My second {product} from this shop.",
    "A gift for my {person}: this {product}.",
    "We have had the {product} for {weeks} months.",
    "After {weeks} weeks with this {product}, here is what I think.",
    "My {person} recommended this {product}.",
)
PRAISE = (
    "It does exactly what it promises",
    "The build is solid and nothing rattles",
    "Set-up took {weeks} minutes, no manual needed",
    "It looks better than in the pictures",
    "Cheaper than the one it replaces, and better",
    "My {person} wants one, too",
    "Expected little and got a lot",
)
BLAME = (
    "It stopped working after {weeks} weeks",
    "The lid does not close properly",
    "It smells of plastic, even after washing",
    "Support answered after {weeks} days, with a form letter",
    "The size is nothing like the description",
    "One screw was missing, another did not fit",
    "It is louder than my old one",
)
CLOSINGS = (
    "Would buy again.",
    "Returned it.",
    "{stars} of 5 stars.",
    "You get what you pay for.",
    "Delivery was {speed}.",
    "",
)
PEOPLE = ("sister", "father", "neighbour", "flatmate", "daughter", "boss")
TIMES = ("last spring", "in March", "two years ago", "on sale", "before the holidays", "on a whim")


def write_review(rng: random.Random) -> str:
    """One product review, with its opinion somewhere between love and regret."""
    opinions = rng.choice(
        (rng.sample(PRAISE, 2), rng.sample(BLAME, 2), [rng.choice(PRAISE), rng.choice(BLAME)])
    )
    joint = rng.choice((", and ", ". ", "; "))
    first, second = opinions
    if joint != ". ":
        second = second[0].lower() + second[1:]
    text = f"{rng.choice(OPENINGS)} {first}{joint}{second}. {rng.choice(CLOSINGS)}".strip()
    return text.format(
        product=rng.choice(PRODUCTS),
        when=rng.choice(TIMES),
        person=rng.choice(PEOPLE),
        weeks=rng.randint(2, 9),
        stars=rng.randint(1, 5),
        speed=rng.choice(("fast", "slow", "on time", "late")),
    )


def chat_requests(count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Chat completions: the mood of a review in one word."""
    for number in range(1, count + 1):
        messages = [
            {"role": "system", "content": INSTRUCTION},
            {"role": "user", "content": write_review(rng)},
        ]
        body = {"model": "gpt-4o-mini", "messages": messages, "max_tokens": 5}
        yield line(f"review-{number:04}", "/v1/chat/completions", body)


def embedding_requests(count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Embeddings: a review as a vector of 256 numbers."""
    for number in range(1, count + 1):
        body = {
            "model": "text-embedding-3-small",
            "input": write_review(rng),
            "dimensions": 256,
        }
        yield line(f"vector-{number:02}", "/v1/embeddings", body)


def response_requests(count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Responses: mood and topic of a review as JSON of a given schema."""
    schema = {
        "type": "object",
        "properties": {
            "mood": {"type": "string", "enum": ["positive", "negative", "mixed"]},
            "topic": {"type": "string"},
        },
        "required": ["mood", "topic"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "review", "strict": True, "schema": schema}
    for number in range(1, count + 1):
        body = {
            "model": "gpt-4o-mini",
            "instructions": "Say the review's mood, and what it is about.",
            "input": write_review(rng),
            "text": {"format": form},
        }
        yield line(f"report-{number:02}", "/v1/responses", body)


def line(custom_id: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """One line of a batch's input file."""
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def write(name: str, requests: Iterator[dict[str, Any]]) -> None:
    """Write the requests as JSON Lines, compactly."""
    with (FOLDER / name).open("w", encoding="utf-8", newline="\n") as file:
        for request in requests:
            file.write(json.dumps(request, separators=(",", ":"), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write("chat-1000.jsonl", chat_requests(1_000, random.Random(0)))
    write("embeddings-20.jsonl", embedding_requests(20, random.Random(2)))
    write("responses-20.jsonl", response_requests(20, random.Random(3)))
