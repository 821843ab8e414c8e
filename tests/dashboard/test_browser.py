"""The dashboard in a real browser, on a running engine.

Skipped where no Chromium is installed; `apt install chromium` is all that it takes.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.dashboard.browser import HOW_TO_GET_ONE, Visit, find_chromium, open_chromium
from tests.factories import input_file, input_line, json_lines
from tests.fixtures.engine import KEY, Engine, wait_for

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=HOW_TO_GET_ONE)
PHONE = {"viewport": {"width": 390, "height": 780}}
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests of this file."""
    assert CHROMIUM is not None
    with open_chromium(CHROMIUM) as opened:
        yield opened


Open = Callable[..., Visit]


@pytest.fixture
def visit(browser: Browser, engine: Engine) -> Iterator[Open]:
    """A function that opens a page; at the end no page may have complained, or asked another host."""
    visits: list[Visit] = []
    origin = json.loads(engine.ready_file.read_text())["base_url"].removesuffix("/v1")

    def open_page(**context: Any) -> Visit:
        visits.append(Visit(browser, origin, **context))
        return visits[-1]

    yield open_page
    for each in visits:
        each.close()
        assert each.complaints == []
        assert [url for url in each.urls if not url.startswith(origin)] == []


def file_of(content: bytes) -> Any:
    return {"name": "requests.jsonl", "mimeType": "application/jsonl", "buffer": content}


def test_from_a_file_to_its_results(visit: Open) -> None:
    page = visit().sign_in(KEY)
    page.get_by_role("navigation").get_by_role("link", name="New batch").click()
    page.locator("#file").set_input_files(file_of(input_file(40)))
    name = "forty <img src=/readyz onerror=alert(1)> questions"
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Start the batch").click()

    expect(page.locator(".badge")).to_have_text("Completed")
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuetext", "40 of 40")
    expect(page.get_by_role("img", name="Lines a second")).to_be_visible()
    page.get_by_role("region", name="Slowest lines").get_by_role("button").first.click()
    expect(page.get_by_role("heading", name="Answer")).to_be_visible()
    expect(page.locator(".sides pre")).to_have_count(2)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download output").click()
    assert len(download.value.path().read_text().splitlines()) == 40

    page.get_by_role("navigation").get_by_role("link", name="Batches").click()
    expect(page.get_by_role("row").filter(has_text=name)).to_contain_text("Completed")
    expect(page.locator("main img")).to_have_count(0)


def test_faults_stand_beside_their_lines(visit: Open) -> None:
    page = visit().sign_in(KEY)
    visit_ = page.get_by_role("navigation").get_by_role("link", name="New batch")
    visit_.click()
    content = json_lines(input_line(1), input_line(2, method="GET")) + b"{ no json\n"
    dragged = page.evaluate_handle(
        """(text) => {
            const dragged = new DataTransfer();
            dragged.items.add(new File([text], "dragged.jsonl"));
            return dragged;
        }""",
        content.decode(),
    )
    page.dispatch_event(".drop", "drop", {"dataTransfer": dragged})
    expect(page.get_by_text("dragged.jsonl")).to_be_visible()
    page.get_by_role("button", name="Start the batch").click()
    faults = page.get_by_role("region", name="Faults")
    expect(faults.get_by_role("heading", name="Line 3")).to_be_visible()
    expect(faults.locator("pre").last).to_have_text("{ no json")
    # The batch keeps them, and can still show the line.
    page.get_by_role("link", name="This batch").click()
    expect(page.locator(".badge").first).to_have_text("Invalid")
    page.get_by_role("button", name="Show the line").last.click()
    expect(page.locator(".sides pre").first).to_have_text("{ no json")


