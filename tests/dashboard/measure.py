"""Measure the dashboard: `python -m tests.dashboard.measure`. Takes about five minutes.

How long it takes to the first paint with 1,000 batches, and until they stand there; how long after a change
the page shows it; how many lines a second a batch makes with the page of this batch open, and without.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser

from tests.dashboard.browser import HOW_TO_GET_ONE, Visit, find_chromium, open_chromium
from tests.fixtures.engine import KEY, Engine, engine_in

_BATCHES = 1000
_LINES = 20_000
_ROUNDS = 3
_PAINT = """() => new Promise((resolve) => {
    const paints = performance.getEntriesByType("paint");
    const navigation = performance.getEntriesByType("navigation")[0];
    const look = () => document.querySelectorAll("tbody tr").length >= 50
        ? resolve({
            first: paints.find((each) => each.name === "first-contentful-paint").startTime,
            rows: performance.now(), bytes: navigation.transferSize,
        })
        : requestAnimationFrame(look);
    look();
})"""


def main() -> None:
    """Start, measure, stop."""
    chromium = find_chromium()
    if chromium is None:
        sys.exit(HOW_TO_GET_ONE)
    settings = {"OVERNIGHT_MAX_IN_FLIGHT": "400", "OVERNIGHT_SHARD_LINES": "500"}
    with (
        tempfile.TemporaryDirectory(prefix="measure-", dir="/tmp") as folder,
        engine_in(Path(folder), **settings) as engine,
        open_chromium(chromium) as browser,
    ):
        engine.upstream.settings.latency = 0.3
        origin = json.loads(engine.ready_file.read_text())["base_url"].removesuffix("/v1")
        _cost(engine, browser, origin)
        _paint(engine, browser, origin)
        _delay(engine, browser, origin)


def _paint(engine: Engine, browser: Browser, origin: str) -> None:
    with engine.client as client:
        upload = client.post(
            "files", data={"purpose": "batch"}, files={"file": ("in.jsonl", b"{}\n")}
        )
        body = {
            "input_file_id": upload.raise_for_status().json()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        made = [
            client.post("batches", json=body).raise_for_status().json() for _ in range(_BATCHES)
        ]
    engine.wait_for_end(made[-1]["id"])
    visit = Visit(browser, origin)
    visit.sign_in(KEY)
    found = []
    for _ in range(5):
        visit.page.reload(wait_until="commit")
        visit.page.wait_for_function("() => performance.getEntriesByType('paint').length > 1")
        found.append(visit.page.evaluate(_PAINT))
    first = [each["first"] for each in found]
    rows = [each["rows"] for each in found]
    print(
        f"{_BATCHES} batches: first paint {statistics.median(first):.0f} ms (at most {max(first):.0f})"
    )
    print(f"  rows of the first page {statistics.median(rows):.0f} ms (at most {max(rows):.0f})")
    visit.close()


def _delay(engine: Engine, browser: Browser, origin: str) -> None:
    visit = Visit(browser, origin)
    page = visit.sign_in(KEY)
    page.get_by_text("Live").wait_for()
    seconds = []
    for _ in range(10):
        batch_id = engine.create_batch(1)
        began = time.monotonic()
        page.locator(f'tr[data-id="{batch_id}"]').wait_for()
        seconds.append(time.monotonic() - began)
        engine.wait_for_end(batch_id)
    print(
        f"a new batch shows after {statistics.median(seconds):.2f} s (at most {max(seconds):.2f})"
    )
    visit.close()


def _rate(engine: Engine, batch_id: str) -> float:
    """Lines a second from the first twentieth of the batch to the last."""
    marks: list[tuple[float, int]] = []
    with engine.client as client:
        while not marks or marks[-1][1] < 0.95 * _LINES:
            counts = client.get(f"batches/{batch_id}").raise_for_status().json()["request_counts"]
            if counts["completed"] > 0.05 * _LINES:
                marks.append((time.monotonic(), counts["completed"]))
            time.sleep(0.25)
    (began, first), (ended, last) = marks[0], marks[-1]
    return (last - first) / (ended - began)


def _cost(engine: Engine, browser: Browser, origin: str) -> None:
    rates: dict[str, list[float]] = {"without": [], "with": []}
    for number in range(2 * _ROUNDS + 1):
        is_open = number % 2 == 1
        batch_id = engine.create_batch(_LINES)
        visit = Visit(browser, origin) if is_open else None
        if visit is not None:
            visit.sign_in(KEY)
            visit.go(f"#/batches/{batch_id}")
        rate = _rate(engine, batch_id)
        engine.wait_for_end(batch_id, seconds=300)
        if visit is not None:
            visit.close()
        # The first one is for warming up.
        if number:
            rates["with" if is_open else "without"].append(rate)
    for name, found in rates.items():
        listed = ", ".join(f"{rate:.0f}" for rate in found)
        print(f"{name} the page open: {statistics.median(found):.0f} lines a second ({listed})")


if __name__ == "__main__":
    main()
