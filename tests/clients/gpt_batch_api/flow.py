"""gpt-batch-api, by the program that it brings along: generate, push, wait, check, process, finalize.

It checks more of what comes back than any other client: sizes, endpoints, every field of each line and
each answer, the sums of tokens. The task of its demonstration asks 45 questions three times or more,
until their answers agree, which is enough for it to use batches.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import openai

_SENTENCES = 45


def passed(step: str) -> None:
    print("passed", step, flush=True)


def main() -> None:
    command = [sys.executable, "-m", "gpt_batch_api.task_manager_demo"]
    command += ["--task", "utterance_emotion", "--task_dir", "task", "--model", "gpt-4o-mini"]
    command += ["--client_base_url", os.environ["OPENAI_BASE_URL"], "--no_wandb"]
    command += ["--remote_update_interval", "1", "--min_batch_requests", "1"]
    ran = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(ran.stdout[-8_000:])
    assert ran.returncode == 0, ran.returncode
    assert re.search(r"\b135 requests have been completed in BATCH mode", ran.stdout)
    assert re.search(r"\b0 requests have been completed in DIRECT mode", ran.stdout)
    assert "135 without issues + 0 with warnings + 0 with errors" in ran.stdout
    passed("its own demonstration: TaskManager.run")
    outputs = Path("task").glob("*output*.jsonl")
    entries = [json.loads(line) for path in outputs for line in path.read_text().splitlines()]
    assert len(entries) == _SENTENCES
    assert all(entry["emotion"] for entry in entries)
    passed("every request answered by its schema")
    with openai.OpenAI() as client:
        newest = client.batches.list(limit=1).data[0]
        assert newest.request_counts is not None
        assert newest.request_counts.completed == newest.request_counts.total > 100


if __name__ == "__main__":
    print("client gpt-batch-api", importlib.metadata.version("gpt-batch-api"))
    print("client openai", importlib.metadata.version("openai"))
    main()
