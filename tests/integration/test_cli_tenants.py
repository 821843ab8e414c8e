"""`overnight keys` and `overnight projects` on a database, and what their keys then open."""

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from api.services import projects
from cli.main import main
from models import Project
from models.database import Database
from models.lifecycle import BatchStatus
from models.settings import DatabaseSettings
from tests.factories import make_batch, make_file
from tests.fixtures.client import AppFactory, serve
from tests.fixtures.database import Postgres


@dataclass
class Done:
    """What a command left."""

    status: int
    stdout: str
    stderr: str


Overnight = Callable[..., Done]


@pytest.fixture
def overnight(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str
) -> Overnight:
    """Run a command in this process, on this test's database."""
    monkeypatch.setenv("OVERNIGHT_DATABASE_URL", database_url)

    def call(*arguments: str, status: int = 0) -> Done:
        monkeypatch.setattr(sys, "argv", ["overnight", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        done = Done(int(caught.value.code or 0), said.out, said.err)
        assert done.status == status, done
        assert "Traceback" not in done.stderr
        return done

    return call


def made(overnight: Overnight, *arguments: str) -> dict[str, Any]:
    """A new key, as `--json` shows it."""
    found: dict[str, Any] = json.loads(overnight("keys", "create", *arguments, "--json").stdout)
    return found


def rows(done: Done) -> list[list[str]]:
    """A table's rows without its head, each cut into its words."""
    return [line.split() for line in done.stdout.splitlines()[1:]]


def test_a_key_opens_its_project_until_it_is_revoked(
    overnight: Overnight, make_app: AppFactory
) -> None:
    key = made(overnight, "--project", "night shift", "--name", "of the tests")
    assert key["project"]["name"] == "night shift"
    assert (key["name"], key["expires_at"], key["state"]) == ("of the tests", None, "active")
    again = made(overnight, "--project", "night shift")
    assert again["project"] == key["project"]
    assert again["key"] != key["key"]

    with serve(make_app(api_key=None)) as live:

        def status_with(text: str) -> int:
            headers = {"authorization": f"Bearer {text}"}
            return httpx.get(f"{live.base_url}/files", headers=headers).status_code

        assert (status_with(key["key"]), status_with(again["key"])) == (200, 200)
        assert "is revoked since" in overnight("keys", "revoke", key["id"]).stdout
        assert (status_with(key["key"]), status_with(again["key"])) == (401, 200)
        overnight("projects", "archive", "night shift")
        assert status_with(again["key"]) == 401
        overnight("projects", "restore", "night shift")
        assert status_with(again["key"]) == 200


def test_a_key_is_shown_once_and_nowhere_else(overnight: Overnight) -> None:
    done = overnight("keys", "create", "--project", "p")
    key = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("Key"))
    assert key.startswith("sk-on-")
    assert "cannot be shown again" in done.stderr
    assert key not in done.stderr
    listed = overnight("keys", "list")
    assert f"sk-on-…{key[-4:]}" in listed.stdout
    as_json = overnight("keys", "list", "--json").stdout
    assert key.rpartition("-")[2] not in listed.stdout + as_json


def test_the_list_of_keys(overnight: Overnight) -> None:
    assert "There is no key yet" in overnight("keys", "list").stderr
    first = made(overnight, "--project", "a")
    second = made(overnight, "--project", "b", "--expires", "30d")
    assert 0 < second["expires_at"] - second["created_at"] - 30 * 86_400 + 2 < 4
    overnight("keys", "revoke", first["id"])

    listed = rows(overnight("keys", "list"))
    assert [(row[0], row[2], row[-1]) for row in listed] == [
        (first["id"], "a", "revoked"),
        (second["id"], "b", "active"),
    ]
    [only] = json.loads(overnight("keys", "list", "--project", "b", "--json").stdout)
    assert only == {name: value for name, value in second.items() if name != "key"}
    overnight("projects", "archive", "b")
    assert rows(overnight("keys", "list"))[1][-2:] == ["project", "archived"]


def test_a_key_for_a_short_time(
    overnight: Overnight, postgres: Postgres, database_name: str
) -> None:
    made(overnight, "--project", "a", "--expires", "1s")
    postgres.execute("UPDATE api_keys SET expires_at = now()", database=database_name)
    assert rows(overnight("keys", "list"))[0][-1] == "expired"


def test_revoking_twice_is_no_mistake_and_keeps_the_time(overnight: Overnight) -> None:
    key = made(overnight, "--project", "a")
    overnight("keys", "revoke", key["id"])
    [first] = json.loads(overnight("keys", "list", "--json").stdout)
    overnight("keys", "revoke", key["id"])
    assert [first] == json.loads(overnight("keys", "list", "--json").stdout)


def test_the_default_project_may_have_keys_too(overnight: Overnight) -> None:
    key = made(overnight, "--project", "default")
    assert key["project"] == {"id": "proj_default", "name": "default"}
    assert made(overnight, "--project", "proj_default")["project"] == key["project"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["keys", "create"], 2, "--project"),
        (["keys", "create", "--project", " "], 2, "A project needs a name"),
        (["keys", "create", "--project", "x" * 101], 2, "at most 100 characters"),
        (["keys", "create", "--project", "a\nb"], 2, "can be seen"),
        (["keys", "create", "--project", "a\0b"], 2, "can be seen"),
        (["keys", "create", "--project", "\udcff"], 2, "can be seen"),
        (["keys", "create", "--project", "a", "--name", "\x1b[2J"], 2, "can be seen"),
        (["keys", "create", "--project", "a", "--expires", "soon"], 2, "24h or 7d"),
        (["keys", "create", "--project", "a", "--expires", "99999999d"], 2, "36500d"),
        (["keys", "create", "--project", "proj_nobodys"], 1, "No project is called"),
        (["keys", "list", "--project", "nobodys"], 1, "No project is called 'nobodys'"),
        (["keys", "revoke", "key_nobodys"], 1, "No key has the id 'key_nobodys'"),
        (["keys", "revoke", "a\0b"], 1, "No key has the id"),
        (["keys", "revoke", "sk-on-secret"], 2, "key's id"),
        (["keys", "revok"], 2, "No such command 'revok'"),
        (["projects", "show", "nobodys"], 1, "No project is called"),
        (["projects", "archive", "default"], 1, "OVERNIGHT_API_KEY"),
        (["projects", "archive", "nobodys"], 1, "No project is called"),
        (["projects", "set", "default"], 2, "--max-stored-bytes"),
        (["projects", "set", "default", "--max-batches-per-hour", "many"], 2, "give a number"),
        (["projects", "set", "default", "--max-batches-per-hour", "-1"], 2, "give a number"),
        (["projects", "set", "default", "--max-batches-per-hour", "3000000000"], 2, "at most"),
        (["projects", "set", "default", "--max-batches-per-hour", "1GB"], 2, "give a number"),
        (["projects", "set", "default", "--max-stored-bytes", "9999999999TB"], 2, "at most"),
        (["projects", "set", "default", "--weight", "much"], 2, "give a number above 0"),
        (["projects", "set", "default", "--weight", "0"], 2, "give a number above 0"),
        (["projects", "set", "default", "--weight", "nan"], 2, "give a number above 0"),
        (["projects", "set", "default", "--weight", "1000.1"], 2, "at most 1,000"),
        (["projects", "create", "a", "--weight", "-1"], 2, "give a number above 0"),
        (["projects", "set", "nobodys", "--max-stored-bytes", "1"], 1, "No project is called"),
        (["projects", "list", "--data-dir", "a", "--database-url", "b"], 2, "either"),
        (
            ["projects", "list", "--database-url", "mysql://host"],
            2,
            "must begin with postgresql://",
        ),
    ],
)
def test_a_mistake_is_a_sentence(
    overnight: Overnight, arguments: list[str], status: int, words: str
) -> None:
    done = overnight(*arguments, status=status)
    assert words in done.stderr
    assert "sk-on-secret" not in done.stderr
    assert done.stdout == ""


