"""The page and its files: what is served, with which headers, and that all of it is of this server."""

import re
from pathlib import Path

import httpx
import pytest

import api.dashboard
from api.dashboard.assets import assets

STATIC = Path(api.dashboard.__file__).parent / "static"
HTML = {"accept": "text/html,application/xhtml+xml"}


def modules() -> list[str]:
    return sorted(name for name in assets() if name.endswith(".js"))


async def test_a_browser_gets_the_page_and_a_program_what_this_is(
    api_client: httpx.AsyncClient,
) -> None:
    page = await api_client.get("/", headers=HTML)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>Overnight</title>" in page.text
    told = await api_client.get("/", headers={"accept": "*/*"})
    assert told.json()["name"] == "Overnight"
    assert page.headers["vary"] == told.headers["vary"] == "accept"


@pytest.mark.parametrize("path", ["/", "/dashboard/static/main.js"])
async def test_the_page_trusts_nobody_else(api_client: httpx.AsyncClient, path: str) -> None:
    headers = (await api_client.get(path, headers=HTML)).headers
    policy = dict(
        part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    for kind in ("script-src", "style-src", "img-src", "connect-src"):
        assert policy[kind] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"


async def test_a_file_that_is_known_is_not_sent_again(api_client: httpx.AsyncClient) -> None:
    path = "/dashboard/static/style.css"
    first = await api_client.get(path)
    assert first.headers["content-type"] == "text/css; charset=utf-8"
    again = await api_client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["", "none.js", "../assets.py", "..%2fassets.py", "index.html", "views", "%00"]
)
async def test_nothing_else_is_served(api_client: httpx.AsyncClient, name: str) -> None:
    answer = await api_client.get(f"/dashboard/static/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")


def test_every_file_is_served() -> None:
    on_disk = {str(path.relative_to(STATIC)) for path in STATIC.rglob("*") if path.is_file()}
    assert on_disk == set(assets())


@pytest.mark.parametrize("name", modules())
def test_a_module_imports_what_is_there(name: str) -> None:
    text = assets()[name].content.decode()
    for imported in re.findall(r"""(?:from|import\()\s*"(\.[^"]+)\"""", text):
        path = (STATIC / name).parent.joinpath(imported).resolve()
        assert str(path.relative_to(STATIC)) in assets()


@pytest.mark.parametrize("name", sorted(assets()))
def test_no_other_host_and_no_markup_from_text(name: str) -> None:
    text = assets()[name].content.decode()
    hosts = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    assert hosts <= {"http://www.w3.org/2000/svg"}
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert sink not in text
    # The policy forbids both, so they would just not work.
    assert not re.search(r"\sstyle=|\son[a-z]+=", text) or name.endswith(".js")


def test_the_page_names_files_that_are_there() -> None:
    named = re.findall(
        r'(?:src|href)="/dashboard/static/([^"]+)"', assets()["index.html"].content.decode()
    )
    assert len(named) > 5
    assert set(named) <= set(assets())
