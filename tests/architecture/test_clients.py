"""What `make test-clients` runs: each is pinned, has a program, and stands in the page with its version."""

import json
import re

import pytest

from tests.clients.catalogue import CLIENTS, FOLDER, Client
from tests.clients.run import PAGE, TABLE_BEGINS, TABLE_ENDS, Outcome, table

_EACH = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


def test_every_folder_is_a_client() -> None:
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert folders == {client.name for client in CLIENTS}


@_EACH
def test_a_client_is_pinned_and_has_a_program(client: Client) -> None:
    assert client.program.is_file()
    text = client.requirements.read_text(encoding="utf-8")
    if client.is_node:
        assert set(json.loads(text)) == {"private", "type", "dependencies"}
        assert re.fullmatch(r"[\d.]+", client.version)
        return
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines
    assert all(re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", line) for line in lines)


@_EACH
def test_the_page_says_which_version_was_run(client: Client) -> None:
    """Run `make test-clients CLIENTS=--write` when this fails."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(TABLE_BEGINS)
    rows, _, _ = rest.partition(TABLE_ENDS)
    beginning = f"| {client.title} | {client.package} {client.version}"
    found = [row for row in rows.splitlines() if row.startswith((f"{beginning},", f"{beginning} "))]
    assert len(found) == 1
    assert client.pointed_by in found[0]
    assert found[0].endswith(" | passed |")


def test_a_program_that_says_nothing_has_shown_nothing() -> None:
    outcome = Outcome(CLIENTS[0])
    outcome.read("noise\nclient openai 2.0\npassed a\nsaid passed b\npassed c, d\n")
    assert (outcome.version, outcome.steps) == ("openai 2.0", ["a", "c, d"])
    assert table([outcome]).endswith("| a; c, d | failed |")
