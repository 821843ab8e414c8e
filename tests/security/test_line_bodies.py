"""A line says what is asked, never whom: it sets no path, host or header of the call."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from models.lines import Endpoint, LineChecker
from tests.factories import input_line, json_lines
from tests.fixtures.runtime import Reply, ScriptedServer, started_batch
from tests.running import finished, run_one
from worker.runtime import Runtime

URLS = [
    "",
    "/",
    "/v1",
    "/v1/chat/completions/",
    "/v1/chat/completions?x=y",
    "/v1/chat/completions#x",
    "/v1/chat/completions\r\nhost: evil.example",
    "/v1/chat/completions\0",
    " /v1/chat/completions",
    "/v1/chat/completions ",
    "/V1/CHAT/COMPLETIONS",
    "v1/chat/completions",
    "//evil.example/v1/chat/completions",
    "///v1/chat/completions",
    "https://evil.example/v1/chat/completions",
    "http://127.0.0.1/v1/chat/completions",
    "@evil.example/v1/chat/completions",
    ":80/v1/chat/completions",
    "\\\\evil.example\\v1\\chat\\completions",
    "/v1/../admin",
    "/v1/chat/completions/../../admin",
    "/v1/./chat/completions",
    "/v1//chat/completions",
    "/v1/%63hat/completions",
    "/v1/chat%2fcompletions",
    "/v1/%2e%2e/admin",
    "/v1/chat/completions%00",
    "/v1/chat/completions;x=y",
    "/v1\uff0fchat\uff0fcompletions",
    "/v1/chat/completi\u043ens",
    "\u2215v1\u2215chat\u2215completions",
    "/v1/chat/completions\u200b",
    "/v1/models",
    "/metrics",
    "file:///etc/passwd",
]


@pytest.mark.parametrize("url", URLS)
def test_no_other_url_is_taken(url: str) -> None:
    [raw] = json_lines(input_line(url=url)).splitlines()
    for endpoint in Endpoint:
        fault = LineChecker(endpoint).check(raw, 1)
        assert fault is not None
        assert fault.param == "url"


def test_the_url_that_is_taken() -> None:
    [raw] = json_lines(input_line()).splitlines()
    assert LineChecker(Endpoint.CHAT_COMPLETIONS).check(raw, 1) is None


SMUGGLED: dict[str, Any] = {
    "headers": {"authorization": "Bearer theirs", "host": "evil.example", "x-evil": "1"},
    "extra_headers": {"x-evil": "1"},
    "Authorization": "Bearer theirs",
    "host": "evil.example",
    "base_url": "https://evil.example/v1",
    "path": "/admin",
    "query": {"x": "y"},
    "proxy": "http://evil.example",
    "timeout": 0,
    "__proto__": {"url": "/admin"},
    "URL": "/admin",
    "Method": "DELETE",
}


async def test_the_call_is_ours_whatever_the_line_holds(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    plain = input_line()
    body = plain["body"] | SMUGGLED
    custom_id = "x\r\nx-evil: 1"
    lines = json_lines(plain, SMUGGLED | input_line(2, custom_id=custom_id, body=body))
    await finished(scripted_runtime, await started_batch(scripted_runtime, lines))
    first, second = sorted(scripted.requests, key=lambda request: len(request.body))

    assert first.path == second.path == "/v1/chat/completions"
    fleeting = {"content-length", "idempotency-key"}
    assert {k: v for k, v in first.headers.items() if k not in fleeting} == {
        k: v for k, v in second.headers.items() if k not in fleeting
    }
    assert second.headers["authorization"] == "Bearer upstream-own-key"
    assert second.headers["idempotency-key"].isalnum() or "_" in second.headers["idempotency-key"]
    assert set(second.headers) == {
        "accept",
        "accept-encoding",
        "authorization",
        "content-length",
        "content-type",
        "host",
        "idempotency-key",
        "user-agent",
    }
    # Of the body nothing was taken away or added: it is the model server's to judge.
    assert b'"x-evil"' in second.body


@pytest.fixture
async def elsewhere() -> AsyncIterator[ScriptedServer]:
    """Where an upstream would like its callers, and their keys, to go."""
    server = ScriptedServer()
    await server.start()
    yield server
    await server.stop()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_and_not_followed(
    scripted_runtime: Runtime, scripted: ScriptedServer, elsewhere: ScriptedServer, status: int
) -> None:
    location = {"location": f"{elsewhere.url}/chat/completions", "refresh": f"0;{elsewhere.url}"}
    scripted.replies = [Reply(status, b"", location)]
    line = await run_one(scripted_runtime)
    assert line["response"]["status_code"] == status
    assert line["response"]["body"]["error"]["type"] == "server_error"
    assert elsewhere.url not in str(line)
    assert (len(scripted.requests), elsewhere.accepted) == (1, 0)


async def test_an_upstreams_headers_stay_behind(
    scripted_runtime: Runtime, scripted: ScriptedServer
) -> None:
    """All that an output line takes over of them is the id, if it is a plain one."""
    raw = b"HTTP/1.1 200 OK\r\nx-request-id: a\tb\x85c\r\nset-cookie: a=b\r\ncontent-length: 2\r\n\r\n{}"
    scripted.replies = [Reply(raw=raw)]
    line = await run_one(scripted_runtime)
    assert line["response"]["request_id"].isprintable()
    assert line["response"]["body"] == {}
    assert "a=b" not in str(line)
