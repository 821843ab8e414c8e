"""The simulated server on a real socket: its answers, its faults, its counts."""

import asyncio
import base64
import itertools
import json
import math
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types import (
    Completion,
    CreateEmbeddingResponse,
    Model,
    ModerationCreateResponse,
)
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from cli.simulator import (
    SimulatedServer,
    SimulatorSettings,
    simulated_server,
    simulated_text,
)

QUESTION = "Is the kettle any good?"


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    server = SimulatedServer(SimulatorSettings(remember=10))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def client(server: SimulatedServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=10) as client:
        yield client


def chat(content: Any = QUESTION, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}], **more}


async def say(client: httpx.AsyncClient, content: Any = QUESTION, **more: Any) -> httpx.Response:
    return await client.post("/chat/completions", json=chat(content, **more))


def text_of(answer: httpx.Response) -> str:
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  # what is waited for happens on the other side of a socket
            await asyncio.sleep(0.002)


async def until_in_flight(server: SimulatedServer, count: int) -> None:
    await until(lambda: server.stats().in_flight == count)


# Answers


async def test_chat_completion_is_whole_and_belongs_to_its_prompt(
    client: httpx.AsyncClient,
) -> None:
    answer = await say(client)
    completion = ChatCompletion.model_validate(answer.json())
    assert answer.headers["x-request-id"]
    assert completion.model == "m"
    assert completion.choices[0].message.content == simulated_text(QUESTION)
    assert QUESTION in simulated_text(QUESTION)
    assert completion.usage is not None
    usage = completion.usage
    assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens


async def test_chat_answers_the_last_user_message(client: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": "x"}}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First."},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None},
    ]
    answer = await client.post("/chat/completions", json={"model": "m", "messages": messages})
    assert text_of(answer) == simulated_text("Look:")


async def test_choices_differ(client: httpx.AsyncClient) -> None:
    completion = ChatCompletion.model_validate((await say(client, n=3)).json())
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in completion.choices}) == 3


async def test_json_schema_gets_an_instance_of_it(client: httpx.AsyncClient) -> None:
    schema = {
        "type": "object",
        "properties": {
            "sentiment": {"type": "string", "enum": ["positive", "negative"]},
            "score": {"type": "integer", "minimum": 1},
            "why": {"type": "string"},
        },
        "required": ["sentiment", "score", "why"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "review", "schema": schema}}
    answer = await say(client, response_format=form)
    assert json.loads(text_of(answer)) == {
        "sentiment": "positive",
        "score": 1,
        "why": simulated_text(QUESTION),
    }


async def test_json_object_gets_json(client: httpx.AsyncClient) -> None:
    answer = await say(client, response_format={"type": "json_object"})
    assert json.loads(text_of(answer)) == {"simulated": simulated_text(QUESTION)}


@pytest.mark.parametrize("size", [0, 7, 64, 300, 100_000])
async def test_reply_has_exactly_the_size_asked_for(
    server: SimulatedServer, client: httpx.AsyncClient, size: int
) -> None:
    server.settings.reply_bytes = size
    text = text_of(await say(client, "Größe, 尺寸, размер. " * 3))
    assert len(text.encode()) == size


async def test_text_completion(client: httpx.AsyncClient) -> None:
    body = {"model": "m", "prompt": ["One", "Two", [3, 4]], "n": 2}
    answer = await client.post("/completions", json=body)
    completion = Completion.model_validate(answer.json())
    assert [choice.text for choice in completion.choices] == [
        simulated_text(prompt, None, index)
        for prompt, index in itertools.product(["One", "Two", "3 4"], [0, 1])
    ]
    assert completion.usage is not None