async def test_a_mistake_makes_nothing(database: Database, overnight: Overnight) -> None:
    await asyncio.to_thread(
        overnight, "keys", "create", "--project", "new", "--expires", "soon", status=2
    )
    async with database.begin() as session:
        assert await session.scalar(select(func.count()).select_from(Project)) == 1


def test_a_name_is_kept_as_it_is_written(overnight: Overnight) -> None:
    # Two spellings of one name, blanks around it, and what rich would take for markup.
    for name in ("[red]Zürich", " [red]Zu\u0308rich "):
        overnight("projects", "create", name)
    assert "[red]Zürich" in overnight("projects", "list").stdout
    assert len(rows(overnight("projects", "list"))) == 2


def test_projects_are_listed_with_what_they_have(overnight: Overnight) -> None:
    assert "is made" in overnight("projects", "create", "a").stdout
    assert "was there already" in overnight("projects", "create", "a").stdout
    key = made(overnight, "--project", "a")
    made(overnight, "--project", "a")
    overnight("keys", "revoke", key["id"])
    found = json.loads(overnight("projects", "list", "--json").stdout)
    assert [(each["name"], each["active_keys"], each["state"]) for each in found] == [
        ("default", 0, "active"),
        ("a", 1, "active"),
    ]
    assert overnight("projects", "archive", "a").stdout.endswith("open nothing any more.\n")
    assert "archived" in overnight("projects", "list").stdout
    refused = overnight("keys", "create", "--project", "a", status=1)
    assert "is archived" in refused.stderr


