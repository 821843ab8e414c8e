"""The yardstick: the same lines through a bare asyncio loop, with no durability whatever.

Run as `python -m benchmarks.yardsticks.bare_loop INPUT URL OUT`. It reads a batch input, posts each
body with N calls in flight, writes an output file of the same shape, and prints what it took as JSON.
A crash loses everything; that is what Overnight's cost is measured against.
"""

import argparse
import asyncio
import resource
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
import orjson
import uvloop

IN_FLIGHT = 128


async def run_lines(source: Path, base_url: str, target: Path, *, in_flight: int) -> int:
    """Send every line of the source, write every answer to the target; return how many."""
    connector = aiohttp.TCPConnector(limit=in_flight)
    with source.open("rb") as lines, target.open("wb") as results:
        async with aiohttp.ClientSession(connector=connector) as session:
            remaining = iter(lines)
            # The callers share one iterator: whoever is free takes the next line.
            counts = await asyncio.gather(
                *(_keep_calling(session, base_url, remaining, results) for _ in range(in_flight))
            )
    return sum(counts)


async def _keep_calling(
    session: aiohttp.ClientSession, base_url: str, lines: Iterator[bytes], results: BinaryIO
) -> int:
    count = 0
    for raw in lines:
        line = orjson.loads(raw)
        url = base_url + line["url"].removeprefix("/v1")
        headers = {"content-type": "application/json"}
        async with session.post(url, data=orjson.dumps(line["body"]), headers=headers) as answer:
            body: Any = orjson.loads(await answer.read())
            response = {
                "status_code": answer.status,
                "request_id": answer.headers.get("x-request-id"),
                "body": body,
            }
        result = {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": line["custom_id"],
            "response": response,
            "error": None,
        }
        results.write(orjson.dumps(result, option=orjson.OPT_APPEND_NEWLINE))
        count += 1
    return count


def main() -> None:
    """Run from the command line and print the measurement."""
    parser = argparse.ArgumentParser(description="Run a batch input through a bare asyncio loop.")
    parser.add_argument("source", type=Path)
    parser.add_argument("base_url", help="the model server's base URL, ending in /v1")
    parser.add_argument("target", type=Path)
    parser.add_argument("--in-flight", type=int, default=IN_FLIGHT)
    chosen = parser.parse_args()
    began = time.perf_counter()
    lines = uvloop.run(
        run_lines(chosen.source, chosen.base_url, chosen.target, in_flight=chosen.in_flight)
    )
    seconds = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    # ru_maxrss counts kilobytes on Linux and bytes on macOS.
    peak_rss = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    measured = {
        "lines": lines,
        "seconds": round(seconds, 3),
        "lines_per_second": round(lines / seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_rss_mb": round(peak_rss / 1_000_000, 1),
    }
    print(orjson.dumps(measured).decode())


if __name__ == "__main__":
    main()
