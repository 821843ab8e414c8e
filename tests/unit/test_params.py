"""Every fault of a JSON body or a query, in OpenAI's words, and which one of several is told."""

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from api.grammar import listed, refusal_of
from api.params import CreateBatch, ExpiresAfter, ListBatches, ListFiles, validate_body
from models.errors import InvalidParameter

WINDOWS = {"24h": timedelta(hours=24)}
ENDPOINTS = (
    "'/v1/responses', '/v1/chat/completions', '/v1/embeddings', '/v1/completions',"
    " '/v1/moderations', '/v1/images/generations', '/v1/images/edits', and '/v1/videos'"
)


def body(**changes: Any) -> dict[str, Any]:
    good = {
        "input_file_id": "file-abc",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    return good | changes


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in body().items() if name not in names}


def validate(
    given: object, *, refuse_unknown: bool = True, windows: dict[str, timedelta] = WINDOWS
) -> CreateBatch:
    return validate_body(CreateBatch, given, refuse_unknown=refuse_unknown, windows=windows)


def fault_of(given: object, **options: Any) -> tuple[str | None, str | None, str]:
    with pytest.raises(InvalidParameter) as caught:
        validate(given, **options)
    return caught.value.code, caught.value.param, caught.value.message


def test_the_smallest_good_body() -> None:
    request = validate(body())
    assert request.input_file_id == "file-abc"
    assert request.metadata is None
    assert request.output_expires_after is None


@pytest.mark.parametrize("metadata", [None, {}, {"k": "v"}, {"": ""}, {"nul": "\0", "é": "☃"}])
def test_metadata_is_kept_as_sent(metadata: dict[str, str] | None) -> None:
    assert validate(body(metadata=metadata)).metadata == metadata


def test_metadata_may_be_as_large_as_the_contract_says() -> None:
    metadata = {f"{number:02}" + "k" * 62: "𝄞" * 512 for number in range(16)}
    assert validate(body(metadata=metadata)).metadata == metadata


@pytest.mark.parametrize("seconds", [3600, 2_592_000])
def test_an_output_life_within_bounds(seconds: int) -> None:
    life = {"anchor": "created_at", "seconds": seconds}
    request = validate(body(output_expires_after=life))
    assert request.output_expires_after == ExpiresAfter(anchor="created_at", seconds=seconds)


@pytest.mark.parametrize("name", ["input_file_id", "endpoint", "completion_window"])
def test_a_missing_parameter(name: str) -> None:
    message = f"Missing required parameter: '{name}'."
    assert fault_of(without(name)) == ("missing_required_parameter", name, message)


def test_an_unknown_parameter() -> None:
    message = "Unknown parameter: 'priority'."
    assert fault_of(body(priority=1)) == ("unknown_parameter", "priority", message)


def test_an_unknown_parameter_further_in() -> None:
    life = {"anchor": "created_at", "seconds": 3600, "minutes": 1}
    code, param, _ = fault_of(body(output_expires_after=life))
    assert (code, param) == ("unknown_parameter", "output_expires_after.minutes")


def test_unknown_parameters_can_be_ignored() -> None:
    life = {"anchor": "created_at", "seconds": 3600, "minutes": 1}
    given = body(priority=1, body=2, output_expires_after=life)
    request = validate(given, refuse_unknown=False)
    assert request.output_expires_after == ExpiresAfter(anchor="created_at", seconds=3600)


def test_ignoring_what_is_unknown_excuses_nothing_else() -> None:
    code, param, _ = fault_of(without("endpoint") | {"x": 1}, refuse_unknown=False)
    assert (code, param) == ("missing_required_parameter", "endpoint")


@pytest.mark.parametrize("name", ["input_file_id", "endpoint", "completion_window"])
@pytest.mark.parametrize(
    ("value", "got"),
    [
        (5, "an integer"),
        (1.5, "a number"),
        (True, "a boolean"),
        ([], "an array"),
        ({}, "an object"),
        (None, "null"),
    ],
)
def test_a_parameter_of_the_wrong_type(name: str, value: object, got: str) -> None:
    message = f"Invalid type for '{name}': expected a string, but got {got} instead."
    assert fault_of(body(**{name: value})) == ("invalid_type", name, message)


