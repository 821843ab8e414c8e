"""Upload, create, poll, download with the official SDK (`pip install openai`).

Reads OPENAI_BASE_URL and OPENAI_API_KEY, as `overnight up` prints them. From the repository's root:
    python examples/openai_sdk.py examples/chat-1000.jsonl
"""

import json
import sys
import time
from pathlib import Path

from openai import OpenAI

source = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/chat-1000.jsonl")
with source.open(encoding="utf-8") as lines:
    endpoint = json.loads(lines.readline())["url"]

client = OpenAI()
with source.open("rb") as upload:
    file = client.files.create(file=upload, purpose="batch")
batch = client.batches.create(
    input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"from": "example"}
)
while batch.status in {"validating", "in_progress", "finalizing", "cancelling"}:
    time.sleep(1)
    batch = client.batches.retrieve(batch.id)
    print(batch.id, batch.status, batch.request_counts, flush=True)

for name, file_id in (("output", batch.output_file_id), ("errors", batch.error_file_id)):
    if file_id:
        target = Path(f"{source.stem}.{name}.jsonl")
        client.files.content(file_id).write_to_file(target)
        print(f"{name}: {target}")
if batch.status != "completed":
    sys.exit(f"The batch ended {batch.status}: {batch.errors}")
