"""Read facts out of texts: `python structured_outputs.py reviews.csv gpt-4o-mini > facts.jsonl`."""

import csv
import json
import sys
import time
from pathlib import Path

from openai import OpenAI

FACTS = {"item": {"type": "string"}, "mood": {"type": "string", "enum": ["good", "bad", "mixed"]}}
TYPE = {"type": "object", "properties": FACTS, "required": [*FACTS], "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "facts", "strict": True, "schema": TYPE}}
lines = []
for row in csv.DictReader(Path(sys.argv[1]).read_text("utf-8").splitlines(keepends=True)):
    messages = [{"role": "user", "content": f"What item, and what mood? {row['review']}"}]
    body = {"model": sys.argv[2], "messages": messages, "response_format": FORM}
    line = {"custom_id": row["id"], "method": "POST", "url": "/v1/chat/completions", "body": body}
    lines.append(json.dumps(line))

client = OpenAI()
file = client.files.create(file=("rows.jsonl", "\n".join(lines).encode()), purpose="batch")
batch = client.batches.create(
    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
)
while batch.status in {"validating", "in_progress", "finalizing"}:
    time.sleep(1)
    batch = client.batches.retrieve(batch.id)

for line in client.files.content(batch.output_file_id or sys.exit(str(batch))).text.splitlines():
    answer = json.loads(line)
    facts = json.loads(answer["response"]["body"]["choices"][0]["message"]["content"])
    print(json.dumps({"id": answer["custom_id"], **facts}))
