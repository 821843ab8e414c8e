"""Take the pictures of docs/pictures: `python -m tests.dashboard.take_pictures`.

It starts an engine with a simulated model server, gives it some batches, and photographs the dashboard in
the Chromium that is installed. Takes about a minute.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect

from tests.dashboard.browser import HOW_TO_GET_ONE, Visit, find_chromium, open_chromium
from tests.factories import input_line, json_lines
from tests.fixtures.engine import KEY, Engine, engine_in, wait_for

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
_DESK = {"viewport": {"width": 1240, "height": 860}}
_PHONE = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 1.5}
_MARKER = "far too long"
_SETTINGS = {
    "OVERNIGHT_COMPLETION_WINDOWS": "any",
    "OVERNIGHT_LEASE_SECONDS": "5",
    "OVERNIGHT_MAX_IN_FLIGHT": "200",
}
expect.set_options(timeout=120_000)


def main() -> None:
    """Start, photograph, stop."""
    chromium = find_chromium()
    if chromium is None:
        sys.exit(HOW_TO_GET_ONE)
    PICTURES.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="pictures-", dir="/tmp") as folder,
        engine_in(Path(folder), **_SETTINGS) as engine,
        open_chromium(chromium) as browser,
    ):
        engine.upstream.settings.latency = 0.8
        engine.upstream.settings.latency_sigma = 0.5
        engine.upstream.settings.bad_request_marker = _MARKER
        _photograph(engine, browser)


def _photograph(engine: Engine, browser: Browser) -> None:
    origin = json.loads(engine.ready_file.read_text())["base_url"].removesuffix("/v1")
    done = _create(engine, "product descriptions", 300, window="6h")
    failed = _create(engine, "support tickets, first try", 3, broken=True)
    for batch_id in (done, failed):
        engine.wait_for_end(batch_id, seconds=300)
    paused = _create(engine, "translation memory", 5000, window="7d")
    engine.wait_for_lines(paused, 400)
    with engine.client as client:
        client.post(f"batches/{paused}/pause").raise_for_status()
    shown = _create(engine, "nightly classification", 4000, window="12h")
    _create(engine, "judge: release candidate", 2500, window="24h")
    desk = Visit(browser, origin, **_DESK)
    page = desk.sign_in(KEY)
    engine.wait_for_lines(shown, 1500)
    expect(page.locator("tbody tr")).to_have_count(5)
    _shoot(desk, "dashboard-batches.png")

    desk.go(f"#/batches/{shown}")
    page.get_by_role("img", name="Latency").wait_for()
    page.get_by_text("context_length").or_(page.get_by_text("400")).first.wait_for()
    _shoot(desk, "dashboard-batch.png", height=1120)

    desk.go("#/workers")
    page.get_by_role("region", name="Workers").get_by_role("rowheader").first.wait_for()
    _shoot(desk, "dashboard-workers.png", height=640)

    desk.go("#/new")
    faulty = json_lines(input_line(1), input_line(2, method="GET"), input_line(2))
    file: Any = {"name": "tickets.jsonl", "mimeType": "application/jsonl", "buffer": faulty}
    page.locator("#file").set_input_files(file)
    page.get_by_role("button", name="Start the batch").click()
    page.get_by_role("region", name="Faults").wait_for()
    _shoot(desk, "dashboard-faults.png")

    dark = Visit(browser, origin, color_scheme="dark", **_DESK)
    dark.sign_in(KEY)
    dark.go(f"#/batches/{shown}")
    dark.page.get_by_role("img", name="Latency").wait_for()
    _shoot(dark, "dashboard-dark.png")

    phone = Visit(browser, origin, **_PHONE)
    phone.sign_in(KEY)
    expect(phone.page.locator("tbody tr").first).to_be_visible()
    _shoot(phone, "dashboard-phone.png")
    with engine.client as client:
        client.post(f"batches/{paused}/cancel").raise_for_status()


def _create(
    engine: Engine, name: str, lines: int, *, window: str = "24h", broken: bool = False
) -> str:
    def line(number: int) -> dict[str, Any]:
        question = f"Ticket {number}: my parcel has not arrived. Which queue is this for?"
        if number % 97 == 0:
            question += f" (This one is {_MARKER}.)"
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": question}]}
        return input_line(number, custom_id=f"ticket-{number}", body=body)

    content = json_lines(*(line(number) for number in range(1, lines + 1)))
    if broken:
        content = content.replace(b'"method": "POST"', b'"method": "GET"')
    with engine.client as client:
        upload = client.post(
            "files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)}
        )
        body = {
            "input_file_id": upload.raise_for_status().json()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": window,
            "metadata": {"name": name},
        }
        return str(client.post("batches", json=body).raise_for_status().json()["id"])


def _shoot(visit: Visit, name: str, *, height: int | None = None) -> None:
    page = visit.page
    if height is not None and page.viewport_size is not None:
        page.set_viewport_size({"width": page.viewport_size["width"], "height": height})
    # Colours fade in, and bars grow.
    wait_for("nothing moves", lambda: page.evaluate("() => !document.getAnimations().length"))
    page.screenshot(path=PICTURES / name)
    print(f"docs/pictures/{name}: {(PICTURES / name).stat().st_size // 1024} kB")
    if height is not None:
        page.set_viewport_size(_DESK["viewport"])  # type: ignore[arg-type]  # a plain dict


if __name__ == "__main__":
    main()
