"""The documents say what the code says, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

from scripts import write_configuration

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def test_configuration_page_is_current() -> None:
    """Run `python -m scripts.write_configuration` when this fails."""
    assert write_configuration.PATH.read_text() == write_configuration.render()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file or folder of the repository."""
    broken = [
        link
        for link in _LINK.findall(page.read_text())
        if not _is_of_the_forge(page, link) and not (page.parent / link).exists()
    ]
    assert not broken


def _is_of_the_forge(page: Path, link: str) -> bool:
    """Whether a link leaves the repository, for pages that the forge makes (releases, comparisons)."""
    return page.parent == ROOT and link.startswith("../../")
