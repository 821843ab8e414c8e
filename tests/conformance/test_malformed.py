"""Requests that no client library would send: each gets an envelope, and none a 5xx."""

import contextlib
import json
import socket
from http.client import HTTPResponse
from typing import NamedTuple

import pytest

from tests.fixtures.client import API_KEY, LiveApi

pytestmark = pytest.mark.timeout(240)
_MB = 1024 * 1024
_JSON = b"content-type: application/json"
_FORM = b"content-type: multipart/form-data; boundary=x"


class Malformed(NamedTuple):
    """One request: its first line, its headers besides host and key, its body as it is sent."""

    name: str
    line: bytes
    headers: tuple[bytes, ...] = ()
    body: bytes = b""
    statuses: tuple[int, ...] = (400,)


def _post(
    name: str, body: bytes, *statuses: int, path: bytes = b"/v1/batches", kind: bytes = _JSON
) -> Malformed:
    length = b"content-length: %d" % len(body)
    return Malformed(name, b"POST " + path, (kind, length), body, statuses or (400,))


def _chunked(name: str, body: bytes, *statuses: int) -> Malformed:
    return Malformed(
        name, b"POST /v1/batches", (_JSON, b"transfer-encoding: chunked"), body, statuses or (400,)
    )


def _part(header: bytes, content: bytes = b"{}") -> bytes:
    return b"--x\r\n" + header + b"\r\n\r\n" + content + b"\r\n--x--\r\n"


