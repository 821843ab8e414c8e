"""The light check of an upload: its first line that is not blank, in pieces of any size."""

import pytest

from api.services import first_line
from api.services.first_line import FirstLine


def verdict(content: bytes, size: int | None = None) -> bool | None:
    watch = FirstLine()
    step = size or max(len(content), 1)
    for start in range(0, len(content), step):
        watch.feed(content[start : start + step])
    watch.end()
    return watch.is_json_object


@pytest.mark.parametrize("size", [None, 1, 2, 3])
@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1}\n',
        b'{"a": 1}',
        b'{"a": 1}\r\n{"b": 2}\r\n',
        b'\xef\xbb\xbf{"a": 1}\n',
        b'\n\r\n  \t\n{"a": 1}\n',
        b'\xef\xbb\xbf\n{"a": 1}',
        b'   {"a": 1}   ',
        b'{"a": 1}\nwhat follows is for validation to judge',
        b'{"a": "' + b"x" * 5000 + b'"}\nmore',
    ],
)
def test_json_lines(content: bytes, size: int | None) -> None:
    assert verdict(content, size) is True


@pytest.mark.parametrize("size", [None, 1, 2, 3])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"   ",
        b"\xef\xbb\xbf",
        b"\xef\xbb",
        b"notes\n",
        b'[{"a": 1}]\n',
        b'{\n  "a": 1\n}\n',
        b'{"a": 1',
        b"PK\x03\x04",
        b'\xff\xfe{\x00"\x00',
        b'{"a": 1} {"b": 2}\n',
        b'"text"\n',
    ],
)
def test_anything_else(content: bytes, size: int | None) -> None:
    assert verdict(content, size) is False


def test_what_is_no_object_is_known_at_its_first_byte() -> None:
    watch = FirstLine()
    watch.feed(b"a,b,c")
    assert watch.is_json_object is False


def test_a_line_too_long_to_keep_is_left_to_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_line, "MAX_KEPT_BYTES", 100)
    watch = FirstLine()
    watch.feed(b'{"a": "')
    for _ in range(20):
        watch.feed(b"x" * 10)
    assert watch.is_json_object is True
    assert len(watch._kept) == 0
