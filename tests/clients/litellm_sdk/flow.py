"""LiteLLM as a library: provider `openai`, another base URL."""

import asyncio
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import litellm

ENDED = {"completed", "failed", "expired", "cancelled"}
CHAT = "/v1/chat/completions"
lite: Any = litellm
provider = {
    "custom_llm_provider": "openai",
    "api_base": os.environ["OPENAI_BASE_URL"],
    "api_key": os.environ["OPENAI_API_KEY"],
}


def passed(step: str) -> None:
    print("passed", step, flush=True)


def input_line(number: int, text: str) -> str:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}
    line = {"custom_id": f"request-{number}", "method": "POST", "url": CHAT, "body": body}
    return json.dumps(line) + "\n"


async def create(content: str, **options: Any) -> Any:
    path = Path("in.jsonl")
    path.write_text(content)
    file = await lite.acreate_file(file=path.open("rb"), purpose="batch", **provider)
    assert file.bytes == path.stat().st_size
    return await lite.acreate_batch(
        completion_window="24h", endpoint=CHAT, input_file_id=file.id, **options, **provider
    )


async def end(batch: Any) -> Any:
    async with asyncio.timeout(120):
        while batch.status not in ENDED:
            await asyncio.sleep(0.3)
            batch = await lite.aretrieve_batch(batch_id=batch.id, **provider)
    return batch


async def lines_of(file_id: str) -> dict[str, Any]:
    content = await lite.afile_content(file_id=file_id, **provider)
    lines = [json.loads(line) for line in content.content.decode().splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line for line in lines}


async def main() -> None:
    good = "".join(input_line(number, f"question {number}") for number in range(100))
    batch = await create(good + input_line(100, "refuse this line"), metadata={"k": "v"})
    batch = await end(batch)
    assert (batch.status, batch.metadata) == ("completed", {"k": "v"})
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (101, 100, 1)
    passed("upload, create, poll")
    outputs = await lines_of(batch.output_file_id)
    assert set(outputs) == {f"request-{number}" for number in range(100)}
    for line in outputs.values():
        answer = lite.ModelResponse(**line["response"]["body"])
        assert answer.choices[0].message.content
    passed("output file")
    errors = await lines_of(batch.error_file_id)
    assert errors["request-100"]["response"]["status_code"] == 400
    passed("error file")

    running = await create("".join(input_line(n, f"question {n}") for n in range(1_000)))
    cancelled = await lite.acancel_batch(batch_id=running.id, **provider)
    assert cancelled.status in {"cancelling", "cancelled"}
    assert (await end(running)).status == "cancelled"
    passed("cancel")

    failed = await end(await create(good + "not JSON\n"))
    assert failed.status == "failed"
    assert [error.line for error in failed.errors.data] == [101]
    passed("failed validation")

    listed = await lite.alist_batches(limit=2, **provider)
    assert [one.id for one in listed.data] == [failed.id, running.id]
    after = await lite.alist_batches(limit=2, after=running.id, **provider)
    assert after.data[0].id == batch.id
    passed("list")
    try:
        await lite.aretrieve_batch(batch_id="batch_none", **provider)
    except Exception as error:  # noqa: BLE001  # LiteLLM wraps some errors and lets others through
        assert getattr(error, "status_code", None) == 404
    else:
        raise AssertionError("found")
    assert (await lite.afile_delete(file_id=batch.output_file_id, **provider)).deleted
    passed("refusals, delete files")


if __name__ == "__main__":
    print("client litellm", importlib.metadata.version("litellm"))
    print("client openai", importlib.metadata.version("openai"))
    asyncio.run(main())
