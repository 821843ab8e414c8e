"""Forms as all sorts of clients send them, cut into pieces anywhere."""

from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request
from starlette.types import Message

from api.multipart import MAX_FIELD_BYTES, OVERHEAD_BYTES, read_form
from models.errors import FileTooLarge, InvalidParameter

BOUNDARY = "a-boundary"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
MAX_FILE_BYTES = 1024


def part(disposition: str | bytes, content: bytes = b"", *headers: str) -> bytes:
    raw = disposition if isinstance(disposition, bytes) else disposition.encode()
    lines = [b"content-disposition: form-data; " + raw, *(header.encode() for header in headers)]
    return b"--a-boundary\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + content + b"\r\n"


END = b"--a-boundary--\r\n"
PURPOSE = part('name="purpose"', b"batch")
FILE = part('name="file"; filename="in.jsonl"', b'{"a": 1}\r\n', "content-type: text/plain")


def request(*pieces: bytes, content_type: str = TYPE, length: int | None = None) -> Request:
    waiting = [*pieces]

    async def receive() -> Message:
        body = waiting.pop(0) if waiting else b""
        return {"type": "http.request", "body": body, "more_body": bool(waiting)}

    headers = [(b"content-type", content_type.encode())]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


async def collect(given: Request) -> list[tuple[str, str | None, bytes]]:
    found = []
    async for arrived in read_form(given, max_file_bytes=MAX_FILE_BYTES):
        content = b"".join([piece async for piece in arrived])
        found.append((arrived.name, arrived.filename, content))
    return found


GOOD = [("purpose", None, b"batch"), ("file", "in.jsonl", b'{"a": 1}\r\n')]


async def test_parts_come_in_the_order_sent() -> None:
    assert await collect(request(PURPOSE + FILE + END)) == GOOD
    assert await collect(request(FILE + PURPOSE + END)) == GOOD[::-1]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
async def test_a_form_may_be_cut_anywhere(size: int) -> None:
    whole = PURPOSE + FILE + END
    pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
    assert await collect(request(*pieces)) == GOOD


async def test_an_empty_piece_does_not_end_it() -> None:
    assert await collect(request(PURPOSE, b"", FILE, b"", END)) == GOOD


async def test_a_preamble_and_an_epilogue_are_dropped() -> None:
    form = b"preamble\r\n" + PURPOSE + FILE + END + b"epilogue" * 10
    assert await collect(request(form, b"and more")) == GOOD


async def test_content_that_looks_like_a_boundary() -> None:
    content = b"\r\n--a-boundar\r\n--\r\n-- a-boundary\r\r\n"
    form = part('name="file"; filename="x"', content) + END
    for size in (1, 5, 1000):
        pieces = [form[start : start + size] for start in range(0, len(form), size)]
        assert await collect(request(*pieces)) == [("file", "x", content)]


async def test_an_empty_file() -> None:
    form = part('name="file"; filename="x"') + END
    assert await collect(request(form)) == [("file", "x", b"")]


async def test_a_part_that_nobody_reads_is_skipped() -> None:
    form = read_form(request(PURPOSE + FILE + END), max_file_bytes=MAX_FILE_BYTES)
    assert [arrived.name async for arrived in form] == ["purpose", "file"]


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        ('name="file"', None),
        ('name="file"; filename=""', ""),
        ('name="file"; filename=plain.jsonl', "plain.jsonl"),
        ('name="file"; filename="my file (1).jsonl"', "my file (1).jsonl"),
        ('name="file"; filename="añb ☃ 𝄞.jsonl"', "añb ☃ 𝄞.jsonl"),
        ('name="file"; filename="a%22b.jsonl"', 'a"b.jsonl'),
        ('name="file"; filename="a\\"b.jsonl"', 'a"b.jsonl'),
        ('name="file"; filename="semi;colon=.jsonl"', "semi;colon=.jsonl"),
        ("name=\"file\"; filename*=utf-8''a%C3%B1b.jsonl", "añb.jsonl"),
        ("name=\"file\"; filename*=UTF-8'en'%e2%98%83", "☃"),
        ('filename="x"; name="file"', "x"),
        ('name="file"; filename="' + "n" * 5000 + '"', "n" * 5000),
        (b'name="file"; filename="a\xf1b.jsonl"', "a\ufffdb.jsonl"),
    ],
)
async def test_a_file_may_have_any_name(disposition: str | bytes, filename: str | None) -> None:
    form = part(disposition, b"x") + END
    assert await collect(request(form)) == [("file", filename, b"x")]


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "application/x-www-form-urlencoded", "multipart/mixed; boundary=x"],
)
async def test_another_content_type(content_type: str) -> None:
    with pytest.raises(InvalidParameter, match="Unsupported content type") as caught:
        await collect(request(b"", content_type=content_type))
    assert caught.value.code == "unsupported_content_type"


@pytest.mark.parametrize("options", ["", "; boundary", "; boundary=", '; boundary=""'])
async def test_no_boundary(options: str) -> None:
    with pytest.raises(InvalidParameter, match="no valid multipart boundary"):
        await collect(request(b"", content_type=f"multipart/form-data{options}"))


async def test_a_quoted_boundary() -> None:
    kind = f'Multipart/Form-Data; charset=utf-8; boundary="{BOUNDARY}"'
    assert await collect(request(PURPOSE + FILE + END, content_type=kind)) == GOOD


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"no form at all",
        PURPOSE + FILE,
        PURPOSE + FILE[:-20],
        PURPOSE[:10],
        PURPOSE + b"--a-boundary",
        b"--a-boundary\n" + FILE,
        b"--a-boundary\r\nno header\r\n\r\nx\r\n" + END,
        b"--a-boundary\r\n\r\nno header\r\n" + END,
        b'--a-boundary\r\ncontent-disposition: attachment; name="file"\r\n\r\nx\r\n' + END,
        part('name="file"; filename="' + "n" * 20_000 + '"') + END,
        b"--a-boundary\r\n" + b"x-header: x\r\n" * 20 + b"\r\n" + END,
        PURPOSE * 100 + END,
    ],
)
async def test_a_broken_form(form: bytes) -> None:
    with pytest.raises(InvalidParameter, match="Could not parse the multipart form"):
        await collect(request(form))


async def test_a_form_announced_too_long_is_not_read() -> None:
    given = request(PURPOSE, length=MAX_FILE_BYTES + OVERHEAD_BYTES + 1)
    with pytest.raises(FileTooLarge):
        await collect(given)
    assert await anext(given.stream()) == PURPOSE


async def test_a_form_that_gets_too_long_is_not_read_to_its_end() -> None:
    read = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal read
        yield part('name="file"; filename="x"')[:-2]
        while True:
            read += 1
            yield b"x" * 65536

    given = request()
    given.stream = pieces  # type: ignore[method-assign,assignment]  # an endless client
    with pytest.raises(FileTooLarge):
        await collect(given)
    assert read <= OVERHEAD_BYTES // 65536 + 1


async def field_text(content: bytes) -> str:
    form = request(part('name="purpose"', content) + END)
    async for arrived in read_form(form, max_file_bytes=MAX_FILE_BYTES):
        return await arrived.text()
    raise AssertionError


async def test_a_field_is_text() -> None:
    assert await field_text("fine-tüne".encode()) == "fine-tüne"
    assert await field_text(b"") == ""


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"\xff\xfe", "invalid_value"),
        (b"x" * (MAX_FIELD_BYTES + 1), "string_above_max_length"),
    ],
)
async def test_a_field_that_is_no_short_text(content: bytes, code: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        await field_text(content)
    assert (caught.value.code, caught.value.param) == (code, "purpose")