_FILES = b"/v1/files"
_DEEP = 100_000
REQUESTS = [
    # JSON
    _post("NUL", b"\0"),
    _post("NUL in a text", b'{"input_file_id": "a\\u0000", "endpoint": "/v1/responses"}'),
    _post("a NUL byte in a text", b'{"input_file_id": "a\0"}'),
    _post("a lone surrogate", b'{"input_file_id": "\\ud800"}'),
    _post("a lone surrogate as a key", b'{"\\udfff": 1}'),
    _post("surrogates the wrong way round", b'{"metadata": {"\\udc00\\ud800": "x"}}'),
    _post("bytes that are no UTF-8", b'{"input_file_id": "\xff\xfe"}'),
    _post("overlong UTF-8", b'{"input_file_id": "\xc0\xaf"}'),
    _post("a surrogate in UTF-8", b'{"input_file_id": "\xed\xa0\x80"}'),
    _post("UTF-16", '{"a": 1}'.encode("utf-16")),
    _post("a byte-order mark", b"\xef\xbb\xbf{}"),
    _post("deep arrays", b"[" * _DEEP + b"]" * _DEEP),
    _post("deep objects", b'{"a":' * _DEEP + b"1" + b"}" * _DEEP),
    _post("arrays that never end", b"[" * _DEEP),
    _post("a huge integer", b'{"input_file_id": ' + b"9" * 10_000 + b"}"),
    _post("a huge exponent", b'{"input_file_id": 1e999999}'),
    _post("NaN", b'{"input_file_id": NaN}'),
    _post("a key twice", b'{"endpoint": "/v1/responses", "endpoint": 5}'),
    _post("ten thousand keys", json.dumps({str(n): n for n in range(10_000)}).encode()),
    _post("a long key", b'{"' + b"k" * 500_000 + b'": 1}'),
    _post("a long value", b'{"endpoint": "' + b"v" * 500_000 + b'"}'),
    _post("metadata of control characters", b'{"metadata": {"\\u0001\\u001f": 5}}'),
    _post("more than a megabyte", b'{"a": "' + b"x" * _MB + b'"}', 413),
    _post("ten megabytes of spaces", b" " * (10 * _MB), 413),
    _post("prototype pollution", b'{"__proto__": {"x": 1}, "constructor": 1}'),
    _post("a form as JSON", b"a=1&b=2"),
    _post("JSON as a form", b"{}", path=_FILES),
    _post("a batch as text", b"hello", kind=b"content-type: text/plain"),
    _post("a batch of no type", b"[]", kind=b"x-nothing: 1"),
    _post("an unknown charset", b"{", kind=b"content-type: application/json; charset=klingon"),
    _post("compressed, it says", b"\x1f\x8b\x08", kind=b"content-encoding: gzip"),
    # Framing
    _chunked("a chunk size that is none", b"zz\r\n{}\r\n0\r\n\r\n"),
    _chunked("a negative chunk size", b"-1\r\n{}\r\n0\r\n\r\n"),
    _chunked("a huge chunk size", b"f" * 32 + b"\r\n{}\r\n0\r\n\r\n"),
    _chunked("a chunk without its end", b"2\r\n{}0\r\n\r\n"),
    _chunked("chunks with extensions", b"2;a=b\r\n{}\r\n0\r\n\r\n"),
    _chunked("no chunk at all", b"0\r\n\r\n"),
    Malformed("no length", b"POST /v1/batches", (_JSON,), b"{}"),
    Malformed("a length that is none", b"POST /v1/batches", (_JSON, b"content-length: two"), b"{}"),
    Malformed("a negative length", b"POST /v1/batches", (_JSON, b"content-length: -2"), b"{}"),
    Malformed(
        "two lengths",
        b"POST /v1/batches",
        (_JSON, b"content-length: 2", b"content-length: 3"),
        b"{}",
    ),
    Malformed(
        "length and chunks",
        b"POST /v1/batches",
        (_JSON, b"content-length: 2", b"transfer-encoding: chunked"),
        b"2\r\n{}\r\n0\r\n\r\n",
    ),
    Malformed(
        "an unknown transfer coding",
        b"POST /v1/batches",
        (_JSON, b"transfer-encoding: bzip2"),
        b"{}",
        (400, 501),
    ),
    # Paths and queries
    Malformed("no UTF-8 in a path", b"GET /v1/files/%ff%fe", statuses=(404,)),
    Malformed("NUL in a path", b"GET /v1/files/%00", statuses=(404,)),
    Malformed("NUL in a batch's id", b"GET /v1/batches/a%00b", statuses=(404,)),
    Malformed("NUL in a model", b"GET /v1/models/%00", statuses=(404,)),
    Malformed("NUL in an upload's id", b"POST /v1/uploads/%00/cancel", statuses=(404,)),
    Malformed("NUL in an endpoint's id", b"GET /v1/webhook_endpoints/%00", statuses=(404,)),
    Malformed("up and out", b"GET /v1/files/../../etc/passwd", statuses=(404,)),
    Malformed("up and out, quoted", b"GET /v1/files/%2e%2e%2f%2e%2e%2fetc", statuses=(404,)),
    Malformed("a broken quote in a path", b"GET /v1/files/%zz", statuses=(404,)),
    Malformed("bytes in a path", b"GET /v1/files/\xff\xfe", statuses=(400, 404)),
    Malformed("a long path", b"GET /v1/files/" + b"x" * 30_000, statuses=(400, 404, 414)),
    Malformed("a longer path", b"GET /v1/files/" + b"x" * 200_000, statuses=(400, 404, 414)),
    Malformed("no UTF-8 in a query", b"GET /v1/files?after=%ff%fe"),
    Malformed("NUL in a query", b"GET /v1/batches?after=%00"),
    Malformed("NUL in an endpoint's query", b"GET /v1/webhook_endpoints?after=%00"),
    Malformed("a surrogate in a query", b"GET /v1/batches?after=%ed%a0%80"),
    Malformed("a huge limit", b"GET /v1/batches?limit=" + b"9" * 5000),
    Malformed("a limit in other digits", b"GET /v1/batches?limit=%d9%a1%d9%a2%d9%a3"),
    Malformed("an infinite limit", b"GET /v1/batches?limit=inf"),
    Malformed("a limit with an underscore", b"GET /v1/files?limit=1_0_0_0_0_0"),
    Malformed("a limit that is a list", b"GET /v1/batches?limit[]=1&limit=x"),
    Malformed("metadata of NUL", b"GET /v1/batches?metadata[%00]=%00", statuses=(200, 400)),
    Malformed("many parameters", b"GET /v1/batches?limit=x" + b"&a=b" * 5000),
    # Methods and heads
    Malformed("an unknown method", b"BREW /v1/batches", statuses=(400, 404)),
    Malformed("a method in small letters", b"get /v1/nowhere", statuses=(400, 404)),
    Malformed("a long method", b"X" * 5000 + b" /v1/batches", statuses=(400, 404)),
    Malformed("CONNECT", b"CONNECT example.com:443", statuses=(400, 404)),
    Malformed(
        "a huge header", b"GET /v1/nowhere", (b"x-a: " + b"x" * 300_000,), statuses=(400, 404, 431)
    ),
    Malformed("many headers", b"GET /v1/nowhere", (b"a: b",) * 2000, statuses=(400, 404, 431)),
    Malformed("bytes in a header", b"GET /v1/nowhere", (b"x-a: \xff\xfe",), statuses=(400, 404)),
    Malformed("NUL in a header", b"GET /v1/nowhere", (b"x-a: a\0b",), statuses=(400, 404)),
    Malformed("a header without a colon", b"GET /v1/nowhere", (b"nothing",)),
    Malformed("a header with a space in its name", b"GET /v1/nowhere", (b"a b: c",)),
    Malformed(
        "a range of nonsense", b"GET /v1/files/x/content", (b"range: bytes=a-b",), statuses=(404,)
    ),
    Malformed(
        "a huge client request id",
        b"GET /v1/nowhere",
        (b"x-client-request-id: " + b"\xe9" * 9000,),
        statuses=(400, 404),
    ),
    # Forms
    _post("a form that is none", b"hello", path=_FILES, kind=_FORM),
    _post("a form without its end", b"--x\r\n", path=_FILES, kind=_FORM),
    _post(
        "a form without a boundary",
        b"--x--\r\n",
        path=_FILES,
        kind=b"content-type: multipart/form-data",
    ),
    _post(
        "a boundary of a megabyte",
        b"",
        path=_FILES,
        kind=b"content-type: multipart/form-data; boundary=" + b"x" * 5000,
    ),
    _post(
        "a part without a name", _part(b"content-disposition: form-data"), path=_FILES, kind=_FORM
    ),
    _post(
        "a part without a disposition", _part(b"content-type: text/plain"), path=_FILES, kind=_FORM
    ),
    _post(
        "a part named in no UTF-8",
        _part(b'content-disposition: form-data; name="\xff"'),
        path=_FILES,
        kind=_FORM,
    ),
    _post(
        "NUL in a field",
        _part(b'content-disposition: form-data; name="purpose"', b"a\0"),
        path=_FILES,
        kind=_FORM,
    ),
    _post(
        "no UTF-8 in a field",
        _part(b'content-disposition: form-data; name="purpose"', b"\xff"),
        path=_FILES,
        kind=_FORM,
    ),
    _post(
        "a long field",
        _part(b'content-disposition: form-data; name="purpose"', b"a" * 100_000),
        path=_FILES,
        kind=_FORM,
    ),
    _post(
        "a thousand parts",
        _part(b'content-disposition: form-data; name="x"')[:-8] * 1000,
        path=_FILES,
        kind=_FORM,
    ),
    _post(
        "a file name of NUL and slashes",
        _part(b'content-disposition: form-data; name="file"; filename="../\0/\xff"'),
        path=_FILES,
        kind=_FORM,
    ),
    _post(
        "an urlencoded form",
        b"purpose=batch",
        path=_FILES,
        kind=b"content-type: application/x-www-form-urlencoded",
    ),
]