@pytest.mark.parametrize("endpoint", ["/v1/images/variations", "chat", "", "x" * 10_000])
def test_an_unsupported_endpoint(endpoint: str) -> None:
    message = f"Invalid value: '{endpoint[:200]}'. Supported values are: {ENDPOINTS}."
    assert fault_of(body(endpoint=endpoint)) == ("invalid_value", "endpoint", message)


@pytest.mark.parametrize("window", ["48h", "1h", "", "24H", "24h "])
def test_an_unsupported_window(window: str) -> None:
    message = f"Invalid value: '{window}'. Supported values are: '24h'."
    code_param_message = ("invalid_value", "completion_window", message)
    assert fault_of(body(completion_window=window)) == code_param_message


def test_other_windows_can_be_allowed() -> None:
    windows = {"1h": timedelta(hours=1), "7d": timedelta(days=7)}
    assert validate(body(completion_window="7d"), windows=windows).completion_window == "7d"
    message = fault_of(body(), windows=windows)[2]
    assert message == "Invalid value: '24h'. Supported values are: '1h' and '7d'."


def test_a_file_id_that_cannot_be_stored() -> None:
    code, param, _ = fault_of(body(input_file_id="file-\0"))
    assert (code, param) == ("invalid_value", "input_file_id")


def test_a_file_id_longer_than_any() -> None:
    message = (
        "Invalid 'input_file_id': string too long. Expected a string with maximum length 256,"
        " but got a string with length 257 instead."
    )
    expected = ("string_above_max_length", "input_file_id", message)
    assert fault_of(body(input_file_id="x" * 257)) == expected


@pytest.mark.parametrize("metadata", ["text", 5, [], True])
def test_metadata_of_the_wrong_type(metadata: object) -> None:
    code, param, message = fault_of(body(metadata=metadata))
    assert (code, param) == ("invalid_type", "metadata")
    assert message.startswith("Invalid type for 'metadata': expected an object, but got a")


def test_metadata_with_too_many_pairs() -> None:
    message = (
        "Invalid 'metadata': too many properties. Expected an object with at most 16 properties,"
        " but got an object with 17 properties instead."
    )
    metadata = {str(number): "v" for number in range(17)}
    expected = ("object_above_max_properties", "metadata", message)
    assert fault_of(body(metadata=metadata)) == expected


def test_metadata_with_a_long_key() -> None:
    key = "k" * 65
    message = (
        f"Invalid property name in 'metadata': '{key}' is too long. Expected a string with maximum"
        " length 64, but got a string with length 65 instead."
    )
    expected = ("property_name_above_max_length", f"metadata.{key}", message)
    assert fault_of(body(metadata={key: "v"})) == expected


def test_metadata_with_a_long_value() -> None:
    message = (
        "Invalid 'metadata.k': string too long. Expected a string with maximum length 512, but got"
        " a string with length 513 instead."
    )
    expected = ("string_above_max_length", "metadata.k", message)
    assert fault_of(body(metadata={"k": "v" * 513})) == expected


@pytest.mark.parametrize(
    ("value", "got"), [(["a"], "an array"), (1, "an integer"), (None, "null"), ({}, "an object")]
)
def test_metadata_with_a_value_that_is_no_string(value: object, got: str) -> None:
    message = f"Invalid type for 'metadata.tags': expected a string, but got {got} instead."
    expected = ("invalid_type", "metadata.tags", message)
    assert fault_of(body(metadata={"tags": value})) == expected


LIFE = {"anchor": "created_at", "seconds": 3600}