async def test_embeddings_are_unit_vectors_alike_in_both_encodings(
    client: httpx.AsyncClient,
) -> None:
    body = {"model": "m", "input": ["kettle", "pan", "kettle"], "dimensions": 8}
    numbers = await client.post("/embeddings", json=body)
    answer = CreateEmbeddingResponse.model_validate(numbers.json())
    first, second, third = (item.embedding for item in answer.data)
    assert len(first) == 8
    assert first == third != second
    assert math.hypot(*first) == pytest.approx(1, abs=1e-6)

    packed = await client.post("/embeddings", json={**body, "encoding_format": "base64"})
    raw = base64.b64decode(packed.json()["data"][0]["embedding"])
    assert struct.unpack("<8f", raw) == pytest.approx(first)


async def test_embeddings_have_the_usual_size(client: httpx.AsyncClient) -> None:
    answer = await client.post("/embeddings", json={"model": "m", "input": [1, 2, 3]})
    (item,) = answer.json()["data"]
    assert len(item["embedding"]) == 1_536


async def test_response(client: httpx.AsyncClient) -> None:
    content = [{"type": "input_text", "text": QUESTION}]
    body = {"model": "m", "input": [{"role": "user", "content": content}]}
    answer = await client.post("/responses", json=body)
    response = Response.model_validate(answer.json())
    assert response.output_text == simulated_text(QUESTION)
    assert response.usage is not None
    assert answer.json()["usage"]["input_tokens_details"] == {
        "cached_tokens": 0,
        "cache_write_tokens": 0,
    }


async def test_response_honours_a_schema(client: httpx.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "name": "answer", "schema": schema}
    body = {"model": "m", "input": QUESTION, "text": {"format": form}}
    answer = await client.post("/responses", json=body)
    assert json.loads(Response.model_validate(answer.json()).output_text) == {"ok": False}


@pytest.mark.parametrize(
    ("given", "results"),
    [("a", 1), (["a", "b"], 2), ([{"type": "text", "text": "a"}], 1)],
)
async def test_moderation(client: httpx.AsyncClient, given: Any, results: int) -> None:
    answer = await client.post("/moderations", json={"input": given})
    moderation = ModerationCreateResponse.model_validate(answer.json())
    assert [result.flagged for result in moderation.results] == [False] * results


async def test_models(server: SimulatedServer, client: httpx.AsyncClient) -> None:
    listed = (await client.get("/models")).json()
    assert listed["object"] == "list"
    assert "gpt-4o-mini" in [Model.model_validate(model).id for model in listed["data"]]
    assert (await client.get("/models/anything")).json()["id"] == "anything"

    server.settings.models = ("only/one",)
    assert [model["id"] for model in (await client.get("/models")).json()["data"]] == ["only/one"]
    assert (await client.get("/models/only/one")).status_code == 200
    assert (await client.get("/models/other")).status_code == 404
    refused = await say(client)
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"


