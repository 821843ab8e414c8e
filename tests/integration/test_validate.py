"""Validation: which inputs run, which fail, with which words and line numbers; and who may decide it."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, update

from models import Batch, File, FileChunk
from models.database import Database
from models.ids import new_file_id
from models.lifecycle import BatchStatus
from models.lines import Endpoint
from models.queries import advance
from models.storage import read_lines, read_places
from tests.factories import input_file, input_line, json_lines, make_batch, make_file
from tests.fixtures.runtime import reload, rings, shards_of
from worker.queue import RUN_WINDOW
from worker.runtime import Runtime
from worker.stages.validate import validate_batch

NOT_JSON = "This line is not parseable as valid JSON."


async def validated(runtime: Runtime, content: bytes, **values: Any) -> Batch:
    file = await make_file(runtime.database, content)
    batch = await make_batch(runtime.database, input_file_id=file.id, **values)
    await validate_batch(runtime, batch.pk)
    return await reload(runtime.database, batch)


def small(runtime: Runtime, **limits: int) -> Runtime:
    """The same worker with other limits of validation."""
    settings = runtime.validate_settings.model_copy(update=limits)
    return replace(runtime, validate_settings=settings)


def error(
    code: str, message: str, param: str | None = None, line: int | None = None
) -> dict[str, str | int | None]:
    return {"code": code, "message": message, "param": param, "line": line}


async def assert_failed(
    database: Database, batch: Batch, *errors: dict[str, str | int | None]
) -> None:
    """Nothing ran, and the errors are these."""
    assert batch.status == BatchStatus.FAILED
    assert batch.errors == list(errors)
    assert batch.failed_at is not None
    assert batch.in_progress_at is None
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert (batch.total, batch.completed, batch.failed) == (0, 0, 0)
    assert (batch.lease_owner, batch.lease_until) == (None, None)
    assert await shards_of(database, batch) == []


async def test_a_good_file_is_cut_into_shards_and_runs(runtime: Runtime) -> None:
    batch = await validated(runtime, input_file(12))
    assert batch.status == BatchStatus.IN_PROGRESS
    assert (batch.total, batch.completed, batch.failed) == (12, 0, 0)
    assert batch.model == "m"
    assert batch.errors is None
    assert batch.in_progress_at is not None
    assert batch.lease_owner is None
    shards = await shards_of(runtime.database, batch)
    assert [shard.line_numbers for shard in shards] == [
        [1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10],
        [11, 12],
    ]
    assert [shard.size for shard in shards] == [5, 5, 2]
    assert rings(runtime) == [("run", 3)]


async def test_many_shards_ring_for_a_window_of_them(runtime: Runtime) -> None:
    runtime = small(runtime, shard_lines=1)
    await validated(runtime, input_file(100))
    assert rings(runtime) == [("run", RUN_WINDOW)]


ENDPOINT_BODIES: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT_COMPLETIONS: {"model": "m", "messages": [{"role": "user", "content": "q"}]},
    Endpoint.COMPLETIONS: {"model": "m", "prompt": "p"},
    Endpoint.EMBEDDINGS: {"model": "m", "input": "text"},
    Endpoint.RESPONSES: {"model": "m", "input": "text"},
    Endpoint.MODERATIONS: {"input": "text"},
    Endpoint.IMAGE_GENERATIONS: {"prompt": "p"},
    Endpoint.IMAGE_EDITS: {"prompt": "p", "images": [{"file_id": "file-1"}]},
    Endpoint.VIDEOS: {"prompt": "p"},
}


@pytest.mark.parametrize("endpoint", list(Endpoint))
async def test_each_endpoint(runtime: Runtime, endpoint: Endpoint) -> None:
    line = input_line(url=endpoint.value, body=ENDPOINT_BODIES[endpoint])
    batch = await validated(runtime, json_lines(line), endpoint=endpoint.value)
    assert batch.status == BatchStatus.IN_PROGRESS
    assert batch.model == ENDPOINT_BODIES[endpoint].get("model")


GOOD = [input_line(number) for number in range(1, 5)]


@pytest.mark.parametrize(
    ("content", "line_numbers"),
    [
        (json_lines(*GOOD), [1, 2, 3, 4]),
        (json_lines(*GOOD).removesuffix(b"\n"), [1, 2, 3, 4]),
        (b"\xef\xbb\xbf" + json_lines(*GOOD), [1, 2, 3, 4]),
        (json_lines(*GOOD).replace(b"\n", b"\r\n"), [1, 2, 3, 4]),
        (b"\n\r\n" + json_lines(*GOOD).replace(b"\n", b"\n \t\n"), [3, 5, 7, 9]),
        (json_lines(*GOOD) + b"\n\n  ", [1, 2, 3, 4]),
        (b"\xef\xbb\xbf\r\n" + json_lines(*GOOD).replace(b"\n", b"\r\n"), [2, 3, 4, 5]),
        (b"  " + json_lines(*GOOD).replace(b"\n", b"  \n"), [1, 2, 3, 4]),
    ],
    ids=["plain", "no last newline", "bom", "crlf", "blank lines", "blank end", "all", "spaces"],
)
async def test_line_ends_are_taken_as_they_come(
    runtime: Runtime, content: bytes, line_numbers: list[int]
) -> None:
    batch = await validated(runtime, content)
    assert batch.total == 4
    [shard] = await shards_of(runtime.database, batch)
    assert shard.line_numbers == line_numbers
    assert await ids_at(runtime.database, batch) == [line["custom_id"] for line in GOOD]


async def ids_at(database: Database, batch: Batch) -> list[str]:
    """The custom ids of what the shards' positions point at."""
    async with database.begin() as session:
        file = await session.get_one(File, batch.input_file_pk)
    return [
        json.loads(raw)["custom_id"]
        for shard in await shards_of(database, batch)
        async for _, raw in read_places(
            database,
            file,
            list(zip(shard.line_numbers, shard.offsets, shard.lengths, strict=True)),
        )
    ]


