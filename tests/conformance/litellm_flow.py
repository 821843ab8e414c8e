"""What LiteLLM's users do, as a program of its own; prints what it saw as JSON.

A program, because the library keeps clients and threads that outlive a test's event loop. Called
with the base URL, a key, an input file, and the ids of a completed and of a failed batch.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

# Else its import fetches a price list from the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm


async def flow(
    base_url: str, key: str, path: str, completed_id: str, failed_id: str
) -> dict[str, Any]:
    """Go through everything, and keep what comes back."""
    lite: Any = litellm
    provider = {"custom_llm_provider": "openai", "api_base": base_url, "api_key": key}
    file = await lite.acreate_file(file=Path(path), purpose="batch", **provider)
    batch = await lite.acreate_batch(
        completion_window="24h",
        endpoint="/v1/chat/completions",
        input_file_id=file.id,
        metadata={"key1": "value1", "key2": "value2"},
        **provider,
    )
    shown = await lite.aretrieve_batch(batch_id=batch.id, **provider)
    content = await lite.afile_content(file_id=file.id, **provider)
    listed = await lite.alist_batches(limit=10, **provider)
    cancelled = await lite.acancel_batch(batch_id=batch.id, **provider)
    completed = await lite.aretrieve_batch(batch_id=completed_id, **provider)
    output = await lite.afile_content(file_id=completed.output_file_id, **provider)
    failed = await lite.aretrieve_batch(batch_id=failed_id, **provider)
    return {
        "file": file.model_dump(mode="json"),
        "batch": batch.model_dump(mode="json"),
        "shown": shown.model_dump(mode="json"),
        "content": content.content.decode(),
        "listed": [one.id for one in listed.data],
        "cancelled": cancelled.model_dump(mode="json"),
        "completed": completed.model_dump(mode="json"),
        "output": output.content.decode(),
        "failed": failed.model_dump(mode="json"),
        "unknown": await refusal(lite.aretrieve_batch(batch_id="batch_x", **provider)),
        "wrong key": await refusal(
            lite.aretrieve_batch(batch_id=batch.id, **provider | {"api_key": "sk-wrong"})
        ),
    }


async def refusal(call: Any) -> int:
    """The status of a call that is refused."""
    try:
        await call
    except Exception as error:  # noqa: BLE001  # LiteLLM wraps some errors and lets others through
        return int(getattr(error, "status_code", 0))
    return 200


if __name__ == "__main__":
    print(json.dumps(asyncio.run(flow(*sys.argv[1:]))))
