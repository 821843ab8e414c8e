"""Label every row of a CSV: `python classify_csv.py reviews.csv gpt-4o-mini > labelled.csv`."""

import csv
import json
import sys
import time
from pathlib import Path

from openai import OpenAI

rows = list(csv.DictReader(Path(sys.argv[1]).read_text("utf-8").splitlines(keepends=True)))
columns = [*rows[0], "label"]
task = "Is this review positive, negative or mixed? Answer with that one word."
lines = []
for number, row in enumerate(rows):
    messages = [{"role": "user", "content": f"{task}\n\n{row['review']}"}]
    body = {"model": sys.argv[2], "messages": messages, "max_tokens": 5}
    line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
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
    message = answer["response"]["body"]["choices"][0]["message"]
    rows[int(answer["custom_id"])]["label"] = message["content"].strip()
csv.DictWriter(sys.stdout, columns).writerows([dict(zip(columns, columns, strict=True)), *rows])