async def test_positions_are_right_across_chunks_and_alphabets(runtime: Runtime) -> None:
    texts = ["é" * 300_000, "x", "😀" * 100_000, "\u2028\x85", "", "y" * 700_000]
    lines = [input_line(n, body={"model": "m", "messages": [text]}) for n, text in enumerate(texts)]
    content = b"".join(
        json.dumps(line, ensure_ascii=False).encode() + end
        for line, end in zip(lines, [b"\n", b"\r\n", b"\n\n", b"\n", b"\n", b""], strict=True)
    )
    batch = await validated(runtime, content)
    assert await ids_at(runtime.database, batch) == [line["custom_id"] for line in lines]


MISSING = "Missing required parameter: '{}'."

FAULTS: list[tuple[object, dict[str, Any]]] = [
    (b"{", {"code": "invalid_json_line", "message": NOT_JSON, "param": None}),
    (b"[1]", {"code": "invalid_json_line", "message": NOT_JSON, "param": None}),
    (b"\xff\xfe", {"code": "invalid_json_line", "message": NOT_JSON, "param": None}),
    (
        {"method": "POST", "url": "/v1/chat/completions", "body": {}},
        {
            "code": "missing_required_parameter",
            "message": MISSING.format("custom_id"),
            "param": "custom_id",
        },
    ),
    (
        input_line(7, method="GET"),
        {
            "code": "invalid_method",
            "message": "Invalid value: 'GET'. Supported values are: 'POST'.",
            "param": "method",
        },
    ),
    (
        input_line(7, url="/v1/embeddings"),
        {
            "code": "invalid_url",
            "message": "The URL provided for this request does not match the batch endpoint.",
            "param": "url",
        },
    ),
    (
        input_line(7, url="/v1/chat/completion"),
        {
            "code": "url_not_found",
            "message": "The provided url '/v1/chat/completion' is not supported by the Batch API.",
            "param": "url",
        },
    ),
    (
        input_line(7, body={"model": "m"}),
        {
            "code": "missing_required_parameter",
            "message": MISSING.format("messages"),
            "param": "body.messages",
        },
    ),
    (
        input_line(7, body={"messages": []}),
        {
            "code": "invalid_request",
            "message": "Model parameter is required.",
            "param": "body.model",
        },
    ),
    (
        input_line(7, body={"model": "m", "messages": [], "stream": True}),
        {
            "code": "streaming_unsupported",
            "message": "Chat Completions: Streaming is not supported in the Batch API.",
            "param": "body.stream",
        },
    ),
    (
        input_line(7, body={"model": "other", "messages": []}),
        {
            "code": "mismatched_model",
            "message": (
                "The model 'other' for this request does not match the rest of the batch."
                " Each batch must contain requests for a single model."
            ),
            "param": "body.model",
        },
    ),
    (
        input_line(1),
        {
            "code": "duplicate_custom_id",
            "message": (
                "The custom_id 'request-1' for this request is a duplicate of another request."
                " The custom_id parameter must be unique for each request in a batch."
            ),
            "param": "custom_id",
        },
    ),
]


