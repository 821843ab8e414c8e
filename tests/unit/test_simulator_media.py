"""What the simulated server draws and films: whole objects, and videos that take their time."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import ImagesResponse, Video

from cli.simulator import SimulatedServer, SimulatorSettings, simulated_text

FOREVER_SECONDS = 86_400


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    server = SimulatedServer(SimulatorSettings(remember=1000, video_seconds=0.05))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def client(server: SimulatedServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=10) as client:
        yield client


def validated(body: Any) -> Video:
    return Video.model_validate(body, strict=True)


async def begun(client: httpx.AsyncClient, prompt: str = "a cat", **more: Any) -> Video:
    answer = await client.post("/videos", json={"prompt": prompt, **more})
    assert answer.status_code == 200
    return validated(answer.json())


async def ended(client: httpx.AsyncClient, video: Video) -> Video:
    async with asyncio.timeout(10):
        while video.status in {"queued", "in_progress"}:  # the server's own clock
            await asyncio.sleep(0.01)
            video = validated((await client.get(f"/videos/{video.id}")).json())
    return video


@pytest.mark.parametrize(
    ("path", "more", "seen_tokens"),
    [
        ("images/generations", {}, 0),
        ("images/edits", {"images": [{"file_id": "file-1"}, {"image_url": "data:,"}]}, 646),
    ],
)
async def test_images_are_whole_and_belong_to_their_prompt(
    client: httpx.AsyncClient, path: str, more: dict[str, Any], seen_tokens: int
) -> None:
    prompt = "Draw a cat. " * 4
    answer = await client.post(f"/{path}", json={"prompt": prompt, "n": 2, **more})
    images = ImagesResponse.model_validate(answer.json(), strict=True)
    assert images.data is not None
    assert len(images.data) == 2
    for index, image in enumerate(images.data):
        assert image.b64_json is not None
        picture = base64.b64decode(image.b64_json)
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        assert simulated_text(prompt, None, index).encode() in picture
    assert images.usage is not None
    usage = images.usage
    details = usage.input_tokens_details
    assert usage.input_tokens == details.text_tokens + details.image_tokens
    assert usage.input_tokens == len(prompt) // 4 + seen_tokens
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


async def test_an_image_may_be_asked_for_by_url(client: httpx.AsyncClient) -> None:
    body = {"prompt": "p", "response_format": "url"}
    [image] = (await client.post("/images/generations", json=body)).json()["data"]
    assert image["url"].startswith("data:image/png;base64,")


async def test_a_video_is_queued_then_in_progress_then_completed(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    server.settings.video_seconds = 0.4
    video = await begun(client, seconds="8", size="1280x720", model="sora-2-pro")
    assert (video.status, video.progress, video.completed_at) == ("queued", 0, None)
    seen = [video.status]
    async with asyncio.timeout(10):
        while seen[-1] != "completed":
            video = validated((await client.get(f"/videos/{video.id}")).json())
            if video.status != seen[-1]:
                seen.append(video.status)
    assert seen == ["queued", "in_progress", "completed"]
    assert (video.progress, video.error) == (100, None)
    assert (video.seconds, video.size, video.model) == ("8", "1280x720", "sora-2-pro")
    assert video.completed_at is not None
    assert video.expires_at == video.completed_at + 86_400


async def test_the_official_client_polls_it_to_its_end_and_reads_it(
    server: SimulatedServer,
) -> None:
    async with openai.AsyncOpenAI(base_url=server.url, api_key="x") as client:
        # Not `create`: it sends a form, and what is begun here comes as JSON.
        begun = await client.post("/videos", body={"prompt": "a cat"}, cast_to=Video)
        assert begun.status == "queued"
        video = await client.videos.poll(begun.id)
        assert (video.status, video.model) == ("completed", "sora-2")
        content = await client.videos.download_content(video.id)
        assert content.response.headers["content-type"] == "video/mp4"
        assert content.content[4:8] == b"ftyp"


async def test_a_marked_video_fails(server: SimulatedServer, client: httpx.AsyncClient) -> None:
    server.settings.video_fail_marker = "poison"
    video = await ended(client, await begun(client, "poison"))
    assert video.status == "failed"
    assert video.error is not None
    assert (await client.get(f"/videos/{video.id}/content")).status_code == 404
    assert (await ended(client, await begun(client))).status == "completed"


async def test_each_call_begins_a_video_of_its_own(client: httpx.AsyncClient) -> None:
    assert (await begun(client)).id != (await begun(client)).id


async def test_what_is_unknown_or_not_ready(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    server.settings.video_seconds = FOREVER_SECONDS
    video = await begun(client)
    for path in ("video_1", "video_1/content", f"{video.id}/content", f"{video.id}/other", ""):
        answer = await client.get(f"/videos/{path}")
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_polls_fail_when_told_to_and_are_counted_apart(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    video = await begun(client)
    server.settings.poll_error_rate = 1.0
    server.settings.error_status = 502
    assert (await client.get(f"/videos/{video.id}")).status_code == 502
    server.settings.poll_error_rate = 0.0
    assert (await client.get(f"/videos/{video.id}")).status_code == 200
    stats = server.stats()
    assert stats.by_endpoint == {"/v1/videos": {"200": 1}, "/v1/videos/{id}": {"200": 1, "502": 1}}
    assert stats.calls == 1


async def test_a_video_outlives_a_restart_of_the_server(
    server: SimulatedServer, client: httpx.AsyncClient
) -> None:
    video = await begun(client)
    await server.stop()
    await server.start()
    assert (await ended(client, video)).id == video.id