@pytest.mark.parametrize(
    ("life", "code", "param", "message"),
    [
        (
            {"anchor": "created_at"},
            "missing_required_parameter",
            "output_expires_after.seconds",
            "Missing required parameter: 'output_expires_after.seconds'.",
        ),
        (
            {"seconds": 3600},
            "missing_required_parameter",
            "output_expires_after.anchor",
            "Missing required parameter: 'output_expires_after.anchor'.",
        ),
        (
            LIFE | {"anchor": "last_active_at"},
            "invalid_value",
            "output_expires_after.anchor",
            "Invalid value: 'last_active_at'. Supported values are: 'created_at'.",
        ),
        (
            LIFE | {"anchor": 1},
            "invalid_type",
            "output_expires_after.anchor",
            (
                "Invalid type for 'output_expires_after.anchor': expected a string, but got an integer"
                " instead."
            ),
        ),
        (
            LIFE | {"seconds": 3599},
            "integer_below_min_value",
            "output_expires_after.seconds",
            (
                "Invalid 'output_expires_after.seconds': integer below minimum value. Expected a value"
                " >= 3600, but got 3599 instead."
            ),
        ),
        (
            LIFE | {"seconds": 2_592_001},
            "integer_above_max_value",
            "output_expires_after.seconds",
            (
                "Invalid 'output_expires_after.seconds': integer above maximum value. Expected a value"
                " <= 2592000, but got 2592001 instead."
            ),
        ),
        (
            LIFE | {"seconds": "3600"},
            "invalid_type",
            "output_expires_after.seconds",
            (
                "Invalid type for 'output_expires_after.seconds': expected an integer, but got a string"
                " instead."
            ),
        ),
        (
            LIFE | {"seconds": 3600.0},
            "invalid_type",
            "output_expires_after.seconds",
            (
                "Invalid type for 'output_expires_after.seconds': expected an integer, but got a number"
                " instead."
            ),
        ),
        (
            "24h",
            "invalid_type",
            "output_expires_after",
            (
                "Invalid type for 'output_expires_after': expected an object, but got a string"
                " instead."
            ),
        ),
    ],
)
def test_a_wrong_output_life(life: object, code: str, param: str, message: str) -> None:
    assert fault_of(body(output_expires_after=life)) == (code, param, message)


@pytest.mark.parametrize(("given", "got"), [([], "an array"), ("x", "a string"), (None, "null")])
def test_a_body_that_is_no_object(given: object, got: str) -> None:
    message = f"Invalid type for 'body': expected an object, but got {got} instead."
    assert fault_of(given) == ("invalid_type", None, message)


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        ({"endpoint": 5, "extra": 1}, "missing_required_parameter", "input_file_id"),
        (body(endpoint=5, extra=1), "unknown_parameter", "extra"),
        (body(endpoint="/nowhere", input_file_id=5), "invalid_type", "input_file_id"),
        (body(endpoint="/nowhere", metadata={"k": 1}), "invalid_type", "metadata.k"),
        (body(endpoint="/nowhere", completion_window="1h"), "invalid_value", "endpoint"),
    ],
)
def test_of_several_faults_one_is_told(given: object, code: str, param: str) -> None:
    assert fault_of(given)[:2] == (code, param)


@pytest.mark.parametrize(
    ("model", "query", "code", "message"),
    [
        (
            ListBatches,
            {"limit": "101"},
            "integer_above_max_value",
            (
                "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101"
                " instead."
            ),
        ),
        (
            ListBatches,
            {"limit": "-1"},
            "integer_below_min_value",
            (
                "Invalid 'limit': integer below minimum value. Expected a value >= 0, but got -1"
                " instead."
            ),
        ),
        (
            ListBatches,
            {"limit": "ten"},
            "invalid_type",
            "Invalid type for 'limit': expected an integer, but got a string instead.",
        ),
        (
            ListFiles,
            {"limit": "10001"},
            "integer_above_max_value",
            (
                "Invalid 'limit': integer above maximum value. Expected a value <= 10000, but got 10001"
                " instead."
            ),
        ),
        (
            ListFiles,
            {"order": "newest"},
            "invalid_value",
            "Invalid value: 'newest'. Supported values are: 'asc' and 'desc'.",
        ),
    ],
)
def test_a_wrong_query(
    model: type[ListBatches | ListFiles], query: dict[str, str], code: str, message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(query)
    refusal = refusal_of(caught.value.errors())
    assert (refusal.code, refusal.message) == (code, message)
    assert refusal.param == next(iter(query))


@pytest.mark.parametrize(
    ("words", "text"),
    [("a", "'a'"), ("ab", "'a' and 'b'"), ("abc", "'a', 'b', and 'c'")],
)
def test_a_list_of_words(words: str, text: str) -> None:
    assert listed(list(words)) == text
