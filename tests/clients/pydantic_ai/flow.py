"""Pydantic AI: agents whose requests go through the batch API, and batches of plain model requests."""

import asyncio
import importlib.metadata
import os
from datetime import timedelta
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, ModelRequest, NativeOutput
from pydantic_ai.capabilities import BatchModelRequests
from pydantic_ai.direct import model_request_batch
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.models.batch import BatchRequest
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

POLL = timedelta(seconds=0.3)
model: Any = OpenAIResponsesModel(
    "gpt-4o-mini",
    provider=OpenAIProvider(
        base_url=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"]
    ),
)


class City(BaseModel):
    """What an agent is to answer with."""

    name: str
    country: str


def passed(step: str) -> None:
    print("passed", step, flush=True)


def requests(count: int, text: str = "question") -> list[Any]:
    return [
        BatchRequest(
            custom_id=f"request-{number}",
            messages=[ModelRequest.user_text_prompt(f"{text} {number}")],
        )
        for number in range(count)
    ]


async def run_agents() -> None:
    """Many runs of two agents share batches; one agent asks for an answer of a schema."""
    batching = BatchModelRequests(
        max_wait=timedelta(seconds=1), poll_interval=POLL, max_poll_interval=POLL
    )
    async with batching:
        plain: Any = Agent(model, capabilities=[batching])
        typed: Any = Agent(model, output_type=NativeOutput(City), capabilities=[batching])
        runs = [plain.run(f"question {number}") for number in range(30)]
        runs += [typed.run(f"city {number}") for number in range(30)]
        results = await asyncio.gather(*runs)
    assert all(result.output for result in results[:30])
    assert all(isinstance(result.output, City) for result in results[30:])
    assert all(result.usage.output_tokens for result in results)
    passed("BatchModelRequests: 60 runs of two agents")


async def run_requests() -> None:
    """Responses in the order of the requests; an error in the place of the one that it belongs to."""
    asked = [*requests(50), *requests(1, "refuse this line")]
    asked[-1].custom_id = "refused"
    answers = await model_request_batch(model, asked, poll_interval=POLL, max_poll_interval=POLL)
    assert len(answers) == 51
    assert all(answer.text and answer.usage.output_tokens for answer in answers[:50])
    refused = answers[50]
    assert isinstance(refused, ModelAPIError)
    assert getattr(refused, "status_code", None) == 400
    passed("model_request_batch, with an error line")


async def cancel() -> None:
    """Submit, cancel, and collect: each request ended somehow, and says how."""
    encoded = [await model.batch_encode(request) for request in requests(1_000)]
    batch = await model.batch_cancel(await model.batch_create(encoded))
    assert batch.status in {"canceling", "ended"}
    async with asyncio.timeout(60):
        while batch.status != "ended":
            await asyncio.sleep(0.3)
            batch = await model.batch_status(batch)
    results = await model.batch_results(batch)
    assert {result.custom_id for result in results} == {request.custom_id for request in encoded}
    assert {result.status for result in results} <= {"succeeded", "canceled"}
    assert any(result.status == "canceled" for result in results)
    passed("batch_create, batch_cancel, batch_status, batch_results")


async def main() -> None:
    await run_requests()
    await run_agents()
    await cancel()


if __name__ == "__main__":
    print("client pydantic-ai-slim", importlib.metadata.version("pydantic-ai-slim"))
    print("client openai", importlib.metadata.version("openai"))
    asyncio.run(main())
