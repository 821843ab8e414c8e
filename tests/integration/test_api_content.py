"""GET /v1/files/{id}/content: whole, in ranges, for clients of every kind."""

import httpx
import pytest
from sqlalchemy import delete

from api.content import content_disposition
from models import FileChunk
from models.database import Database
from tests.answers import assert_stamped, refusal
from tests.factories import make_file
from tests.fixtures.client import LiveApi

CONTENT = bytes(range(256)) * 4000  # some chunks


@pytest.fixture
async def url(database: Database) -> str:
    """The address of some content."""
    file = await make_file(database, CONTENT, filename="out.jsonl", purpose="batch_output")
    return f"/v1/files/{file.id}/content"


@pytest.mark.parametrize("purpose", ["batch", "batch_output", "fine-tune", "vision", "evals"])
async def test_readable_purposes(
    api_client: httpx.AsyncClient, database: Database, purpose: str
) -> None:
    file = await make_file(database, b"some text", purpose=purpose)
    response = await api_client.get(f"/v1/files/{file.id}/content")
    assert (response.status_code, response.content) == (200, b"some text")


@pytest.mark.parametrize("purpose", ["assistants", "user_data"])
async def test_unreadable_purposes(
    api_client: httpx.AsyncClient, database: Database, purpose: str
) -> None:
    file = await make_file(database, purpose=purpose)
    response = await api_client.get(f"/v1/files/{file.id}/content")
    refusal(response, 400, f"Not allowed to download files of purpose: {purpose}")


@pytest.mark.parametrize("accept", ["application/binary", "*/*", "application/json"])
async def test_the_whole_content(api_client: httpx.AsyncClient, url: str, accept: str) -> None:
    response = await api_client.get(url, headers={"accept": accept})
    assert response.status_code == 200
    assert response.content == CONTENT
    assert_stamped(response)
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-length"] == str(len(CONTENT))
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-disposition"] == 'attachment; filename="out.jsonl"'
    assert response.headers["etag"] == f'"{url.split("/")[3]}"'


async def test_a_head_has_the_headers_and_no_body(api_client: httpx.AsyncClient, url: str) -> None:
    whole, head = await api_client.get(url), await api_client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag", "accept-ranges", "content-disposition"):
        assert head.headers[name] == whole.headers[name]
    part = await api_client.head(url, headers={"range": "bytes=1-3"})
    assert (part.status_code, part.headers["content-length"]) == (206, "3")


LAST = len(CONTENT) - 1


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-99", 0, 99),
        ("bytes=262143-262144", 262143, 262144),
        ("bytes=100-", 100, LAST),
        ("bytes=-1", LAST, LAST),
        ("bytes=-300000", LAST - 299_999, LAST),
        (f"bytes=5-{LAST}", 5, LAST),
        ("bytes=5-999999999999", 5, LAST),
        ("bytes=-999999999999", 0, LAST),
        ("Bytes = 7-8", 7, 8),
        (f"bytes={LAST}-", LAST, LAST),
    ],
)
async def test_one_range(
    api_client: httpx.AsyncClient, url: str, wanted: str, first: int, last: int
) -> None:
    response = await api_client.get(url, headers={"range": wanted})
    assert response.status_code == 206
    assert response.content == CONTENT[first : last + 1]
    assert response.headers["content-range"] == f"bytes {first}-{last}/{len(CONTENT)}"
    assert response.headers["content-length"] == str(last + 1 - first)


@pytest.mark.parametrize(
    "wanted",
    [
        "bytes=0-1,5-6",
        "bytes=5-1",
        "bytes=-",
        "bytes=a-b",
        "bytes=",
        "bytes",
        "lines=1-2",
        "bytes=1-2-3",
        "bytes=" + "9" * 100 + "-",
        "bytes=+1-2",
    ],
)
async def test_what_is_no_single_range_gets_the_whole(
    api_client: httpx.AsyncClient, url: str, wanted: str
) -> None:
    response = await api_client.get(url, headers={"range": wanted})
    assert (response.status_code, len(response.content)) == (200, len(CONTENT))


@pytest.mark.parametrize("wanted", [f"bytes={LAST + 1}-", "bytes=99999999-99999999", "bytes=-0"])
async def test_a_range_outside_of_the_content(
    api_client: httpx.AsyncClient, url: str, wanted: str
) -> None:
    response = await api_client.get(url, headers={"range": wanted})
    message = f"The requested range lies outside of the file's {len(CONTENT)} bytes."
    refusal(response, 416, message)
    assert response.headers["content-range"] == f"bytes */{len(CONTENT)}"


async def test_a_range_of_nothing(api_client: httpx.AsyncClient, database: Database) -> None:
    file = await make_file(database, b"")
    url = f"/v1/files/{file.id}/content"
    assert (await api_client.get(url)).status_code == 200
    assert (await api_client.get(url, headers={"range": "bytes=0-"})).status_code == 416


async def test_a_range_on_condition(api_client: httpx.AsyncClient, url: str) -> None:
    etag = (await api_client.head(url)).headers["etag"]
    wanted = {"range": "bytes=0-4"}
    same = await api_client.get(url, headers=wanted | {"if-range": etag})
    other = await api_client.get(url, headers=wanted | {"if-range": '"another"'})
    assert (same.status_code, same.content) == (206, CONTENT[:5])
    assert (other.status_code, len(other.content)) == (200, len(CONTENT))


@pytest.mark.parametrize(
    ("filename", "header"),
    [
        ("plain-1.jsonl", 'attachment; filename="plain-1.jsonl"'),
        ("two words.txt", 'attachment; filename="two words.txt"'),
        (
            'quote".jsonl',
            "attachment; filename=\"quote_.jsonl\"; filename*=UTF-8''quote%22.jsonl",
        ),
        ("ñ☃", "attachment; filename=\"__\"; filename*=UTF-8''%C3%B1%E2%98%83"),
        (
            "a;b\\c",
            "attachment; filename=\"a_b_c\"; filename*=UTF-8''a%3Bb%5Cc",
        ),
    ],
)
def test_a_name_in_a_header(filename: str, header: str) -> None:
    assert content_disposition(filename) == header
    assert header.isascii()


async def test_a_download_that_breaks_is_seen_to_be_broken(
    live_api: LiveApi, database: Database
) -> None:
    file = await make_file(database, CONTENT * 8)
    async with database.begin() as session:
        await session.execute(delete(FileChunk).where(FileChunk.no > 20))
    headers = {"authorization": f"Bearer {live_api.api_key}"}
    async with httpx.AsyncClient(headers=headers) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"{live_api.base_url}/files/{file.id}/content")
        response = await client.get(f"{live_api.url}/healthz")
        assert response.status_code == 200