def test_limits_are_set_and_taken_back(overnight: Overnight) -> None:
    overnight("projects", "create", "a")

    def limits() -> dict[str, int | None]:
        found: dict[str, int | None] = json.loads(
            overnight("projects", "show", "a", "--json").stdout
        )["limits"]
        return found

    nothing = dict.fromkeys(
        ("max_batches_per_hour", "max_enqueued_lines", "max_enqueued_tokens", "max_stored_bytes")
    )
    assert limits() == nothing
    said = overnight(
        *("projects", "set", "a", "--max-batches-per-hour", "1,000", "--max-stored-bytes", "5GB"),
        *("--max-enqueued-lines", "none", "--max-enqueued-tokens", "2_000_000"),
    ).stdout
    assert "max_batches_per_hour 1,000, max_enqueued_lines no limit" in said
    changed = {
        "max_batches_per_hour": 1000,
        "max_enqueued_lines": 0,
        "max_enqueued_tokens": 2_000_000,
        "max_stored_bytes": 5_000_000_000,
    }
    assert limits() == changed
    overnight("projects", "set", "a", "--max-stored-bytes", "default")
    assert limits() == changed | {"max_stored_bytes": None}


def test_a_weight_is_given_and_changed(overnight: Overnight) -> None:
    def weights() -> dict[str, float]:
        found = json.loads(overnight("projects", "list", "--json").stdout)
        return {each["name"]: each["weight"] for each in found}

    overnight("projects", "create", "a", "--weight", "2.5")
    overnight("projects", "create", "b")
    assert weights() == {"default": 1, "a": 2.5, "b": 1}
    # It is there already, and stays as it is.
    overnight("projects", "create", "a", "--weight", "7")
    said = overnight("projects", "set", "b", "--weight", "1000").stdout
    assert said.endswith("the defaults; weight 1000.\n")
    overnight("projects", "set", "b", "--max-stored-bytes", "1")
    assert weights() == {"default": 1, "a": 2.5, "b": 1000}
    shown = overnight("projects", "show", "a").stdout
    assert ["Weight", "2.5"] in [line.split() for line in shown.splitlines()]
    assert [row[-3] for row in rows(overnight("projects", "list"))[:2]] == ["1", "2.5"]


async def test_a_project_is_shown_with_what_it_uses(
    database: Database, overnight: Overnight
) -> None:
    await asyncio.to_thread(overnight, "projects", "create", "a")
    project = await projects.find(database, "a")
    assert project is not None
    await make_file(database, b"x" * 1500, project_pk=project.pk)
    await make_file(database, b"x" * 99)
    now = datetime.now(UTC)
    await make_batch(
        database,
        status=BatchStatus.IN_PROGRESS,
        model="m",
        total=7,
        enqueued_tokens=1234,
        project_pk=project.pk,
    )
    await make_batch(database, created_at=now - timedelta(hours=2), project_pk=project.pk)

    done = await asyncio.to_thread(overnight, "projects", "show", "a", "--json")
    assert json.loads(done.stdout)["usage"] == {
        "batches_last_hour": 1,
        "enqueued": [{"model": "m", "lines": 7, "tokens": 1234}],
        "stored_bytes": 1500,
    }
    shown = (await asyncio.to_thread(overnight, "projects", "show", project.id)).stdout
    assert "1,500 of the default" in shown
    assert "7 requests, 1,234 tokens" in shown


def test_keys_of_one_new_project_made_at_once(database_settings: DatabaseSettings) -> None:
    """Threads, each with a loop and a connection of its own, as so many processes would have."""
    start = threading.Barrier(8)
    found: list[tuple[int, bool]] = []

    async def make() -> None:
        database = Database.connect(database_settings, role="test")
        try:
            await projects.find(database, "warm")
            await asyncio.to_thread(start.wait)
            project, is_new = await projects.find_or_create(database, "new")
            found.append((project.pk, is_new))
        finally:
            await database.dispose()

    threads = [threading.Thread(target=asyncio.run, args=(make(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({pk for pk, _ in found}) == 1
    assert sum(is_new for _, is_new in found) == 1


def test_a_database_without_this_versions_schema(
    overnight: Overnight, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = postgres.create()
    monkeypatch.setenv("OVERNIGHT_DATABASE_URL", postgres.url(empty))
    assert "run `overnight migrate`" in overnight("keys", "list", status=1).stderr
    monkeypatch.setenv("OVERNIGHT_DATABASE_URL", "postgresql://u:secret@127.0.0.1:1/x")
    done = overnight("keys", "list", status=1)
    assert "does not answer" in done.stderr
    assert "secret" not in done.stderr
