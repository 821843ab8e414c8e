"""The snippets of the documentation: what stands in the fences of its pages.

A snippet of the README or of a guide is run, or at least checked, by a test. One that cannot be says why,
in a comment on the line before its fence: `<!-- not run: needs Docker -->`.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SHELL, PYTHON = "sh", "python"

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)\s*$")
_MARK = re.compile(r"^ *<!-- not run: (?P<reason>.+) -->$")
_SETTING = re.compile(r"^[A-Z][A-Z0-9_]*=")
_ENDS = {"&", "&&", "|", "||", ";", "(", ")"}
_REDIRECTIONS = {">", ">>", "<", "2>", "&>"}


@dataclass(frozen=True)
class Snippet:
    """What stands in one fence."""

    page: Path
    line_no: int
    language: str
    text: str
    not_run: str | None
    """Why it cannot be run; `None` if it can."""

    @property
    def place(self) -> str:
        """Where it is, as an editor finds it."""
        return f"{self.page.relative_to(ROOT)}:{self.line_no}"


def run_pages() -> list[Path]:
    """The pages whose snippets are run: the README, the guides and the examples' page."""
    return [ROOT / "README.md", ROOT / "examples/README.md", *sorted(DOCS.glob("guides/*.md"))]


def all_pages() -> list[Path]:
    """Every page of the repository."""
    return [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md")), ROOT / "examples/README.md"]


def snippets_of(page: Path) -> list[Snippet]:
    """The page's fences in their order."""
    found = []
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), start=1))
    before = ""
    for line_no, line in lines:
        if opened := _FENCE.match(line):
            indent = len(opened["indent"])
            text = []
            for _, inner in lines:
                if inner.strip() == "```":
                    break
                text.append(inner[indent:])
            mark = _MARK.match(before)
            reason = mark["reason"] if mark else None
            found.append(Snippet(page, line_no, opened["language"], "\n".join(text), reason))
        before = line
    return found


def commands_of(shell: str) -> Iterator[list[str]]:
    """The commands of a shell text, each as its words, without settings before it and redirections."""
    for line in _logical_lines(shell):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        skips = False
        try:
            tokens = [*lexer, ";"]
        except ValueError:
            # A quotation that goes on in the next line: what it is a part of is enough here.
            tokens = [line.split()[0], ";"]
        for word in tokens:
            if word in _ENDS:
                if words:
                    yield words
                words = []
            elif word in _REDIRECTIONS:
                skips = True
            elif skips:
                skips = False
            elif words or not _SETTING.match(word):
                words.append(word)


def _logical_lines(shell: str) -> Iterator[str]:
    return (line for line in shell.replace("\\\n", " ").splitlines() if line.strip())


def overnight_commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Each `overnight …` of a page, in fences for the shell and indented blocks: where, and its words."""
    for snippet in snippets_of(page):
        if snippet.language == SHELL and "overnight" in snippet.text and "<<" not in snippet.text:
            for words in commands_of(snippet.text):
                if Path(words[0]).name == "overnight":
                    yield snippet.place, words[1:]
    for line_no, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if re.match(r"^    (?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?overnight ", line):
            for words in commands_of(line.strip()):
                if Path(words[0]).name == "overnight":
                    yield f"{page.relative_to(ROOT)}:{line_no}", words[1:]