# Bodies the real API would refuse


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("chat/completions", {"messages": [{}]}, "missing_required_parameter", "model"),
        ("chat/completions", {"model": "m"}, "missing_required_parameter", "messages"),
        ("chat/completions", {"model": "m", "messages": []}, "empty_array", "messages"),
        ("chat/completions", {"model": "m", "messages": "hi"}, "invalid_type", "messages"),
        ("chat/completions", {"model": 7, "messages": [{}]}, "invalid_type", "model"),
        ("chat/completions", chat(n=0), "integer_below_min_value", "n"),
        ("chat/completions", chat(n=129), "integer_above_max_value", "n"),
        ("chat/completions", chat(n="2"), "invalid_type", "n"),
        ("chat/completions", chat(stream=True), "unsupported_value", "stream"),
        ("completions", {"model": "m"}, "missing_required_parameter", "prompt"),
        ("completions", {"model": "m", "prompt": [None]}, "invalid_type", "prompt"),
        ("embeddings", {"model": "m"}, "missing_required_parameter", "input"),
        (
            "embeddings",
            {"model": "m", "input": "a", "encoding_format": ["x"]},
            "invalid_value",
            "encoding_format",
        ),
        ("responses", {"model": "m"}, "missing_required_parameter", "input"),
        ("responses", {"model": "m", "input": 5}, "invalid_type", "input"),
        ("moderations", {}, "missing_required_parameter", "input"),
        ("images/generations", {}, "missing_required_parameter", "prompt"),
        ("images/generations", {"prompt": ["p"]}, "invalid_type", "prompt"),
        ("images/generations", {"prompt": "p", "n": 11}, "integer_above_max_value", "n"),
        ("images/edits", {"prompt": "p"}, "missing_required_parameter", "images"),
        ("images/edits", {"prompt": "p", "images": ["x"]}, "invalid_type", "images[0]"),
        (
            "images/edits",
            {"prompt": "p", "images": [{}]},
            "missing_required_parameter",
            "images[0].image_url",
        ),
        ("videos", {"model": "m"}, "missing_required_parameter", "prompt"),
        ("videos", {"prompt": "p", "seconds": 5}, "invalid_value", "seconds"),
        ("videos", {"prompt": "p", "size": "tiny"}, "invalid_value", "size"),
    ],
)
async def test_wrong_body_gets_400(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], code: str, param: str
) -> None:
    answer = await client.post(f"/{path}", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"text"', b"\xff"])
async def test_not_a_json_object_gets_400(client: httpx.AsyncClient, raw: bytes) -> None:
    answer = await client.post("/chat/completions", content=raw)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_unknown_route_gets_404(client: httpx.AsyncClient) -> None:
    for answer in (await client.get("/nothing"), await client.get("/chat/completions")):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "unknown_url"


async def test_key_is_required_when_set(server: SimulatedServer, client: httpx.AsyncClient) -> None:
    server.settings.api_key = "sk-simulated"
    assert (await say(client)).status_code == 401
    client.headers["authorization"] = "Bearer sk-simulated"
    assert (await say(client)).status_code == 200


# Time and capacity


async def test_latency_can_change_while_running(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    clock = asyncio.get_running_loop().time
    server.settings.latency = 0.1
    server.settings.token_latency = 0.01
    started = clock()
    tokens = (await say(client)).json()["usage"]["completion_tokens"]
    assert clock() - started >= 0.1 + 0.01 * tokens - 0.01


async def test_latency_spreads_around_its_median() -> None:
    server = SimulatedServer(SimulatorSettings(latency=0.02, latency_sigma=1.0, seed=1))
    seconds = sorted(server._service_seconds(0) for _ in range(1_001))
    assert seconds[500] == pytest.approx(0.02, rel=0.15)
    assert seconds[900] > 2 * seconds[500]


async def test_full_server_refuses_and_names_a_time(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    server.settings.latency = 0.3
    server.settings.capacity = 2
    server.settings.retry_after = 0.25
    answers = await asyncio.gather(*(say(client) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["retry-after-ms"] == "250"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    stats = server.stats()
    assert (stats.peak_in_flight, stats.refused, stats.in_flight) == (2, 3, 0)


async def test_full_server_queues_in_order(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    server.settings.latency = 0.05
    server.settings.capacity = 1
    server.settings.over = "queue"
    finished: list[int] = []

    def arrived() -> int:
        return server.stats().queued + server.stats().in_flight + len(finished)

    async def ask(number: int) -> None:
        assert (await say(client, str(number))).status_code == 200
        finished.append(number)

    async with asyncio.TaskGroup() as asking:
        for number in range(5):
            asking.create_task(ask(number))
            await until(lambda: arrived() > number)  # noqa: B023  # awaited in this very round
    assert finished == [0, 1, 2, 3, 4]
    assert server.stats().peak_in_flight == 1
    assert server.stats().queued == 0


async def test_client_that_leaves_frees_its_place(server: SimulatedServer) -> None:
    server.settings.capacity = 1
    server.settings.over = "queue"
    server.settings.latency = 60
    async with httpx.AsyncClient(base_url=server.url) as leaving:
        first = asyncio.create_task(say(leaving, "first"))
        await until_in_flight(server, 1)
        second = asyncio.create_task(say(leaving, "second"))
        await until(lambda: server.stats().queued == 1)
        server.settings.latency = 0
        first.cancel()
        assert (await second).status_code == 200
    assert server.stats().by_endpoint["/v1/chat/completions"] == {"200": 1, "499": 1}


# Faults


async def test_marked_bodies_always_fail(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    server.settings.fail_marker = "POISON"
    server.settings.fail_status = 502
    server.settings.bad_request_marker = "WRONG"
    assert (await say(client, "some POISON")).status_code == 502
    assert (await say(client, "WRONG again")).status_code == 400
    assert (await say(client, "clean")).status_code == 200


async def test_error_rate(server: SimulatedServer, client: httpx.AsyncClient) -> None:
    server.settings.error_rate = 1
    server.settings.error_status = 429
    answer = await say(client)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"


async def test_dropped_answer_is_cut_in_its_body(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    server.settings.drop_rate = 1
    with pytest.raises(httpx.RemoteProtocolError):
        await say(client)
    server.settings.drop_rate = 0
    assert (await say(client)).status_code == 200


async def test_hanging_call_ends_only_by_the_client(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    server.settings.hang_rate = 1
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/chat/completions", json=chat(), timeout=0.1)
    await until_in_flight(server, 0)
    assert server.calls()[-1].status == 499


async def test_outage_answers_503_but_for_the_counts(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    server.settings.outage = True
    assert (await say(client)).status_code == 503
    assert (await client.get("/models")).status_code == 503
    assert (await client.get(f"{server.origin}/health")).status_code == 503
    assert (await client.get(f"{server.origin}/stats")).status_code == 200
    server.settings.outage = False
    assert (await client.get(f"{server.origin}/health")).json() == {"status": "ok"}
    assert (await say(client)).status_code == 200


async def test_stop_cuts_calls_and_start_takes_the_same_port(server: SimulatedServer) -> None:
    server.settings.latency = 60
    url = server.url
    async with httpx.AsyncClient(base_url=url) as client:
        call = asyncio.create_task(say(client))
        await until_in_flight(server, 1)
        await server.stop()
        with pytest.raises(httpx.TransportError):
            await call
        with pytest.raises(httpx.ConnectError):
            await say(client)
        server.settings.latency = 0
        await server.start()
        assert server.url == url
        assert (await say(client)).status_code == 200
    assert server.stats().by_endpoint["/v1/chat/completions"] == {"0": 1, "200": 1}


# Counts and the witness


async def test_lines_and_duplicates_are_told_by_the_idempotency_key(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    async def ask(key: str) -> None:
        await client.post("/chat/completions", json=chat(), headers={"Idempotency-Key": key})

    server.settings.error_rate = 1
    await ask("line-1")
    server.settings.error_rate = 0
    for key in ("line-1", "line-2", "line-2", "line-2"):
        await ask(key)
    stats = server.stats()
    assert stats.calls == 5
    assert stats.distinct_lines == 2
    assert stats.repeated_calls == 3
    # The first try of line 1 failed, so its second was no work done twice.
    assert stats.duplicates == 2
    assert (await client.get(f"{server.origin}/stats")).json()["duplicates"] == 2


async def test_latest_calls_are_kept_whole(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    for number in range(12):
        await client.post("/embeddings", json={"model": "m", "input": str(number)})
    calls = server.calls()
    assert [json.loads(call.body)["input"] for call in calls] == [str(n) for n in range(2, 12)]
    assert calls[0].path == "/v1/embeddings"
    assert calls[0].headers["content-type"] == "application/json"
    assert calls[0].status == 200


async def test_log_has_a_line_a_call_within_moments(tmp_path: Path) -> None:
    log = tmp_path / "witness.log"
    server = SimulatedServer(SimulatorSettings(log=log, bad_request_marker="WRONG"))
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=server.url) as client:
            headers = {"idempotency-key": "line 1"}
            await client.post("/chat/completions", json=chat(), headers=headers)
            await say(client, "WRONG")
            await client.get("/models")
            await until(lambda: log.read_text().count("\n") == 2)
    finally:
        await server.stop()
    first, second = (line.split("\t") for line in log.read_text().splitlines())
    assert first[1:] == ["line_1", "200"]
    assert second[1:] == ["-", "400"]
    assert 0 <= float(second[0]) - float(first[0]) < 10


# The wire


async def test_pipelined_answers_keep_their_order(server: SimulatedServer) -> None:
    server.settings.latency = 0.05
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(server.url).port)
    for number in range(3):
        body = json.dumps(chat(f"number {number}")).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
    server.settings.latency_sigma = 1.0
    for number in range(3):
        head_bytes = await reader.readuntil(b"\r\n\r\n")
        length = int(head_bytes.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        said = json.loads(await reader.readexactly(length))
        assert said["choices"][0]["message"]["content"] == simulated_text(f"number {number}")
    assert server.stats().peak_in_flight == 1
    writer.close()
    await writer.wait_closed()


async def test_long_pipeline_is_served_without_limit(server: SimulatedServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(server.url).port)
    body = json.dumps(chat()).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )
    server.settings.latency = 0.02
    writer.write(request)
    writer.write(request * 2_000)
    await until_in_flight(server, 1)
    server.settings.latency = 0
    writer.write(request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
    answers = await reader.read(-1)
    assert answers.count(b"HTTP/1.1 200 OK") == 2_002
    writer.close()
    await writer.wait_closed()


async def test_body_may_come_in_pieces_and_chunks(client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for byte in json.dumps(chat()).encode():
            yield bytes([byte])

    answer = await client.post("/chat/completions", content=pieces())
    assert text_of(answer) == simulated_text(QUESTION)


@pytest.mark.parametrize(
    "junk", [b"GARBAGE\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"]
)
async def test_what_is_not_http_gets_400(server: SimulatedServer, junk: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(server.url).port)
    writer.write(junk)
    assert (await reader.read(-1)).startswith(b"HTTP/1.1 400 ")
    writer.close()
    await writer.wait_closed()


async def test_expect_continue_is_answered(server: SimulatedServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(server.url).port)
    body = json.dumps(chat()).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nexpect: 100-continue\r\n"
        f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.read(-1)).startswith(b"HTTP/1.1 200 ")
    writer.close()
    await writer.wait_closed()


# In a thread, and the settings


def test_threaded_server_serves_synchronous_code() -> None:
    with simulated_server(SimulatorSettings(latency=0.01), models=("m",)) as server:
        assert httpx.get(f"{server.origin}/health").status_code == 200
        server.settings.outage = True
        assert httpx.post(f"{server.url}/chat/completions", json=chat()).status_code == 503
        server.settings.outage = False
        server.stop()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/models")
        server.start()
        assert httpx.post(f"{server.url}/chat/completions", json=chat()).status_code == 200
        assert server.stats().calls == 2
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/models")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 70_000),
        ("latency", -1),
        ("latency", math.nan),
        ("latency_sigma", 9),
        ("token_latency", "1"),
        ("load_latency", -1),
        ("capacity", 0),
        ("capacity", True),
        ("requests_per_minute", 0),
        ("tokens_per_minute", 1.5),
        ("prefix_cache", -1),
        ("prefix_miss_latency", -1),
        ("metrics", "tgi"),
        ("outage", 1),
        ("down_mode", "500"),
        ("over", "drop"),
        ("retry_after", -0.5),
        ("error_rate", 1.5),
        ("error_status", 200),
        ("drop_rate", True),
        ("hang_rate", -0.1),
        ("fail_marker", ""),
        ("fail_status", 600),
        ("bad_request_marker", ""),
        ("reply_bytes", -1),
        ("video_seconds", -1),
        ("video_fail_marker", ""),
        ("poll_error_rate", 2),
        ("remember", -1),
    ],
)
def test_settings_refuse_nonsense_at_any_time(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be "):
        SimulatorSettings(**{name: value})
    settings = SimulatorSettings()
    with pytest.raises(ValueError, match=f"^{name} must be "):
        setattr(settings, name, value)
