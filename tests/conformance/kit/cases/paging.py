"""Section 7: the lists of files and batches, page by page."""

from itertools import pairwise
from typing import Any

from openai.types import Batch, FileObject

from tests.conformance.kit.case import case
from tests.conformance.kit.expect import conforms, fits, ok, refused, same
from tests.conformance.kit.server import ids, pages
from tests.conformance.kit.subject import Subject

_LISTS = [{"path": "files"}, {"path": "batches"}]
_COUNT = 5
# Of a purpose that no other case writes, for the outputs of running batches come in between.
_ONLY: dict[str, dict[str, Any]] = {"files": {"purpose": "vision"}, "batches": {}}


def _walk(server: Subject, path: str, limit: int, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for page in pages(server.http, path, limit, **_ONLY[path], **query):
        found += page["data"]
        assert len(found) <= 20_000, "the list does not end"
    return found


def _make(server: Subject, path: str) -> list[str]:
    if path == "batches":
        return [server.create()["id"] for _ in range(_COUNT)]
    return ids([server.upload(b"{}", purpose="vision") for _ in range(_COUNT)])


def _first(server: Subject, path: str, limit: int, **query: Any) -> dict[str, Any]:
    page: dict[str, Any] = ok(server.http.get(path, params={"limit": limit} | _ONLY[path] | query))
    return page


@case("1.5", "the list of files", also=["2.7"])
def the_list_of_files(server: Subject) -> None:
    with server.files(2) as files:
        page = ok(server.http.get("files"))
        same(set(page), {"object", "data", "first_id", "last_id", "has_more"}, "the keys")
        same(page["object"], "list", "object")
        conforms(FileObject, page["data"][0])
        assert set(ids(files)) <= set(ids(page["data"])), "the new files are not in it"


@case("1.5", "files of one purpose")
def files_of_a_purpose(server: Subject) -> None:
    with server.files(1, purpose="vision") as [vision], server.files(1) as [batch]:
        found = ok(server.http.get("files", params={"purpose": "vision"}))["data"]
        assert {file["purpose"] for file in found} == {"vision"}, "there are others"
        assert vision["id"] in ids(found), "it is not there"
        assert batch["id"] not in ids(found), "another is there"


@case("1.5", "a purpose that no file has")
def files_of_no_purpose(server: Subject) -> None:
    page = ok(server.http.get("files", params={"purpose": "fine-tune-results"}))
    same(
        (page["data"], page["first_id"], page["last_id"], page["has_more"]), ([], None, None, False)
    )


@case("1.5", "the SDK lists files")
def the_sdk_lists_files(server: Subject) -> None:
    with server.files(3, purpose="vision") as files:
        page = server.sdk.files.list(limit=2, order="desc", purpose="vision")
        found = [file.id for file in page.data]
        same(found, ids(files)[:0:-1], "the newest two")


@case("1.10", "the list of batches", also=["2.21"])
def the_list_of_batches(server: Subject) -> None:
    _make(server, "batches")
    page = ok(server.http.get("batches"))
    same(set(page), {"object", "data", "first_id", "last_id", "has_more"}, "the keys")
    for batch in page["data"]:
        conforms(Batch, batch)


@case("1.10", "twenty by default")
def twenty_by_default(server: Subject) -> None:
    for _ in range(21):
        server.create()
    page = ok(server.http.get("batches"))
    same((len(page["data"]), page["has_more"]), (20, True), "length, has_more")


@case("1.10", "order={order} does not turn the list of batches", rows=[{"order": "asc"}])
def batches_have_no_order(server: Subject, order: str) -> None:
    _make(server, "batches")
    response = server.http.get("batches", params={"order": order, "limit": 3})
    if response.status_code != 400:
        same(ids(ok(response)["data"]), ids(_first(server, "batches", 3)["data"]), "the page")


@case("2.7", "an empty page of /{path}", also=["3.35"], rows=_LISTS)
def an_empty_page(server: Subject, path: str) -> None:
    page = ok(server.http.get(path, params={"limit": 0}))
    wanted: dict[str, Any] = {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    same(page, wanted, "the page")


@case(
    "3.33",
    "the largest limit of /{path} passes",
    rows=[{"path": "files", "limit": 10_000}, {"path": "batches", "limit": 100}],
)
def the_largest_limit(server: Subject, path: str, limit: int) -> None:
    ok(server.http.get(path, params={"limit": limit}))


@case("7.1", "/{path}, newest first", rows=_LISTS)
def newest_first(server: Subject, path: str) -> None:
    made = _make(server, path)
    found = _first(server, path, _COUNT)["data"]
    same(ids(found), made[::-1], "the first page")
    times = [item["created_at"] for item in found]
    same(times, sorted(times, reverse=True), "the times")


@case("7.1", "files, oldest first")
def oldest_first(server: Subject) -> None:
    whole = _walk(server, "files", 1000, order="asc")
    times = [file["created_at"] for file in whole]
    same(times, sorted(times), "the times")
    same(ids(whole), ids(_walk(server, "files", 1000, order="desc"))[::-1], "the list")


@case("7.2", "/{path}: after an item comes the next", rows=_LISTS)
def after_an_item(server: Subject, path: str) -> None:
    made = _make(server, path)[::-1]
    for earlier, later in pairwise(made):
        same(
            ids(_first(server, path, 1, after=earlier)["data"]), [later], f"what follows {earlier}"
        )


@case("7.2", "files in ascending order")
def after_an_item_ascending(server: Subject) -> None:
    with server.files(3, purpose="vision") as files:
        first, second, third = ids(files)
        page = _first(server, "files", 100, after=first, order="asc")
        same(ids(page["data"])[:2], [second, third], "what follows")


@case("7.2", "/{path}: after the last item comes nothing", rows=_LISTS)
def after_the_last(server: Subject, path: str) -> None:
    _make(server, path)
    last = _walk(server, path, 100)[-1]["id"]
    page = _first(server, path, 10, after=last)
    same((page["data"], page["has_more"]), ([], False), "the page")


@case(
    "7.3",
    "/{path}: every item once, in pages of {limit}",
    also=["7.4"],
    rows=[{"path": row["path"], "limit": limit} for row in _LISTS for limit in (1, 2, 3, 100)],
)
def each_item_once(server: Subject, path: str, limit: int) -> None:
    # Made one right after the other, so that several have the same second.
    made = _make(server, path)
    found: list[str] = []
    for page in pages(server.http, path, limit, **_ONLY[path]):
        found += ids(page["data"])
        if set(made) <= set(found):
            break
    same(len(found), len(set(found)), "the number of different items")
    same([one for one in found if one in made], made[::-1], "the new ones")


@case("7.3", "/{path}: the order is the same each time", rows=_LISTS)
def the_same_order(server: Subject, path: str) -> None:
    _make(server, path)
    same(ids(_first(server, path, 50)["data"]), ids(_first(server, path, 50)["data"]), "the page")


@case("7.4", "/{path}: has_more is false on the last page and true before it", rows=_LISTS)
def has_more(server: Subject, path: str) -> None:
    _make(server, path)
    walked = list(pages(server.http, path, 100, **_ONLY[path]))
    same([page["has_more"] for page in walked], [True] * (len(walked) - 1) + [False], "has_more")
    total = sum(len(page["data"]) for page in walked)
    if total <= 100:
        assert not _first(server, path, total)["has_more"], "has_more of exactly one page is true"
        assert _first(server, path, total - 1)["has_more"], "has_more with one left is false"


@case("7.4", "the SDK pages through /{path}", rows=_LISTS)
def the_sdk_pages(server: Subject, path: str) -> None:
    made = set(_make(server, path))
    lister: Any = server.sdk.batches if path == "batches" else server.sdk.files
    found: list[str] = []
    for item in lister.list(limit=2, **_ONLY[path]):
        found.append(item.id)
        if made <= set(found):
            break
    same(len(found), len(set(found)), "the number of different items")
    same(made - set(found), set(), "what is missing")


@case("7.5", "/{path}: first_id and last_id", rows=_LISTS)
def first_and_last(server: Subject, path: str) -> None:
    _make(server, path)
    page = _first(server, path, 3)
    same((page["first_id"], page["last_id"]), (page["data"][0]["id"], page["data"][-1]["id"]))


_NAMES = {"files": "file-none", "batches": "batch_none"}


@case(
    "7.6",
    "/{path}?after={after}",
    rows=[
        {"path": path, "after": after}
        for path, name in _NAMES.items()
        for after in (name, "x", "", "%00", "é" * 100)
    ],
)
def an_unknown_after(server: Subject, path: str, after: str) -> None:
    response = server.http.get(f"{path}?after={after}")
    message = refused(response, 400, code="invalid_value", param="after")
    fits(message, "Invalid 'after'.*", "the message")


@case("7.6", "/{path}: the id of another kind of object", rows=_LISTS)
def an_after_of_another_kind(server: Subject, path: str) -> None:
    other = _make(server, "batches" if path == "files" else "files")[0]
    refused(
        server.http.get(path, params={"after": other}), 400, code="invalid_value", param="after"
    )


@case("7.7", "the list of files without a limit is one page")
def one_page(server: Subject) -> None:
    with server.files(3):
        whole = ok(server.http.get("files"))
        assert not whole["has_more"], "has_more is true"
        assert len(whole["data"]) >= 3, "files are missing"


@case("7.8", "deleting each page's files on the way")
def deleting_while_paging(server: Subject) -> None:
    with server.files(_COUNT, purpose="vision") as files:
        found: list[str] = []
        for page in pages(server.http, "files", 2, purpose="vision"):
            for file in page["data"]:
                found.append(file["id"])
                if file["id"] in ids(files):
                    ok(server.http.delete(f"files/{file['id']}"))
        same([one for one in found if one in ids(files)], ids(files)[::-1], "what was found")


@case("7.8", "new items between two pages")
def new_items_while_paging(server: Subject) -> None:
    made = _make(server, "batches")[::-1]
    page = _first(server, "batches", 2)
    server.create()
    rest = _first(server, "batches", 3, after=page["data"][-1]["id"])
    same(ids(page["data"]) + ids(rest["data"]), made, "both pages")
