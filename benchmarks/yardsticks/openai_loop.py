"""The yardstick that most people write first: the official client and a semaphore.

Run as `python openai_loop.py INPUT URL OUT [--in-flight N] [--aiohttp]` by the Python of an environment
that has `openai[aiohttp]`; it uses nothing else, and nothing of this project. As the bare loop it
prints what it took as JSON.
"""

import argparse
import asyncio
import json
import resource
import time
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, DefaultAioHttpClient


async def run_lines(
    source: Path, base_url: str, target: Path, *, in_flight: int, use_aiohttp: bool
) -> int:
    """Send every line of the source, write every answer to the target; return how many."""
    client = AsyncOpenAI(
        base_url=base_url,
        api_key="none",
        http_client=DefaultAioHttpClient() if use_aiohttp else None,
    )
    semaphore = asyncio.Semaphore(in_flight)
    with source.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as results:

        async def call(line: dict[str, Any]) -> None:
            async with semaphore:
                answer = await client.chat.completions.create(**line["body"])
            result = {"custom_id": line["custom_id"], "response": answer.model_dump()}
            results.write(json.dumps(result) + "\n")

        async with client:
            done = await asyncio.gather(*(call(json.loads(line)) for line in lines))
    return len(done)


def main() -> None:
    """Run from the command line and print the measurement."""
    parser = argparse.ArgumentParser(description="Run a batch input through AsyncOpenAI.")
    parser.add_argument("source", type=Path)
    parser.add_argument("base_url", help="the model server's base URL, ending in /v1")
    parser.add_argument("target", type=Path)
    parser.add_argument("--in-flight", type=int, default=128)
    parser.add_argument("--aiohttp", action="store_true", help="on its aiohttp transport")
    chosen = parser.parse_args()
    began = time.perf_counter()
    lines = asyncio.run(
        run_lines(
            chosen.source,
            chosen.base_url,
            chosen.target,
            in_flight=chosen.in_flight,
            use_aiohttp=chosen.aiohttp,
        )
    )
    seconds = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    measured = {
        "lines": lines,
        "seconds": round(seconds, 3),
        "lines_per_second": round(lines / seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_rss_mb": round(usage.ru_maxrss / 1000, 1),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
