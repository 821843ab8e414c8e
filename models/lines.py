"""The JSON lines of the contract: reading and judging input lines, rendering output lines. Pure.

Bytes in, bytes out: a body is cut out of its line and sent as it was written, and an answer goes
into its output line as it came, so that no number or string is altered on the way.

Sources: OpenAI's Batch guide and `openapi.yaml` (request and response objects), and the validation
codes observed on the live service or published by compatible ones.
"""

import codecs
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec
import orjson

from models.prefix import Prefix, prefix_of


class Endpoint(StrEnum):
    """The paths that a batch may call. A line can reach no other."""

    RESPONSES = "/v1/responses"
    CHAT_COMPLETIONS = "/v1/chat/completions"
    EMBEDDINGS = "/v1/embeddings"
    COMPLETIONS = "/v1/completions"
    MODERATIONS = "/v1/moderations"
    IMAGE_GENERATIONS = "/v1/images/generations"
    IMAGE_EDITS = "/v1/images/edits"
    VIDEOS = "/v1/videos"

    @property
    def upstream_path(self) -> str:
        """The path below a base URL that ends in `/v1`."""
        return self.value.removeprefix("/v1")


_TITLES = {
    Endpoint.RESPONSES: "Responses",
    Endpoint.CHAT_COMPLETIONS: "Chat Completions",
    Endpoint.EMBEDDINGS: "Embeddings",
    Endpoint.COMPLETIONS: "Completions",
    Endpoint.MODERATIONS: "Moderations",
    Endpoint.IMAGE_GENERATIONS: "Image Generations",
    Endpoint.IMAGE_EDITS: "Image Edits",
    Endpoint.VIDEOS: "Videos",
}
# The fields without which a call makes no sense, each with those that may stand in for it: a Responses
# call may name a stored prompt; a JSON image edit has `images` at OpenAI, and many servers take the
# `image` of its form instead.
_MAIN_INPUTS = {
    Endpoint.RESPONSES: (("input", "prompt"),),
    Endpoint.CHAT_COMPLETIONS: (("messages",),),
    Endpoint.EMBEDDINGS: (("input",),),
    Endpoint.COMPLETIONS: (("prompt",),),
    Endpoint.MODERATIONS: (("input",),),
    Endpoint.IMAGE_GENERATIONS: (("prompt",),),
    Endpoint.IMAGE_EDITS: (("prompt",), ("images", "image")),
    Endpoint.VIDEOS: (("prompt",),),
}
# The synchronous endpoints whose `model` is optional and has a default, by the types of openai 2.54
# (`moderation_create_params`, `image_generate_params`, `image_edit_params`, `video_create_params`).
_WITH_A_DEFAULT_MODEL = frozenset(
    {
        Endpoint.MODERATIONS,
        Endpoint.IMAGE_GENERATIONS,
        Endpoint.IMAGE_EDITS,
        Endpoint.VIDEOS,
    }
)
_JSON_TYPES: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    type(None): "null",
}
# The member that the prompt of a call is in. The other endpoints share no work between calls.
_PROMPTS = {
    Endpoint.RESPONSES: "input",
    Endpoint.CHAT_COMPLETIONS: "messages",
    Endpoint.COMPLETIONS: "prompt",
}
_BYTES_PER_TOKEN = 4
MAX_ECHO = 200
"""Longest piece of a client's own text that an error message repeats."""


def json_type(value: object) -> str:
    """The name of a JSON value's type, with its article, as OpenAI's messages have it.

    An object or an array may also be given as the bytes that it was written in.
    """
    if isinstance(value, bytes):
        return "an object" if _is_object(value) else "an array"
    return _JSON_TYPES[type(value)]


def invalid_type(param: str, expected: str, value: object) -> str:
    """The measured wording for a value of the wrong JSON type."""
    return f"Invalid type for '{param}': expected {expected}, but got {json_type(value)} instead."


