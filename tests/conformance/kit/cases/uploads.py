"""Uploads: parts in any order, whole in the order that is asked for (sections 1 and 2)."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import httpx
from openai.types import Upload
from openai.types.uploads import UploadPart

from tests.conformance.kit.case import case
from tests.conformance.kit.expect import (
    conforms,
    is_time,
    json_of,
    ok,
    refused,
    same,
)
from tests.conformance.kit.server import json_lines
from tests.conformance.kit.subject import Subject

HOUR_SECONDS = 3600
_MAX_BYTES = 8 * 1024**3
# An input file has a limit of its own (1.30).
_NO_INPUT = {"purpose": "fine-tune"}


def create(server: Subject, size: int, **changes: Any) -> dict[str, Any]:
    """A new upload of so many bytes."""
    upload: dict[str, Any] = ok(server.post("uploads", _body(size) | changes))
    return upload


def _body(size: int) -> dict[str, Any]:
    return {
        "filename": "in.jsonl",
        "purpose": "batch",
        "bytes": size,
        "mime_type": "application/jsonl",
    }


def send(server: Subject, upload: dict[str, Any], data: bytes) -> httpx.Response:
    """Send one part."""
    files = {"data": ("upload", data, "application/octet-stream")}
    return server.http.post(f"uploads/{upload['id']}/parts", files=files)


def complete(
    server: Subject, upload: dict[str, Any], parts: list[str], **more: Any
) -> httpx.Response:
    """Ask for the file."""
    return server.post(f"uploads/{upload['id']}/complete", {"part_ids": parts} | more)


def pieces(server: Subject) -> list[bytes]:
    """A good input file, cut in the middle of its lines."""
    whole = json_lines(*(server.line(f"r-{number}") for number in range(9)))
    third = len(whole) // 3
    return [whole[:third], whole[third : 2 * third], whole[2 * third :]]


def sent(server: Subject) -> tuple[dict[str, Any], list[bytes], list[str]]:
    """An upload with all its parts."""
    data = pieces(server)
    upload = create(server, sum(map(len, data)))
    return upload, data, [ok(send(server, upload, piece))["id"] for piece in data]


@case("1.13", "a new upload", also=["2.22", "2.24", "2.15"])
def a_new_upload(server: Subject) -> None:
    upload = create(server, 100)
    conforms(Upload, upload)
    fields = {
        "id",
        "object",
        "bytes",
        "created_at",
        "filename",
        "purpose",
        "status",
        "expires_at",
        "file",
    }
    same(set(upload), fields, "the set of fields")
    same((upload["object"], upload["bytes"], upload["filename"]), ("upload", 100, "in.jsonl"))
    same((upload["status"], upload["file"]), ("pending", None))
    assert abs(upload["created_at"] - time.time()) < 300, "created_at is not now"


@case("1.14", "a part", also=["2.23"])
def a_part(server: Subject) -> None:
    upload = create(server, 100)
    part = ok(send(server, upload, b"x" * 10))
    conforms(UploadPart, part)
    same(set(part), {"id", "object", "created_at", "upload_id"}, "the set of fields")
    same((part["object"], part["upload_id"]), ("upload.part", upload["id"]))
    is_time(part["created_at"], "created_at")


@case("1.14", "a form without data", also=["3.1"])
def a_part_without_data(server: Subject) -> None:
    upload = create(server, 100)
    body = b'--kit\r\ncontent-disposition: form-data; name="x"\r\n\r\ny\r\n--kit--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=kit"}
    response = server.http.post(f"uploads/{upload['id']}/parts", content=body, headers=headers)
    same(response.status_code, 400, "the status")
    same(json_of(response)["error"]["type"], "invalid_request_error", "the type")


@case("1.15", "the whole file", also=["2.24"])
def the_whole_file(server: Subject) -> None:
    upload, data, parts = sent(server)
    done = ok(complete(server, upload, parts))
    conforms(Upload, done)
    same((done["status"], done["id"]), ("completed", upload["id"]))
    file = done["file"]
    same(
        (file["object"], file["bytes"], file["status"]), ("file", sum(map(len, data)), "processed")
    )
    same(ok(server.http.get(f"files/{file['id']}")), file, "the file")
    same(server.http.get(f"files/{file['id']}/content").content, b"".join(data), "the content")


@case("1.15", "a batch from an upload")
def a_batch_from_an_upload(server: Subject) -> None:
    upload, _, parts = sent(server)
    file = ok(complete(server, upload, parts))["file"]
    batch = server.ended(server.create(file["id"])["id"])
    same((batch["status"], batch["request_counts"]["completed"]), ("completed", 9))


@case("1.15", "with the right md5")
def the_right_sum(server: Subject) -> None:
    upload, data, parts = sent(server)
    md5 = hashlib.md5(b"".join(data), usedforsecurity=False).hexdigest()
    same(ok(complete(server, upload, parts, md5=md5))["status"], "completed", "the status")


@case("1.15", "with a wrong md5")
def a_wrong_sum(server: Subject) -> None:
    upload, _, parts = sent(server)
    response = complete(server, upload, parts, md5="0" * 32)
    same(response.status_code, 400, "the status")
    same(json_of(response)["error"]["param"], "md5", "the param")


@case("1.16", "a cancelled upload", also=["2.24"])
def a_cancelled_upload(server: Subject) -> None:
    upload, _, parts = sent(server)
    cancelled = ok(server.post(f"uploads/{upload['id']}/cancel"))
    conforms(Upload, cancelled)
    same((cancelled["status"], cancelled["file"]), ("cancelled", None))
    same(send(server, upload, b"x").status_code, 400, "the status of another part")
    same(complete(server, upload, parts).status_code, 400, "the status of completing it")


@case("1.16", "a completed upload cannot be cancelled")
def a_completed_upload_stays(server: Subject) -> None:
    upload, _, parts = sent(server)
    file = ok(complete(server, upload, parts))["file"]
    response = server.post(f"uploads/{upload['id']}/cancel")
    same(response.status_code, 400, "the status")
    ok(server.http.get(f"files/{file['id']}"))


@case(
    "1.24",
    "an upload of purpose {purpose}",
    rows=[{"purpose": p} for p in ("assistants", "batch", "fine-tune", "vision")],
)
def purposes(server: Subject, purpose: str) -> None:
    same(create(server, 100, purpose=purpose)["purpose"], purpose, "the purpose")


@case("1.39", "a life of an hour")
def the_life_of_an_upload(server: Subject) -> None:
    upload = create(server, 100)
    same(upload["expires_at"], upload["created_at"] + HOUR_SECONDS, "expires_at")


@case("1.39", "eight gigabytes and one byte", also=["3.23"])
def an_upload_too_large(server: Subject) -> None:
    response = server.post("uploads", _body(_MAX_BYTES + 1) | _NO_INPUT)
    same(response.status_code, 400, "the status")
    error = json_of(response)["error"]
    same((error["type"], error["param"]), ("invalid_request_error", "bytes"), "type, param")


@case("1.39", "eight gigabytes may be announced")
def the_largest_upload(server: Subject) -> None:
    same(create(server, _MAX_BYTES, **_NO_INPUT)["bytes"], _MAX_BYTES, "bytes")


@case("1.39", "a part of 64 MB and one byte")
def a_part_too_large(server: Subject) -> None:
    upload = create(server, 1024**3, **_NO_INPUT)
    response = send(server, upload, b" " * (64 * 1024**2 + 1))
    assert response.status_code in {400, 413}, f"the status is {response.status_code}"
    same(json_of(response)["error"]["type"], "invalid_request_error", "the type")


@case("2.25", "parts of a size that is off by {by}", rows=[{"by": -1}, {"by": 1}])
def a_wrong_number_of_bytes(server: Subject, by: int) -> None:
    data = pieces(server)
    upload = create(server, sum(map(len, data)) + by)
    answers = [send(server, upload, piece) for piece in data]
    parts = [answer.json()["id"] for answer in answers if answer.status_code == 200]
    if len(parts) == len(data):
        response = complete(server, upload, parts)
        same(response.status_code, 400, "the status")
        same(json_of(response)["error"]["type"], "invalid_request_error", "the type")


@case("2.26", "parts sent at the same time, put in another order")
def parts_in_another_order(server: Subject) -> None:
    data = pieces(server)
    upload = create(server, sum(map(len, data)))
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda piece: send(server, upload, piece), data[::-1]))
    parts = [ok(answer)["id"] for answer in answers]
    file = ok(complete(server, upload, parts[::-1]))["file"]
    same(server.http.get(f"files/{file['id']}/content").content, b"".join(data), "the content")


@case("2.26", "the order of part_ids decides")
def the_order_decides(server: Subject) -> None:
    lines = [json_lines(server.line(f"r-{number}")) for number in range(3)]
    upload = create(server, sum(map(len, lines)))
    parts = [ok(send(server, upload, line))["id"] for line in lines]
    file = ok(complete(server, upload, parts[::-1]))["file"]
    content = server.http.get(f"files/{file['id']}/content").content
    same(content, b"".join(lines[::-1]), "the content")


@case(
    "2.26",
    "a part that is named twice ({twice}), or is not there",
    rows=[{"twice": False}, {"twice": True}],
)
def wrong_parts(server: Subject, twice: bool) -> None:
    upload, _, parts = sent(server)
    given = [*parts[:2], parts[0]] if twice else [*parts[:2], "part_none"]
    response = complete(server, upload, given)
    same(response.status_code, 400, "the status")
    assert (json_of(response)["error"]["param"] or "").startswith("part_ids"), (
        "the param is another"
    )


@case("2.27", "upload_file_chunked of the SDK")
def chunked_by_the_sdk(server: Subject) -> None:
    content = json_lines(*(server.line(f"r-{number}") for number in range(50)))
    upload = server.sdk.uploads.upload_file_chunked(
        file=content,
        filename="in.jsonl",
        bytes=len(content),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=1000,
    )
    same(upload.status, "completed", "the status")
    assert upload.file is not None, "there is no file"
    same(server.sdk.files.content(upload.file.id).read(), content, "the content")


@case("2.27", "the SDK's single calls")
def single_calls_of_the_sdk(server: Subject) -> None:
    content = json_lines(server.line())
    upload = server.sdk.uploads.create(
        filename="a", bytes=len(content), mime_type="application/jsonl", purpose="batch"
    )
    part = server.sdk.uploads.parts.create(upload_id=upload.id, data=BytesIO(content))
    same(
        server.sdk.uploads.complete(upload.id, part_ids=[part.id]).status, "completed", "the status"
    )


@case("3.21", "an upload that is no JSON Lines")
def no_json_lines(server: Subject) -> None:
    upload = create(server, 9)
    part = ok(send(server, upload, b"Dear all\n"))["id"]
    refused(
        complete(server, upload, [part]), 400, "Invalid file format for Batch API. Must be .jsonl"
    )


@case("1.27", "expires_after of an upload is the file's")
def the_life_of_the_file(server: Subject) -> None:
    content = json_lines(server.line())
    life = {"anchor": "created_at", "seconds": 7200}
    upload = create(server, len(content), expires_after=life)
    part = ok(send(server, upload, content))["id"]
    file = ok(complete(server, upload, [part]))["file"]
    same(file["expires_at"], file["created_at"] + 7200, "expires_at")


@case(
    "1.13",
    "{rest} of an upload that is not there",
    rows=[{"rest": r} for r in ("parts", "complete", "cancel")],
)
def an_unknown_upload(server: Subject, rest: str) -> None:
    path = f"uploads/upload_none/{rest}"
    response = {
        "parts": lambda: server.http.post(path, files={"data": ("upload", b"x")}),
        "complete": lambda: server.post(path, {"part_ids": ["part_none"]}),
        "cancel": lambda: server.http.post(path),
    }[rest]()
    same(response.status_code, 404, "the status")
    same(json_of(response)["error"]["type"], "invalid_request_error", "the type")