def as_line(line: object) -> bytes:
    return line + b"\n" if isinstance(line, bytes) else json_lines(line)


@pytest.mark.parametrize(("line", "fault"), FAULTS, ids=[fault["code"] for _, fault in FAULTS])
async def test_one_bad_line_fails_the_batch(
    runtime: Runtime, line: object, fault: dict[str, Any]
) -> None:
    content = json_lines(input_line(1)) + b"\n" + as_line(line) + json_lines(input_line(2))
    batch = await validated(runtime, content)
    await assert_failed(runtime.database, batch, fault | {"line": 3})
    assert rings(runtime) == []


async def test_all_bad_lines_are_listed_in_order(runtime: Runtime) -> None:
    content = b"".join(
        [
            json_lines(input_line(1)),
            b"no json\n",
            b"\n",
            json_lines(input_line(4, method="PUT"), input_line(1), input_line(6)),
            b"{}",
        ]
    )
    batch = await validated(runtime, content)
    assert batch.errors is not None
    assert [(entry["line"], entry["code"]) for entry in batch.errors] == [
        (2, "invalid_json_line"),
        (4, "invalid_method"),
        (5, "duplicate_custom_id"),
        (7, "missing_required_parameter"),
    ]


async def test_only_so_many_errors_are_listed(runtime: Runtime) -> None:
    batch = await validated(small(runtime, max_batch_errors=10), b"?\n" * 500)
    assert batch.errors is not None
    assert [entry["line"] for entry in batch.errors] == list(range(1, 11))


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n \n\t", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
async def test_an_empty_file(runtime: Runtime, content: bytes) -> None:
    message = "The input file is empty. Please ensure that the batch contains at least one request."
    batch = await validated(runtime, content)
    await assert_failed(runtime.database, batch, error("empty_file", message))


async def test_too_many_lines(runtime: Runtime) -> None:
    limited = small(runtime, max_lines=20)
    assert (await validated(limited, input_file(20))).status == BatchStatus.IN_PROGRESS
    batch = await validated(limited, b"?\n" + input_file(20))
    message = "The input file contains too many requests. A batch can have at most 20 requests."
    await assert_failed(runtime.database, batch, error("too_many_tasks", message))


async def test_too_many_embedding_inputs(runtime: Runtime) -> None:
    """They are counted over all lines: a text, texts, tokens, or arrays of tokens."""
    limited = small(runtime, max_embedding_inputs=8)
    url = Endpoint.EMBEDDINGS.value
    inputs = ["one", ["two", 'th"re,e'], [4, 4, 4], [[5, 5], [6]]]
    lines = [
        input_line(number, url=url, body={"model": "m", "input": given})
        for number, given in enumerate(inputs, start=1)
    ]
    batch = await validated(limited, json_lines(*lines), endpoint=url)
    assert batch.status == BatchStatus.IN_PROGRESS
    more = input_line(9, url=url, body={"model": "m", "input": ["seven", "eight", "nine"]})
    batch = await validated(limited, json_lines(*lines, more), endpoint=url)
    message = (
        "The input file contains too many embedding inputs. A batch can have at most 8"
        " embedding inputs over all its requests."
    )
    await assert_failed(runtime.database, batch, error("too_many_tasks", message))


