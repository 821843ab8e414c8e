"""The API's settings: what is refused at start, and in which words."""

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from api.auth import mask
from api.settings import ApiSettings
from api.windows import parse_duration


def settings(**values: Any) -> ApiSettings:
    return ApiSettings.model_validate({"api_key": "sk-a"} | values)


def test_what_the_contract_says_is_the_default() -> None:
    read = settings()
    assert read.windows() == {"24h": timedelta(hours=24)}
    assert read.file_retention() == timedelta(days=30)
    assert read.max_bytes_of("batch") == 200 * 1024**2
    assert read.max_bytes_of("fine-tune") == 512 * 1024**2
    assert read.max_bytes_of(None) == 512 * 1024**2
    assert read.unknown_parameters == "refuse"


def test_without_a_key_only_those_of_the_database_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ApiSettings().accepted_keys() == []
    monkeypatch.setenv("OVERNIGHT_API_KEY", "")
    assert ApiSettings().accepted_keys() == []


@pytest.mark.parametrize("key", [",", " , "])
def test_no_key_at_all(key: str) -> None:
    with pytest.raises(ValidationError, match="at least one key"):
        settings(api_key=key)


@pytest.mark.parametrize("key", ["two words", "schlüssel", "tab\tbed"])
def test_a_key_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(api_key=key)
    assert key not in str(caught.value)


def test_several_keys() -> None:
    assert settings(api_key="sk-a, sk-b,,sk-c").accepted_keys() == ["sk-a", "sk-b", "sk-c"]


def test_keys_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERNIGHT_API_KEY", "sk-a,sk-b")
    monkeypatch.setenv("OVERNIGHT_COMPLETION_WINDOWS", "24h,1h")
    read = ApiSettings.model_validate({})
    assert ApiSettings().accepted_keys() == ["sk-a", "sk-b"]
    assert list(read.windows()) == ["24h", "1h"]


def test_a_key_is_not_shown() -> None:
    assert "sk-very-secret" not in repr(settings(api_key="sk-very-secret"))


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("30s", timedelta(seconds=30)),
        ("15m", timedelta(minutes=15)),
        ("24h", timedelta(hours=24)),
        ("7d", timedelta(days=7)),
    ],
)
def test_a_duration(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize(
    "text", ["", "24", "h", "0h", "-1h", "1.5h", "24H", "24 h", "1w", "\u0661h"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    "windows",
    [
        "",
        ",",
        "24h,tomorrow",
        "1h 2h",
        "24h,-",
        "1h-",
        "-1h",
        "1h-2h-3h",
        "1h-any",
        "ANY",
        "any-1h",
    ],
)
def test_windows_that_cannot_be_read(windows: str) -> None:
    with pytest.raises(ValidationError, match="completion_windows"):
        settings(completion_windows=windows)


@pytest.mark.parametrize(
    ("windows", "sentence"),
    [
        ("9s", "'9s' is too short for a completion window: the shortest is 10s"),
        ("24h,5s-1h", "'5s' is too short for a completion window: the shortest is 10s"),
        ("366d", "'366d' is too long for a completion window: the longest is 365d"),
        ("1m-999999999d", "'999999999d' is too long for a completion window: the longest is 365d"),
        ("2h-1h", "'2h-1h' is no range: 2h is longer than 1h"),
    ],
)
def test_windows_that_no_batch_should_have(windows: str, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        settings(completion_windows=windows)


@pytest.mark.parametrize(
    ("windows", "allowed", "refused"),
    [
        ("24h", ["24h"], ["1440m", "1h", "any", ""]),
        ("24h, 7d", ["24h", "7d"], ["25h", "168h"]),
        ("any", ["10s", "90m", "24h", "365d", "60s"], ["9s", "366d", "any", "0h", "1.5h"]),
        ("24h,10s-1h", ["10s", "60m", "1h", "24h"], ["9s", "61m", "2h", "10s-1h"]),
        ("1h-1h", ["1h", "60m"], ["2h"]),
    ],
)
def test_what_windows_allow(windows: str, allowed: list[str], refused: list[str]) -> None:
    read = settings(completion_windows=windows).windows()
    assert [word in read for word in allowed] == [True] * len(allowed)
    assert [word in read for word in refused] == [False] * len(refused)
    assert all(read[word] == parse_duration(word) for word in allowed)


@pytest.mark.parametrize(
    ("windows", "supported"),
    [
        ("24h", "'24h'"),
        ("1h,24h,7d", "'1h', '24h', and '7d'"),
        ("any", "any duration from '10s' to '365d'"),
        ("24h,1m-2h", "'24h' and any duration from '1m' to '2h'"),
    ],
)
def test_the_words_for_a_window_that_is_refused(windows: str, supported: str) -> None:
    read = settings(completion_windows=windows).windows()
    assert read.refusal_of("1s") == f"Invalid value: '1s'. Supported values are: {supported}."


@pytest.mark.parametrize(
    ("key", "masked"),
    [
        ("sk-invalid-and-an-advantage", "sk-inval****tage"),
        ("short", "****"),
        ("sk-0123456789abcdef", "****"),
        ("sk-0123456789abcdefg", "sk-01234****defg"),
        ("nicht-ascii-" + "ü" * 20, "****"),
    ],
)
def test_a_masked_key(key: str, masked: str) -> None:
    assert mask(key) == masked
