"""LiteLLM's SDK, as its users run batches: provider `openai`, another base URL."""

import asyncio
import json
import sys
from pathlib import Path

from models.database import Database
from models.lifecycle import BatchStatus
from tests.factories import input_file, make_batch, make_file
from tests.fixtures.client import LiveApi

OUTPUT = b'{"custom_id": "a"}\n'


async def test_the_flow(live_api: LiveApi, database: Database, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(input_file(10))
    output = await make_file(database, OUTPUT, purpose="batch_output")
    usage = {
        "input_tokens": 10,
        "cached_tokens": 4,
        "output_tokens": 20,
        "reasoning_tokens": 5,
        "total_tokens": 30,
    }
    completed = await make_batch(
        database,
        status=BatchStatus.COMPLETED,
        output_file_id=output.id,
        total=1,
        completed=1,
        usage=usage,
        model="m",
    )
    errors = [{"code": "invalid_json_line", "message": "m", "param": None, "line": 2}]
    failed = await make_batch(database, status=BatchStatus.FAILED, errors=errors)

    arguments = (live_api.base_url, live_api.api_key, str(path), completed.id, failed.id)
    flow = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.conformance.litellm_flow",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await flow.communicate()
    assert flow.returncode == 0
    seen = json.loads(printed.splitlines()[-1])

    assert seen["file"]["bytes"] == path.stat().st_size
    assert seen["batch"]["metadata"] == {"key1": "value1", "key2": "value2"}
    assert (seen["shown"]["id"], seen["shown"]["status"]) == (seen["batch"]["id"], "validating")
    assert seen["content"] == path.read_text()
    assert seen["listed"] == [seen["batch"]["id"], failed.id, completed.id]
    assert seen["cancelled"]["status"] == "cancelling"
    assert seen["completed"]["status"] == "completed"
    assert seen["completed"]["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert seen["output"] == OUTPUT.decode()
    assert seen["failed"]["errors"]["data"] == errors
    assert seen["unknown"] == 404
    assert seen["wrong key"] == 401
