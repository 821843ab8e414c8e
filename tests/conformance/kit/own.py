"""Overnight as the kit's subject: the whole engine, with a simulated model server."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.conformance.kit.runs import SHORT_WINDOW
from tests.conformance.kit.subject import Subject
from tests.fixtures.engine import KEY, engine_in

_SETTINGS = {
    "OVERNIGHT_COMPLETION_WINDOWS": f"24h,{SHORT_WINDOW}",
    # So slow that the long batches are caught in mid-run.
    "OVERNIGHT_MAX_IN_FLIGHT": "40",
    "OVERNIGHT_WEBHOOK_ALLOW_PRIVATE": "true",
    "OVERNIGHT_WEBHOOK_FIRST_WAIT_SECONDS": "0.5",
}


@contextmanager
def own_server(folder: Path) -> Iterator[Subject]:
    """A running Overnight that keeps everything in this folder."""
    with engine_in(folder, **_SETTINGS) as engine:
        with engine.client as client:
            base_url = str(client.base_url)
        other = _key_of_another_project(engine.data_folder)
        with closing(Subject(base_url, KEY, other)) as server:
            yield server


def _key_of_another_project(data_folder: Path) -> str:
    command = ["keys", "create", "--project", "kit", "--data-dir", str(data_folder), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *command],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    key: str = json.loads(done.stdout)["key"]
    return key


def subject_at(base_url: str, environment: dict[str, str]) -> Subject:
    """The server that the environment names."""
    server = Subject(base_url, environment["API_KEY"], environment.get("API_KEY_2") or None)
    listed = server.http.get("models").json().get("data", [])
    server.model = environment.get("MODEL") or (listed[0]["id"] if listed else server.model)
    for name, endpoint in _MODEL_VARIABLES.items():
        if environment.get(name):
            server.models[endpoint] = environment[name]
    return server


_MODEL_VARIABLES = {
    "MODEL_RESPONSES": "/v1/responses",
    "MODEL_EMBEDDINGS": "/v1/embeddings",
    "MODEL_COMPLETIONS": "/v1/completions",
    "MODEL_MODERATIONS": "/v1/moderations",
    "MODEL_IMAGE_GENERATIONS": "/v1/images/generations",
    "MODEL_IMAGE_EDITS": "/v1/images/edits",
    "MODEL_VIDEOS": "/v1/videos",
}
