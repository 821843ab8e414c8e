"""Embed a folder's texts: `python embed_folder.py ../docs text-embedding-3-small > vectors.jsonl`."""

import json
import sys
import time
from pathlib import Path

from openai import OpenAI

folder = Path(sys.argv[1])
paths = [path for path in sorted(folder.rglob("*")) if path.suffix in {".md", ".txt"}]
lines = []
for path in paths:
    # A custom_id may be any text that no other line has: here, where the text came from.
    body = {"model": sys.argv[2], "input": path.read_text("utf-8")[:8000]}
    line = {"custom_id": str(path.relative_to(folder)), "method": "POST", "url": "/v1/embeddings"}
    lines.append(json.dumps({**line, "body": body}))

client = OpenAI()
file = client.files.create(file=("texts.jsonl", "\n".join(lines).encode()), purpose="batch")
batch = client.batches.create(
    input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
)
while batch.status in {"validating", "in_progress", "finalizing"}:
    time.sleep(1)
    batch = client.batches.retrieve(batch.id)

for line in client.files.content(batch.output_file_id or sys.exit(str(batch))).text.splitlines():
    answer = json.loads(line)
    vector = answer["response"]["body"]["data"][0]["embedding"]
    print(json.dumps({"file": answer["custom_id"], "embedding": vector}))
