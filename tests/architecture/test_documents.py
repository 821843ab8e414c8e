"""The documents say what the code says, and their links lead somewhere."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import write_api_reference, write_configuration, write_metrics
from tests.snippets import DOCS, ROOT, all_pages

_FENCED = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


def test_configuration_page_is_current() -> None:
    """Run `python -m scripts.write_configuration` when this fails."""
    assert write_configuration.PATH.read_text() == write_configuration.render()


def test_table_of_metrics_is_current() -> None:
    """Run `python -m scripts.write_metrics` when this fails."""
    assert write_metrics.PATH.read_text() == write_metrics.render()


def test_api_reference_is_current() -> None:
    """Run `python -m scripts.write_api_reference` when this fails."""
    assert write_api_reference.PATH.read_text() == write_api_reference.render()


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file or folder of the repository, and a heading if it says one."""
    broken = [
        link
        for link in _LINK.findall(_prose(page))
        if not _is_of_the_forge(page, link) and not _leads_somewhere(page, link)
    ]
    assert not broken


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    written = (ROOT / "mkdocs.yml").read_text()
    site = yaml.load(written, Loader=_TolerantLoader)  # noqa: S506  # a SafeLoader that makes less
    listed = set(_paths(site["nav"]))
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert there - listed == set()


def test_every_page_can_be_reached_from_the_first() -> None:
    linked = set(_LINK.findall((DOCS / "index.md").read_text()))
    # The decisions have a list of their own.
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    there = {page for page in there if not page.startswith("decisions/0")} - {"index.md"}
    assert there - linked == set()


def test_what_the_architecture_names_is_there() -> None:
    """Each `name` of [`file`](place), as beside the letters of its diagrams."""
    page = DOCS / "architecture.md"
    named = re.findall(r"`(\w+)` of\s+\[`[^`]+`\]\(([^)]+)\)", page.read_text())
    assert len(named) > 20
    gone = [
        (name, file)
        for name, file in named
        if not re.search(rf"\b{name}\b", (page.parent / file).read_text())
    ]
    assert not gone


def test_the_list_of_decisions_is_whole() -> None:
    listed = (DOCS / "decisions/README.md").read_text()
    missing = [page.name for page in DOCS.glob("decisions/0*.md") if page.name not in listed]
    assert not missing


class _TolerantLoader(yaml.SafeLoader):
    """Reads mkdocs' file without making what its tags name."""


_TolerantLoader.add_multi_constructor("!", lambda *_: None)
_TolerantLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def _paths(navigation: Any) -> list[str]:
    if isinstance(navigation, str):
        return [navigation]
    entries = navigation.values() if isinstance(navigation, dict) else navigation
    return [path for entry in entries for path in _paths(entry)]


def _prose(page: Path) -> str:
    """The page without its code, in which brackets are no links."""
    return _CODE.sub("``", _FENCED.sub("", page.read_text(encoding="utf-8")))


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return False
    return not anchor or target.suffix != ".md" or anchor in _anchors(target)


def _anchors(page: Path) -> set[str]:
    """The anchors that the forge, and the site, give to a page's headings."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCED.sub("", page.read_text(encoding="utf-8"))):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
        number = next(
            n for n in range(100) if f"{slug}-{n}" not in found and (n or slug not in found)
        )
        found.add(f"{slug}-{number}" if number else slug)
    return found


def _is_of_the_forge(page: Path, link: str) -> bool:
    """Whether a link leaves the repository, for pages that the forge makes (releases, comparisons)."""
    return page.parent == ROOT and link.startswith("../../")
