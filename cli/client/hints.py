"""What to do about a fault of an input file, in a sentence for each. Pure.

The faults and their words are the server's own (`models.lines`, `models.input_check`); this only adds
what somebody at a terminal can use, and the line's own text never appears in it.
"""

import json

from models.lines import LineError

_HINTS = {
    "duplicate_custom_id": "Give every request a custom_id of its own: it is how results are told apart.",
    "empty_file": "Write one request a line.",
    "invalid_method": 'Write "method": "POST".',
    "invalid_url": "A file is for one endpoint: put requests for another one into a file of their own,"
    " or name the endpoint with --endpoint.",
    "line_too_long": "Images and other data may be given by URL instead.",
    "mismatched_model": "A file is for one model: put requests for another one into a file of their own.",
    "model_not_found": "Name a model that the file of model servers has, or add it there.",
    "streaming_unsupported": 'Remove "stream", or make it false: the whole answer goes into the file.',
    "background_unsupported": 'Remove "background": a batch is in the background anyway.',
    "too_many_tasks": "Cut the file into several, such as with `split --lines`; `overnight run` takes"
    " several files.",
    "url_not_found": "Endpoints begin with /v1, such as /v1/chat/completions, with no host before it.",
}
_MISSING = {
    "custom_id": 'Add a name for the request, such as "custom_id": "request-1".',
    "method": 'Add "method": "POST".',
    "url": 'Add the endpoint, such as "url": "/v1/chat/completions".',
    "body": 'Put what the endpoint takes under "body": {"model": …}.',
}


def hint_for(error: LineError, raw: bytes | None) -> str | None:
    """What to do about it; `raw` is the line that it is about, if it is at hand."""
    if error.code == "invalid_json_line":
        return _json_hint(raw or b"")
    if error.code == "missing_required_parameter":
        if error.param in _MISSING:
            return _MISSING[error.param]
        return f'The endpoint wants it: add it inside of "body" ({error.param}).'
    if error.code == "invalid_request" and error.param == "body.model":
        return 'Say which model is asked: "body": {"model": "…", …}.'
    return _HINTS.get(error.code)


def _json_hint(raw: bytes) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw[:200]:
        return "The file seems to be UTF-16: save it as UTF-8."
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return f"Byte {error.start + 1:,} of the line is no UTF-8: save the file as UTF-8."
    text = text.strip()
    if text in {"{", "["} or text.startswith("["):
        return "One request a line, each an object of its own: no list around them, no line breaks inside."
    if text.endswith(","):
        return "Lines are not separated by commas: remove the one at the end."
    if not text.startswith("{"):
        return "Each line is a JSON object and begins with {. Is this a JSON Lines file at all?"
    if text.startswith("{'"):
        return "This is Python's notation: write lines with json.dumps(…)."
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        # Its words name no part of the text.
        return f"Character {error.pos + 1:,} of the line: {error.msg}."
    except RecursionError:
        return "It is nested too deeply."
    return "JSON knows neither NaN nor Infinity, and a line holds one object with named members."