@dataclass(frozen=True, slots=True)
class LineError:
    """One entry of `batch.errors.data`. `line` counts from 1; null for faults of the whole file."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None

    def as_dict(self) -> dict[str, str | int | None]:
        """The entry as the wire has it."""
        return {"code": self.code, "message": self.message, "param": self.param, "line": self.line}


@dataclass(slots=True)
class LineChecker:
    """Judges the lines of one file in order; knows the model and the custom ids seen so far.

    Each line gets at most one error: the first that its reader would have to mend.
    """

    endpoint: Endpoint
    model: str | None = None
    embedding_inputs: int = 0
    """Texts (or arrays of tokens) over all lines, which OpenAI limits as well as the lines."""

    prompt_tokens: int = 0
    """Of all lines, by a plain approximation: a token for every four bytes of a body, or begun four."""

    with_prefixes: bool = False
    """Whether to look for what the prompts have in common."""

    prefix: Prefix | None = None
    """That of the line that was checked last, if it was good; `None` if it has none to share."""

    _custom_ids: set[str] = field(default_factory=set)

    def check(self, raw: bytes, line_no: int) -> LineError | None:
        """The fault of line `line_no`, or `None` if it can run."""
        self.prefix = None
        try:
            _require_utf8(raw)
            line = _built(_decode_line(raw), _LINE_MEMBERS)
        except (ValueError, RecursionError):
            return LineError(
                "invalid_json_line", "This line is not parseable as valid JSON.", None, line_no
            )
        fault = self._envelope_fault(line)
        if fault is None:
            body = _decode_body(line["body"])
            members = _built(body, _JUDGED)
            fault = self._body_fault(members)
            if fault is None:
                self.prompt_tokens += -(-len(line["body"]) // _BYTES_PER_TOKEN)
                if self.with_prefixes:
                    self.prefix = _prefix(self.endpoint, body, members)
        return None if fault is None else LineError(*fault, line=line_no)

    def _envelope_fault(self, line: dict[str, Any]) -> tuple[str, str, str] | None:
        for name in ("custom_id", "method", "url", "body"):
            if line.get(name) is None:
                return "missing_required_parameter", f"Missing required parameter: '{name}'.", name
        for name in ("custom_id", "method", "url"):
            if not isinstance(line[name], str):
                return "invalid_type", invalid_type(name, "a string", line[name]), name
        if not _is_object(line["body"]):
            return "invalid_type", invalid_type("body", "an object", line["body"]), "body"
        if line["method"] != "POST":
            echo = line["method"][:MAX_ECHO]
            return (
                "invalid_method",
                f"Invalid value: '{echo}'. Supported values are: 'POST'.",
                "method",
            )
        if line["url"] != self.endpoint:
            return _url_fault(line["url"])
        custom_id = line["custom_id"]
        if custom_id in self._custom_ids:
            message = (
                f"The custom_id '{custom_id[:MAX_ECHO]}' for this request is a duplicate of another"
                " request. The custom_id parameter must be unique for each request in a batch."
            )
            return "duplicate_custom_id", message, "custom_id"
        self._custom_ids.add(custom_id)
        return None

    def _body_fault(self, body: dict[str, Any]) -> tuple[str, str, str] | None:
        if self.endpoint is Endpoint.EMBEDDINGS:
            self.embedding_inputs += _count_inputs(body.get("input"))
        return self._model_fault(body.get("model")) or _input_fault(self.endpoint, body)

    def _model_fault(self, model: object) -> tuple[str, str, str] | None:
        if model is None:
            if self.endpoint in _WITH_A_DEFAULT_MODEL:
                return None
            return "invalid_request", "Model parameter is required.", "body.model"
        if not isinstance(model, str):
            return "invalid_type", invalid_type("body.model", "a string", model), "body.model"
        if "\0" in model:
            # No server knows such a model, and Postgres cannot store its name.
            message = "Invalid 'body.model': it contains a NUL character."
            return "invalid_value", message, "body.model"
        if self.model is None:
            self.model = model
        if model != self.model:
            message = (
                f"The model '{model[:MAX_ECHO]}' for this request does not match the rest of the batch."
                " Each batch must contain requests for a single model."
            )
            return "mismatched_model", message, "body.model"
        return None


_ABSENT = msgspec.Raw()


class _Line(msgspec.Struct):
    """The members of a line, unparsed."""

    custom_id: msgspec.Raw = _ABSENT
    method: msgspec.Raw = _ABSENT
    url: msgspec.Raw = _ABSENT
    body: msgspec.Raw = _ABSENT


class _Body(msgspec.Struct):
    """The members of a body that are looked at, unparsed."""

    model: msgspec.Raw = _ABSENT
    stream: msgspec.Raw = _ABSENT
    background: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT
    images: msgspec.Raw = _ABSENT
    image: msgspec.Raw = _ABSENT
    # Not judged: what a server puts in front of the prompt.
    tools: msgspec.Raw = _ABSENT
    instructions: msgspec.Raw = _ABSENT


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_body = msgspec.json.Decoder(_Body).decode
_LINE_MEMBERS = _Line.__struct_fields__
_JUDGED = tuple(name for name in _Body.__struct_fields__ if name not in ("tools", "instructions"))


def _built(found: msgspec.Struct, names: tuple[str, ...]) -> dict[str, Any]:
    """The members of these names that a JSON object has.

    Strings, numbers and literals as they are; objects and arrays as the bytes that they are written
    in: a line of empty lists would take thirty times its size in memory.
    """
    members: dict[str, Any] = {}
    for name in names:
        value = getattr(found, name)
        if value is not _ABSENT:
            written = bytes(value)
            is_built = not written.startswith((b"{", b"["))
            members[name] = _plain(written) if is_built else written
    return members


def _prefix(endpoint: Endpoint, body: _Body, members: dict[str, Any]) -> Prefix | None:
    name = _PROMPTS.get(endpoint)
    if name is None:
        return None
    text = members.get(name)
    if not isinstance(text, bytes):
        text = bytes(getattr(body, name))
    if body.tools is _ABSENT and body.instructions is _ABSENT:
        return prefix_of(text)
    return prefix_of(text, before=bytes(body.tools) + bytes(body.instructions))


def _plain(written: bytes) -> object:
    try:
        return msgspec.json.decode(written)
    except msgspec.ValidationError:
        # A number too large for a float, such as 1e400: good JSON, and some server's business.
        return math.inf


def _is_object(value: object) -> bool:
    return isinstance(value, bytes) and value.startswith(b"{")


def _count_inputs(value: object) -> int:
    """How many texts an embeddings request holds: a text, texts, tokens, or arrays of tokens."""
    if not isinstance(value, bytes):
        return 1
    first = value[1:].lstrip()[:1]
    if first == b'"':
        return sum(1 for _ in _STRING.finditer(value))
    return value.count(b"[") - 1 if first == b"[" else 1


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def _require_utf8(raw: bytes) -> None:
    # msgspec checks the grammar of what it skips, but not its UTF-8. A long text is looked at in
    # pieces: decoded, it can be four times as long.
    if raw.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(raw), _PIECE_BYTES):
        decoder.decode(raw[start : start + _PIECE_BYTES])
    decoder.decode(b"", final=True)


_PIECE_BYTES = 1024 * 1024


def _url_fault(url: str) -> tuple[str, str, str]:
    if url in set(Endpoint):
        return (
            "invalid_url",
            "The URL provided for this request does not match the batch endpoint.",
            "url",
        )
    message = f"The provided url '{url[:MAX_ECHO]}' is not supported by the Batch API."
    return "url_not_found", message, "url"


def _input_fault(endpoint: Endpoint, body: dict[str, Any]) -> tuple[str, str, str] | None:
    title = _TITLES[endpoint]
    if body.get("stream") is True:
        message = f"{title}: Streaming is not supported in the Batch API."
        return "streaming_unsupported", message, "body.stream"
    if endpoint is Endpoint.RESPONSES and body.get("background") is True:
        message = f"{title}: Background mode is not supported in the Batch API."
        return "background_unsupported", message, "body.background"
    for names in _MAIN_INPUTS[endpoint]:
        if all(body.get(name) is None for name in names):
            return (
                "missing_required_parameter",
                f"Missing required parameter: '{names[0]}'.",
                f"body.{names[0]}",
            )
    return None


_decode_members: Callable[[bytes], dict[str, msgspec.Raw]] = msgspec.json.Decoder(
    dict[str, msgspec.Raw]
).decode


def is_json_object(raw: bytes) -> bool:
    """Whether these bytes are one JSON object: the light check that an upload gets.

    Its members are skipped, not built: 32 MB of empty lists would take twenty times that in memory.
    """
    try:
        _decode_members(raw)
    except (ValueError, RecursionError):
        return False
    return True


class InputLine(msgspec.Struct):
    """What a call needs of an input line; `body` is cut out unparsed."""

    custom_id: str
    body: msgspec.Raw


decode_input_line: Callable[[bytes], InputLine] = msgspec.json.Decoder(InputLine).decode


def custom_id_of(raw: bytes) -> str:
    """The custom id of a line that has passed `LineChecker`."""
    return _decode_custom_id(raw).custom_id


class _CustomId(msgspec.Struct):
    custom_id: str


_decode_custom_id = msgspec.json.Decoder(_CustomId).decode


def render_response(
    *, request_id: str, custom_id: str, status_code: int, response_id: str, body: bytes
) -> bytes:
    """An output line for an HTTP answer. `body` must be valid JSON with no raw line break in it."""
    return (
        b'{"id": "%b", "custom_id": %b, "response": {"status_code": %d, "request_id": %b,'
        b' "body": %b}, "error": null}\n'
        % (
            request_id.encode(),
            orjson.dumps(custom_id),
            status_code,
            orjson.dumps(response_id),
            body,
        )
    )


def render_failure(*, request_id: str, custom_id: str, code: str, message: str) -> bytes:
    """An output line for a request that got no HTTP answer."""
    return (
        b'{"id": "%b", "custom_id": %b, "response": null, "error": {"code": %b, "message": %b}}\n'
        % (
            request_id.encode(),
            orjson.dumps(custom_id),
            orjson.dumps(code),
            orjson.dumps(message),
        )
    )


def request_id_of(line: bytes) -> bytes:
    """The id that a line begins with which `render_response` or `render_failure` has written."""
    return line[len(_BEFORE_ID) : line.find(b'"', len(_BEFORE_ID))]


_BEFORE_ID = b'{"id": "'


BATCH_EXPIRED = (
    "batch_expired",
    "This request could not be executed before the completion window expired.",
)
BATCH_CANCELLED = (
    "batch_cancelled",
    "This request was not executed because the batch was cancelled.",
)
