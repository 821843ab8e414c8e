"""The body that a server gets when it knows the model by another name."""

import json

import pytest

from worker.router import rename_model


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b'{"model":"m"}', b'{"model": "new"}'),
        (b'{"a": 1, "model": "m", "b": 2}', b'{"a": 1, "model": "new", "b": 2}'),
        # No number is altered, and no string: not even where it is odd.
        (
            b'{"model":"m","n":123456789012345678901234567890.10,"e":1E400,"z":-0.0,"s":"\\u00e9\\/"}',
            (
                b'{"model": "new", "n": 123456789012345678901234567890.10, "e": 1E400, "z": -0.0,'
                b' "s": "\\u00e9\\/"}'
            ),
        ),
        # Only the member of the body itself.
        (
            b'{"x": {"model": "m"}, "model": "m", "tools": [ {"model":"m"} ]}',
            b'{"x": {"model": "m"}, "model": "new", "tools": [ {"model":"m"} ]}',
        ),
        # The last of two counts, and is the one that is sent.
        (b'{"model": "a", "x": 1, "model": "b"}', b'{"model": "new", "x": 1}'),
        (b'{"mod\\u0065l": "m", "x": 1}', b'{"model": "new", "x": 1}'),
        (b'{"model": "a", "mod\\u0065l": "b"}', b'{"model": "new"}'),
        (
            b'{"\\"model": 1, "model\\"": 2, "model": "m"}',
            b'{"\\"model": 1, "model\\"": 2, "model": "new"}',
        ),
        (
            b'{"x": "\\"model\\": \\"m\\"", "model": "m"}',
            b'{"x": "\\"model\\": \\"m\\"", "model": "new"}',
        ),
        ('{"é": "ü", "model": "m"}'.encode(), '{"é": "ü", "model": "new"}'.encode()),
        # A moderation may name none: then the server has the choice, as before.
        (b'{ "input" :1}', b'{ "input" :1}'),
        (b"{}", b"{}"),
    ],
)
def test_only_the_model_is_another(body: bytes, sent: bytes) -> None:
    assert rename_model(body, "new") == sent
    json.loads(sent)


def test_a_name_with_quotes_stays_one() -> None:
    name = 'a"b\\c é'
    assert json.loads(rename_model(b'{"model": "m", "x": 1}', name)) == {"model": name, "x": 1}
