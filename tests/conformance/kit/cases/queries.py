"""Section 3, the grammar: queries and forms."""

from collections.abc import Callable

import httpx

from tests.conformance.kit.case import case
from tests.conformance.kit.expect import (
    above,
    below,
    missing,
    not_in_set,
    refused,
    ungrammatical,
    unknown,
    wrong_type,
)
from tests.conformance.kit.server import json_lines
from tests.conformance.kit.subject import Subject


def _query(server: Subject, path: str, **query: str) -> httpx.Response:
    return server.http.get(path, params=query)


_LISTS = {"files": 10_000, "batches": 100, "webhook_endpoints": 100}


@case(
    "3.33",
    "GET /{path} with a limit above the largest",
    also=["3.6"],
    rows=[{"path": p} for p in _LISTS],
)
def a_limit_too_large(server: Subject, path: str) -> None:
    most = _LISTS[path]
    response = _query(server, path, limit=str(most + 1))
    ungrammatical(response, above("limit", most, most + 1))


@case("3.34", "GET /{path} with a limit of -1", also=["3.5"], rows=[{"path": p} for p in _LISTS])
def a_limit_too_small(server: Subject, path: str) -> None:
    like = "Invalid 'limit': integer below minimum value\\. Expected a value >= [01], but got -1 instead\\."
    response = _query(server, path, limit="-1")
    refused(response, 400, code="integer_below_min_value", param="limit", like=like)


@case(
    "3.3",
    "GET /{path}?limit={value}",
    rows=[{"path": p, "value": v} for p in _LISTS for v in ("ten", "1.5", "")],
)
def a_limit_that_is_no_number(server: Subject, path: str, value: str) -> None:
    ungrammatical(_query(server, path, limit=value), wrong_type("limit", "an integer", value))


@case("3.4", "GET /files?order=newest")
def an_order_that_is_none(server: Subject) -> None:
    ungrammatical(
        _query(server, "files", order="newest"), not_in_set("order", "newest", ["asc", "desc"])
    )


_PARAM = "expires_after"
_FORM: tuple[tuple[str, str, str, Callable[[], tuple[str, str, str]]], ...] = (
    ("3.1", "created_at", "", lambda: missing(f"{_PARAM}.seconds")),
    ("3.1", "", "3600", lambda: missing(f"{_PARAM}.anchor")),
    ("3.3", "created_at", "soon", lambda: wrong_type(f"{_PARAM}.seconds", "an integer", "soon")),
    ("3.3", "created_at", "3600.5", lambda: wrong_type(f"{_PARAM}.seconds", "an integer", "")),
    ("3.4", "now", "3600", lambda: not_in_set(f"{_PARAM}.anchor", "now", ["created_at"])),
    ("3.5", "created_at", "3599", lambda: below(f"{_PARAM}.seconds", 3600, 3599)),
    ("3.6", "created_at", "2592001", lambda: above(f"{_PARAM}.seconds", 2_592_000, 2_592_001)),
)


def _form_case(
    fact: str, anchor: str, seconds: str, fault: Callable[[], tuple[str, str, str]]
) -> None:
    @case(fact, f"POST /files, a form: anchor '{anchor}', seconds '{seconds}'", also=["1.27"])
    def a_wrong_life(server: Subject) -> None:
        given = {"expires_after[anchor]": anchor, "expires_after[seconds]": seconds}
        fields = {name: value for name, value in given.items() if value}
        ungrammatical(server.send_file(json_lines(server.line()), fields=fields), fault())


for _row in _FORM:
    _form_case(*_row)


@case("3.2", "POST /files with a field that nobody knows")
def an_unknown_field(server: Subject) -> None:
    ungrammatical(
        server.send_file(json_lines(server.line()), fields={"colour": "red"}), unknown("colour")
    )
