"""What a model server's rate limit headers say, and that nothing which they hold does harm."""

import random
from datetime import UTC, datetime

import pytest

from worker.flow.rate_headers import RateHint, read_rate_headers, read_wait

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def headers_of(
    kind: str, *, limit: str = "", remaining: str = "", reset: str = ""
) -> dict[str, str]:
    named = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{name}-{kind}": value for name, value in named.items() if value}


def test_both_limits_of_one_answer() -> None:
    headers = headers_of("requests", limit="60", remaining="59", reset="1s") | headers_of(
        "tokens", limit="150000", remaining="149984", reset="6m0s"
    )
    assert read_rate_headers(headers | {"content-type": "x"}, now=NOW) == RateHint(
        requests_remaining=59,
        requests_per_second=1.0,
        requests_reset_seconds=1.0,
        tokens_remaining=149984,
        tokens_per_second=16 / 360,
        tokens_reset_seconds=360.0,
    )


def test_one_limit_may_stand_alone() -> None:
    assert read_rate_headers({}, now=NOW) is None
    headers = headers_of("tokens", limit="100", remaining="0", reset="50s")
    assert read_rate_headers(headers, now=NOW) == RateHint(
        tokens_remaining=0, tokens_per_second=2.0, tokens_reset_seconds=50.0
    )


@pytest.mark.parametrize(
    ("limit", "remaining", "reset"),
    [
        ("60", "60", "1s"),
        ("60", "70", "1s"),
        ("60", "10", "0s"),
        ("60", "10", "soon"),
        ("60", "10", ""),
        ("", "0", "1s"),
        ("60", "", "1s"),
        ("many", "0", "1s"),
    ],
)
def test_a_limit_that_does_not_show_its_rate_says_nothing(
    limit: str, remaining: str, reset: str
) -> None:
    bad = headers_of("requests", limit=limit, remaining=remaining, reset=reset)
    assert read_rate_headers(bad, now=NOW) is None
    good = headers_of("tokens", limit="9", remaining="8", reset="1")
    hint = read_rate_headers(bad | good, now=NOW)
    assert hint is not None
    assert (hint.requests_remaining, hint.tokens_remaining) == (None, 8)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("120ms", 0.12),
        ("1h2m3.5s", 3723.5),
        ("1d", 86400.0),
        ("2m59.56s", 179.56),
        ("250us", 0.00025),
        ("10", 10.0),
        (" 7.5 ", 7.5),
        ("0", 0.0),
        ("2026-11-23T12:01:30Z", 90.0),
        ("2026-11-23T13:00:10+01:00", 10.0),
        ("2026-11-23T12:00:10", 10.0),
        ("2026-11-23T11:00:00Z", 0.0),
        (str(int(NOW.timestamp()) + 30), 30.0),
        (str((int(NOW.timestamp()) + 30) * 1000), 30.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("-5s", None),
        ("1s2", None),
        ("s", None),
        ("nan", None),
        ("inf", None),
        ("1e9", None),
        ("9999-12-31T23:59:59Z", None),
        ("0001-01-01T00:00:00+23:59", 0.0),
        ("999999999h", None),
        ("٣s", None),
        ("1" * 10_000, None),
        (None, None),
    ],
)
def test_a_time_until_the_reset(text: str | None, seconds: float | None) -> None:
    found = read_wait(text, now=NOW)
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("text", "count"),
    [("5", 5), ("5.9", 5), (" 5 ", 5), ("-3", 0), ("five", None), ("", None), ("1" * 99, None)],
)
def test_what_remains(text: str, count: int | None) -> None:
    hint = read_rate_headers(headers_of("tokens", limit="9", remaining=text, reset="1s"), now=NOW)
    assert (None if hint is None else hint.tokens_remaining) == count


def test_garbage_raises_nothing() -> None:
    chance = random.Random(4)
    for _ in range(2000):
        text = "".join(chance.choices("0123456789.-+:TZhmsd eµn\0é٣", k=chance.randint(0, 24)))
        for kind in ("requests", "tokens"):
            limit, reset = chance.choice([text, "1" * 18]), chance.choice([text, "1s"])
            hint = read_rate_headers(headers_of(kind, limit=limit, remaining=text, reset=reset))
            if hint is not None:
                waits = (hint.requests_reset_seconds, hint.tokens_reset_seconds)
                assert all(0 <= wait <= 31 * 86400 for wait in waits)
