"""Lines that are called by prefix: read from where they lie, and written in the order of the input."""

from dataclasses import replace

import pytest

from models.lifecycle import BatchStatus
from tests.factories import input_line, json_lines
from tests.fixtures.runtime import lines_of, run_to_end, shards_of, started_batch
from worker.runtime import Runtime

PROMPTS = ["Answer in one word, and politely. " * 10, "Translate what follows. " * 20]
LINES = [
    input_line(
        number,
        body={
            "model": "m",
            "messages": [
                {"role": "system", "content": PROMPTS[number % 2]},
                {"role": "user", "content": "q"},
            ],
        },
    )
    for number in range(12)
]


async def test_the_output_is_in_input_order_whatever_the_order_of_calls(runtime: Runtime) -> None:
    batch = await started_batch(runtime, json_lines(*LINES))
    shards = await shards_of(runtime.database, batch)
    assert [shard.line_numbers for shard in shards] == [
        [1, 3, 5, 7, 9],
        [11, 2, 4, 6, 8],
        [10, 12],
    ]
    batch = await run_to_end(runtime, batch)
    assert batch.status == BatchStatus.COMPLETED
    output = await lines_of(runtime.database, batch.output_file_id)
    assert [line["custom_id"] for line in output] == [line["custom_id"] for line in LINES]


@pytest.mark.parametrize("is_on", [True, False])
async def test_it_can_be_turned_off(runtime: Runtime, *, is_on: bool) -> None:
    settings = runtime.validate_settings.model_copy(update={"prefix_order": is_on})
    batch = await started_batch(replace(runtime, validate_settings=settings), json_lines(*LINES))
    shards = await shards_of(runtime.database, batch)
    assert (shards[0].line_numbers == [1, 2, 3, 4, 5]) is not is_on
