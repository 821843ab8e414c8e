"""A process dies at every place between two durable writes; another brings each batch to its right end.

Two whole nodes (`tests.crash.node`) share a database. One failpoint after the other is armed: whichever
node passes it first is killed there, and replaced. `stories` are what the clients do, and what they find.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import zip_longest
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cli.simulator.hosting import simulated_server
from models.failpoints import Failpoint
from tests.crash import stories
from tests.crash.node import Nodes, armed_by
from tests.crash.stories import Stage

Story = Callable[[Stage], None]

pytestmark = pytest.mark.timeout(240)

# In each stage of a batch's life, one death after the other would be as good as six batches; so each batch
# dies once in each stage.
_STAGES = [
    [
        Failpoint.UPLOAD_OPENED,
        Failpoint.UPLOAD_CHUNKS_STORED,
        Failpoint.KEY_CLAIMING,
        Failpoint.UPLOAD_PUBLISHING,
        Failpoint.UPLOAD_PUBLISHED,
    ],
    [Failpoint.CREATE_ADDING, Failpoint.CREATE_BEFORE_BELL],
    [
        Failpoint.VALIDATE_CLAIMED,
        # With the one above: nobody has rung, so it is for the sweep to find the batch.
        Failpoint.SWEEP_BEFORE_BELL,
        Failpoint.VALIDATE_READING,
        Failpoint.VALIDATE_CHECKED,
        Failpoint.VALIDATE_MOVING,
        Failpoint.VALIDATE_ADDING_SHARDS,
        Failpoint.VALIDATE_BEFORE_BELL,
    ],
    [
        Failpoint.CLAIM_LEASING,
        Failpoint.CLAIM_LEASED,
        Failpoint.RUN_ANSWERED,
        Failpoint.RECORD_BEFORE_WRITE,
        Failpoint.RECORD_WRITTEN,
        Failpoint.CLOSE_BEFORE,
        Failpoint.CLOSE_CLOSING,
        Failpoint.CLOSE_BATCH_MOVED,
    ],
    [
        Failpoint.FINALIZE_CLAIMED,
        Failpoint.FINALIZE_WRITING_ANSWERED,
        Failpoint.FINALIZE_CLOSING_OUTPUT,
        Failpoint.FINALIZE_CLOSING_ERRORS,
        Failpoint.END_BEFORE_OUTBOX,
        Failpoint.FINALIZE_MOVING,
        Failpoint.FINALIZE_DROPPING_RESULTS,
        Failpoint.FINALIZE_DROPPING_SHARDS,
        Failpoint.FINALIZE_DONE,
    ],
    [Failpoint.NOTIFY_CLAIMED, Failpoint.NOTIFY_SENT, Failpoint.NOTIFY_RECORDED],
]

#: What the nodes die of in a story, one after the other.
WALK: list[tuple[Story, list[Failpoint]]] = [
    *(
        (stories.a_batch_completes, [point for point in deaths if point is not None])
        for deaths in zip_longest(*_STAGES)
    ),
    # The last shard was closed, and its worker is gone before it could say so: the sweep does.
    (
        stories.a_batch_of_one_shard_completes,
        [Failpoint.CLOSE_CLOSED, Failpoint.CLOSE_BATCH_MOVED],
    ),
    (stories.a_batch_is_refused, [Failpoint.VALIDATE_FAILING, Failpoint.VALIDATE_FAILED]),
    (
        stories.a_batch_is_cancelled,
        [
            Failpoint.CANCEL_MOVING,
            Failpoint.CANCEL_BEFORE_BELL,
            Failpoint.FINALIZE_WRITING_UNANSWERED,
        ],
    ),
    (stories.a_batch_expires, [Failpoint.SWEEP_EXPIRING, Failpoint.FINALIZE_MOVING]),
    # Its finisher dies twice, so it is left alone for a while.
    (
        stories.a_batch_of_one_shard_completes,
        [Failpoint.FINALIZE_CLAIMED, Failpoint.FINALIZE_CLAIMED, Failpoint.SWEEP_RESTED],
    ),
    (stories.a_batch_is_resumed, [Failpoint.RESUME_BEFORE_BELL]),
    (
        stories.a_file_comes_in_parts,
        [
            Failpoint.PART_ADDING,
            Failpoint.COMPLETE_PARTS_READ,
            Failpoint.COMPLETE_ENDING,
            Failpoint.COMPLETE_MOVING_CHUNKS,
            Failpoint.COMPLETE_FORGETTING_PARTS,
            Failpoint.COMPLETE_DONE,
        ],
    ),
    (stories.an_upload_is_given_up, [Failpoint.SWEEP_REMOVING_PART]),
    (
        stories.failed_lines_are_retried,
        [Failpoint.RETRY_LINES_COPIED, Failpoint.RETRY_ADDING, Failpoint.RETRY_BEFORE_BELL],
    ),
    (
        stories.a_file_is_deleted,
        [
            Failpoint.DELETE_HIDDEN,
            Failpoint.PURGE_BEFORE_REMOVING,
            Failpoint.PURGE_REMOVING_CHUNKS,
        ],
    ),
]
_STEPS = [
    pytest.param(story, deaths, id=f"{story.__name__}: {', '.join(deaths)}")
    for story, deaths in WALK
]


def test_every_failpoint_is_walked() -> None:
    assert {point for _, deaths in WALK for point in deaths} == set(Failpoint)


@pytest.mark.parametrize(("story", "deaths"), _STEPS)
def test_deaths_change_nothing(
    story: Story, deaths: list[Failpoint], stage: Stage, failpoint_file: Path, told: list[str]
) -> None:
    failpoint_file.write_text("\n".join(deaths))

    story(stage)

    stage.wait_for("every node has died that was to", lambda: failpoint_file.read_text() == "")
    stage.wait_for("they are replaced", lambda: stage.nodes.killed == len(deaths))
    _check_nothing_is_left(stage)
    # Whom it concerns has heard of every end.
    assert set(told) == {batch["id"] for batch in stage.said("GET", "batches")["data"]}


def _check_nothing_is_left(stage: Stage) -> None:
    final = "('completed', 'failed', 'expired', 'cancelled')"
    for what in (
        f"batches WHERE status NOT IN {final} OR lease_owner IS NOT NULL",
        "shards",
        "results",
        "upload_parts",
    ):
        assert stage.count(what) == 0, what
    # What an upload was in the midst of is swept when it has not moved for a while.
    stage.wait_for("no half file", lambda: stage.count("files WHERE status <> 'processed'") == 0)
    waiting = "webhook_deliveries WHERE state <> 'delivered'"
    stage.wait_for("every webhook is delivered", lambda: stage.count(waiting) == 0)


@pytest.fixture(scope="session")
def failpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What it names, the nodes of this process die of."""
    path = tmp_path_factory.mktemp("failpoint") / "armed"
    path.touch()
    with armed_by(path):
        yield path


@pytest.fixture
def told() -> list[str]:
    """The batches whose end the receiver of webhooks has heard of."""
    return []


@pytest.fixture
def receiver_url(told: list[str]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that the standard library asks for
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told.append(body["data"]["id"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook"
        server.shutdown()
        thread.join()


@pytest.fixture
def stage(database_url: str, failpoint_file: Path, receiver_url: str) -> Iterator[Stage]:
    failpoint_file.write_text("")
    with (
        simulated_server(latency=0.01, bad_request_marker=stories.FAILING) as model_server,
        psycopg.connect(database_url, autocommit=True) as database,
        closing(Nodes(2, database_url=database_url, upstream_url=model_server.url)) as nodes,
    ):
        made = Stage(nodes, model_server.settings, database)
        body = {
            "name": "receiver",
            "url": receiver_url,
            "event_types": ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"],
        }
        made.said("POST", "webhook_endpoints", json=body)
        yield made
