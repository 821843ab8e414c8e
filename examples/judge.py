"""Have a model grade answers: `python judge.py answers.jsonl gpt-4o-mini`."""

import json
import sys
import time
from pathlib import Path
from statistics import mean

from openai import OpenAI

ASK = "Grade the answer to the question from 1 (wrong) to 5 (right and complete).\n\n"
GRADE = {"grade": {"type": "integer", "enum": [1, 2, 3, 4, 5]}, "reason": {"type": "string"}}
TYPE = {"type": "object", "properties": GRADE, "required": [*GRADE], "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": TYPE}}
lines = []
for number, pair in enumerate(Path(sys.argv[1]).read_text("utf-8").splitlines(), start=1):
    body = {"model": sys.argv[2], "response_format": FORM, "temperature": 0}
    body["messages"] = [{"role": "user", "content": ASK + pair}]
    line = {"custom_id": f"answer-{number}", "method": "POST", "url": "/v1/chat/completions"}
    lines.append(json.dumps({**line, "body": body}))

client = OpenAI()
file = client.files.create(file=("pairs.jsonl", "\n".join(lines).encode()), purpose="batch")
batch = client.batches.create(
    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
)
while batch.status in {"validating", "in_progress", "finalizing"}:
    time.sleep(1)
    batch = client.batches.retrieve(batch.id)

answers = client.files.content(batch.output_file_id or sys.exit(str(batch))).text.splitlines()
bodies = [json.loads(line)["response"]["body"] for line in answers]
verdicts = [json.loads(body["choices"][0]["message"]["content"]) for body in bodies]
print(f"{len(verdicts)} answers, mean grade {mean(verdict['grade'] for verdict in verdicts):.2f}")