async def test_too_long_a_line(runtime: Runtime) -> None:
    limited = small(runtime, max_line_bytes=1000)
    long = input_line(2, body={"model": "m", "messages": ["x" * 1000]})
    content = b"?\n" + json_lines(long, input_line(3))
    message = "This line is too long. A request can have at most 1,000 bytes."
    for given in (content, content[: content.rindex(b"\n{")]):
        batch = await validated(limited, given)
        await assert_failed(
            runtime.database,
            batch,
            error("invalid_json_line", NOT_JSON, None, 1),
            error("line_too_long", message, None, 2),
        )


@pytest.mark.parametrize(
    "values",
    [
        {"purpose": "fine-tune"},
        {"deleted_at": datetime.now(UTC)},
        {"expires_at": datetime.now(UTC) - timedelta(seconds=1)},
    ],
    ids=["wrong purpose", "deleted", "expired"],
)
async def test_an_input_that_cannot_be_one(runtime: Runtime, values: dict[str, Any]) -> None:
    file = await make_file(runtime.database, **values)
    batch = await make_batch(runtime.database, input_file_id=file.id)
    await validate_batch(runtime, batch.pk)
    await assert_failed(
        runtime.database, await reload(runtime.database, batch), cannot_find(file.id)
    )


def cannot_find(file_id: str) -> dict[str, str | int | None]:
    message = (
        f"Cannot find file {file_id}, or organization org-overnight does not have access to it."
    )
    return error("invalid_request", message, "file_id")


async def test_an_input_that_is_not_there(runtime: Runtime) -> None:
    file_id = new_file_id()
    batch = await make_batch(runtime.database, input_file_id=file_id)
    await validate_batch(runtime, batch.pk)
    await assert_failed(
        runtime.database, await reload(runtime.database, batch), cannot_find(file_id)
    )


async def test_an_input_that_has_lost_bytes(runtime: Runtime) -> None:
    file = await make_file(runtime.database)
    async with runtime.database.begin() as session:
        await session.execute(delete(FileChunk))
    batch = await make_batch(runtime.database, input_file_id=file.id)
    await validate_batch(runtime, batch.pk)
    message = "The input file could not be read."
    await assert_failed(
        runtime.database,
        await reload(runtime.database, batch),
        error("invalid_request", message, "file_id"),
    )


@pytest.mark.parametrize("status", [s for s in BatchStatus if s is not BatchStatus.VALIDATING])
async def test_a_batch_that_has_moved_on_is_left_alone(
    runtime: Runtime, status: BatchStatus
) -> None:
    file = await make_file(runtime.database)
    batch = await make_batch(runtime.database, status=status, input_file_id=file.id)
    await validate_batch(runtime, batch.pk)
    now = await reload(runtime.database, batch)
    assert (now.status, now.input_file_pk, now.lease_owner) == (status, None, None)
    assert rings(runtime) == []


async def test_a_batch_that_is_not_there(runtime: Runtime) -> None:
    await validate_batch(runtime, 12345)


async def test_a_batch_that_somebody_else_validates(runtime: Runtime) -> None:
    file = await make_file(runtime.database)
    soon = datetime.now(UTC) + timedelta(seconds=60)
    batch = await make_batch(
        runtime.database, input_file_id=file.id, lease_owner="somebody", lease_until=soon
    )
    await validate_batch(runtime, batch.pk)
    now = await reload(runtime.database, batch)
    assert (now.status, now.lease_owner) == (BatchStatus.VALIDATING, "somebody")


async def test_a_batch_whose_validator_has_died(runtime: Runtime) -> None:
    file = await make_file(runtime.database)
    past = datetime.now(UTC) - timedelta(seconds=1)
    batch = await make_batch(
        runtime.database, input_file_id=file.id, lease_owner="somebody", lease_until=past
    )
    await validate_batch(runtime, batch.pk)
    assert (await reload(runtime.database, batch)).status == BatchStatus.IN_PROGRESS


