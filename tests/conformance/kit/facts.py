"""The facts of `docs/contract.md`, and those of them that no case can see."""

import re
from dataclasses import dataclass
from pathlib import Path

PATH = Path(__file__).parents[3] / "docs" / "contract.md"
_ROW = re.compile(r"^\| (\d+\.\d+) \| ([^|]*) \| (.*) \|$", re.MULTILINE)
_SECTION = re.compile(r"^## (\d+)\. (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Fact:
    """One numbered fact, with its mark and its words."""

    number: str
    mark: str
    text: str

    @property
    def section(self) -> str:
        """The number of its section."""
        return self.number.partition(".")[0]


def read_facts() -> dict[str, Fact]:
    """The facts by their numbers, in the order of the page."""
    rows = _ROW.findall(PATH.read_text())
    return {number: Fact(number, mark.strip(), text.strip()) for number, mark, text in rows}


def read_sections() -> dict[str, str]:
    """The titles of the sections by their numbers."""
    return dict(_SECTION.findall(PATH.read_text()))


UNSEEN: dict[str, str] = {
    "1.33": "Takes 2,000 creations within an hour; integration tests set a smaller limit.",
    "1.34": "The limit is the operator's; integration tests set one.",
    "1.35": "A limit that is not there cannot be seen. Overnight has none.",
    "3.36": "The rate is the operator's; integration tests set a small one.",
    "4.22": "Needs a server that is told its models; integration tests configure one.",
    "4.26": "As 1.34.",
    "8.5": "The routes of batches and files are no model endpoints; Overnight sends no such header.",
    "11.9": "The kit's own receiver is at a private address, so the kit must be let in; integration"
    " tests have the refusals.",
}
"""Facts without a case, each with the reason."""

DIFFERENT: dict[str, str] = {
    "4.4": "Overnight skips a byte-order mark, where OpenAI calls line 1 unparseable.",
}
"""Facts that Overnight answers differently from OpenAI on purpose, each with how."""

PARTLY_SEEN: dict[str, str] = {
    "1.36": "The sum over a project is the operator's limit; integration tests set one.",
    "1.39": "The expiry itself takes an hour; integration tests move the clock.",
    "8.7": "A rule for clients; that refusals are not retried is seen.",
    "9.8": "The first retry is seen; that the last one comes after 72 hours is computed, and tested"
    " as a table.",
}
"""Facts of which a part takes too long, or another machine, to be seen."""