def test_each_gets_an_envelope(live_api: LiveApi) -> None:
    """And the server goes on answering."""
    faults = {request.name: fault for request in REQUESTS if (fault := fault_of(live_api, request))}
    assert faults == {}
    assert len({request.name for request in REQUESTS}) == len(REQUESTS)


def fault_of(api: LiveApi, request: Malformed) -> str | None:
    """What is wrong with the answer to a request; nothing if it is right."""
    status, kind, body = exchange(api, request)
    if status not in request.statuses:
        return f"{status}: {body[:200]!r}"
    if status == 200:
        return None
    if kind != "application/json":
        return f"the content type is {kind}"
    error = json.loads(body)["error"]
    if set(error) != {"message", "type", "param", "code"}:
        return f"the error has {sorted(error)}"
    if error["type"] != "invalid_request_error":
        return f"the type is {error['type']}"
    return "it repeats too much of the request" if len(body) >= 4000 else None


def exchange(api: LiveApi, request: Malformed) -> tuple[int, str, bytes]:
    """Send it as it is; status, content type and body of the answer."""
    host, _, port = api.url.removeprefix("http://").partition(":")
    head = [
        request.line + b" HTTP/1.1",
        b"host: overnight",
        b"authorization: Bearer " + API_KEY.encode(),
        b"connection: close",
        *request.headers,
    ]
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        # It may have heard enough; its answer is there all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b"\r\n".join(head) + b"\r\n\r\n" + request.body)
        answer = HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.headers.get_content_type(), answer.read()