async def test_many_validators_at_once_cut_the_batch_once(
    runtime: Runtime, other_runtime: Runtime
) -> None:
    file = await make_file(runtime.database, input_file(50))
    batch = await make_batch(runtime.database, input_file_id=file.id)
    await asyncio.gather(
        *(validate_batch(worker, batch.pk) for worker in [runtime, other_runtime] * 3)
    )
    shards = await shards_of(runtime.database, batch)
    numbers = [number for shard in shards for number in shard.line_numbers]
    assert numbers == list(range(1, 51))
    assert len(rings(runtime) + rings(other_runtime)) == 1


@pytest.fixture
def between_blocks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Functions put in here are called and awaited, the last one first, each after a block of lines."""
    calls: list[Any] = []

    async def reading(*args: Any, **options: Any) -> Any:
        async for block in read_lines(*args, **options):
            yield block
            if calls:
                await calls.pop()()

    monkeypatch.setattr("worker.stages.validate.read_lines", reading)
    return calls


@pytest.mark.parametrize("content", [input_file(5), b"?\n"], ids=["good", "bad"])
async def test_a_cancel_during_validation_wins(
    runtime: Runtime, between_blocks: list[Any], content: bytes
) -> None:
    file = await make_file(runtime.database, content)
    batch = await make_batch(runtime.database, input_file_id=file.id)

    async def cancel() -> None:
        async with runtime.database.begin() as session:
            assert await advance(session, batch.pk, BatchStatus.CANCELLING)

    between_blocks.append(cancel)
    await validate_batch(runtime, batch.pk)
    now = await reload(runtime.database, batch)
    assert (now.status, now.total, now.errors) == (BatchStatus.CANCELLING, 0, None)
    assert await shards_of(runtime.database, batch) == []
    assert rings(runtime) == []


@pytest.mark.parametrize("content", [input_file(5), b"?\n"], ids=["good", "bad"])
async def test_a_validator_that_was_replaced_changes_nothing(
    runtime: Runtime, between_blocks: list[Any], content: bytes
) -> None:
    file = await make_file(runtime.database, content)
    batch = await make_batch(runtime.database, input_file_id=file.id)

    async def replace_it() -> None:
        async with runtime.database.begin() as session:
            taken = update(Batch).where(Batch.pk == batch.pk).values(lease_owner="somebody")
            await session.execute(taken)

    between_blocks.append(replace_it)
    await validate_batch(runtime, batch.pk)
    now = await reload(runtime.database, batch)
    assert (now.status, now.lease_owner) == (BatchStatus.VALIDATING, "somebody")
    assert await shards_of(runtime.database, batch) == []


async def test_a_long_validation_renews_its_lease_and_ends_when_it_cannot(
    runtime: Runtime,
    between_blocks: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    file = await make_file(runtime.database, input_file(4000))
    batch = await make_batch(runtime.database, input_file_id=file.id)
    # By the worker's clock, far too much time passes between two blocks of lines.
    ticks = iter(range(0, 10**9, 100))
    monkeypatch.setattr(Runtime, "clock", lambda _: next(ticks))
    held_until: list[datetime | None] = []

    async def look() -> None:
        held_until.append((await reload(runtime.database, batch)).lease_until)

    async def look_and_cancel() -> None:
        await look()
        async with runtime.database.begin() as session:
            assert await advance(session, batch.pk, BatchStatus.CANCELLING)

    # The last is called first.
    between_blocks.extend([look_and_cancel, look])
    await validate_batch(runtime, batch.pk)
    first, second = held_until
    assert first is not None
    assert second is not None
    assert second > first
    assert "no longer ours to validate" in caplog.text


async def test_deleting_the_input_after_validation_changes_nothing(runtime: Runtime) -> None:
    batch = await validated(runtime, input_file(3))
    assert batch.input_file_pk is not None
    async with runtime.database.begin() as session:
        await session.execute(update(File).values(deleted_at=datetime.now(UTC)))
    assert len(await ids_at(runtime.database, batch)) == 3