def test_what_happens_elsewhere_shows_by_itself(visit: Open, engine: Engine) -> None:
    page = visit().sign_in(KEY)
    expect(page.get_by_role("status").filter(has_text="Live")).to_be_visible()
    batch_id = engine.create_batch(2000)
    row = page.locator(f'tr[data-id="{batch_id}"]')
    expect(row.locator(".badge")).to_have_text("Running")
    row.get_by_role("link").click()

    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".badge").first).to_have_text("Paused")
    with engine.client as client:
        client.post(f"batches/{batch_id}/resume").raise_for_status()
    expect(page.locator(".badge").first).to_have_text("Running")

    page.get_by_role("button", name="Cancel").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Let it run").click()
    expect(dialog).to_have_count(0)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the batch").click()
    expect(page.locator(".badge").first).to_have_text("Cancelled")
    # What never ran can be tried again.
    expect(page.get_by_text("batch_cancelled")).to_be_visible()
    page.get_by_role("button", name="Retry what failed").click()
    expect(page.get_by_role("heading", level=1)).not_to_have_text(batch_id)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the batch").click()
    expect(page.locator(".badge").first).to_have_text("Cancelled")


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_axe_finds_nothing_serious(visit: Open, engine: Engine, look: str) -> None:
    scheme = "dark" if look == "dark" else "light"
    seen = visit(color_scheme=scheme, **(PHONE if look == "phone" else {}))
    page = seen.go()
    page.get_by_label("API key").wait_for()
    faults = {"sign in": seen.faults()}
    page = seen.sign_in(KEY)
    batch_id = engine.create_batch(20)
    engine.wait_for_end(batch_id)
    places = {
        "#/": page.locator("tbody tr").first,
        f"#/batches/{batch_id}": page.get_by_role("img", name="Latency"),
        "#/new": page.get_by_role("button", name="Start the batch"),
        "#/workers": page.get_by_role("region", name="Workers").get_by_role("rowheader").first,
    }
    if look == "dark":
        # The other colours; the rest is as in the light.
        del places["#/new"], places["#/workers"]
    for place, sign in places.items():
        seen.go(place)
        sign.wait_for()
        if look == "light" or place not in {"#/new", "#/workers"}:
            # In other looks these two have nothing that the others do not have.
            faults[place] = seen.faults()
        is_too_wide = page.evaluate(
            "() => document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )
        assert not is_too_wide, place
    assert not any(faults.values()), faults


def test_a_long_list_is_shown_in_parts(visit: Open, engine: Engine) -> None:
    """And what was shown stays when the page comes back to what it had lost sight of."""
    with engine.client as client:
        files = {"file": ("in.jsonl", b"{}\n")}
        upload = client.post("files", data={"purpose": "batch"}, files=files)
        body = {
            "input_file_id": upload.raise_for_status().json()["id"],
            "endpoint": "/v1/embeddings",
            "completion_window": "24h",
        }
        for _ in range(60):
            client.post("batches", json=body).raise_for_status()
        query = {"status": "validating"}
        wait_for("all are refused", lambda: not client.get("batches", params=query).json()["data"])
    seen = visit()
    page = seen.sign_in(KEY)
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(50)
    page.get_by_role("button", name="Show more").click()
    expect(rows.nth(55)).to_be_visible()
    count = rows.count()
    # As when a phone wakes up: the list is read afresh, all of it.
    with page.expect_response(lambda response: "after=" in response.url):
        page.evaluate(
            "() => { dispatchEvent(new Event('pagehide')); dispatchEvent(new Event('pageshow')); }"
        )
    expect(rows).to_have_count(count)
    page.get_by_label("Status").select_option("failed")
    expect(page.get_by_role("button", name="Show more")).to_be_visible()
    expect(rows).to_have_count(50)


def test_the_keyboard_will_do(visit: Open) -> None:
    seen = visit()
    page = seen.go()
    page.get_by_label("API key").wait_for()
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Batches")).to_be_focused()
    seen.go("#/workers")
    page.get_by_role("heading", name="Workers", level=1).wait_for()
    page.reload()
    page.get_by_role("heading", name="Workers", level=1).wait_for()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()


def test_signing_out(visit: Open) -> None:
    page = visit().sign_in(KEY)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()
    expect(page.get_by_role("navigation")).to_be_hidden()
