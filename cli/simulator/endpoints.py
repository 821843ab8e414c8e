"""What the simulated model says: from a request's body to the endpoint's finished answer.

Pure: no clock but the `created` field, no randomness, no state. Videos, which take their time, are
kept by the `Videos` that is given, prompt prefixes by the `Prefixes`. A body the real API would
refuse raises `Refusal`.
"""

from collections.abc import Callable
from typing import Any

import orjson

from cli.simulator import refusal
from cli.simulator.answer import Answer
from cli.simulator.body import check_model
from cli.simulator.generation import chat_completion, response, text_completion
from cli.simulator.images import image_edit, image_generation
from cli.simulator.prefixes import Prefixes, prefix_of
from cli.simulator.refusal import Refusal
from cli.simulator.scoring import embeddings, moderation
from cli.simulator.settings import SERVED_BY_DEFAULT, SimulatorSettings
from cli.simulator.videos import Videos

_CREATED = 1_750_000_000


_GENERATED: dict[str, Callable[[dict[str, Any], SimulatorSettings, int], Answer]] = {
    "/v1/chat/completions": chat_completion,
    "/v1/completions": text_completion,
    "/v1/responses": response,
}
_ANSWERED_AT_ONCE: dict[str, Callable[[dict[str, Any], SimulatorSettings], Answer]] = {
    "/v1/embeddings": embeddings,
    "/v1/moderations": moderation,
    "/v1/images/edits": image_edit,
    "/v1/images/generations": image_generation,
}
VIDEOS = "/v1/videos"
ENDPOINTS = frozenset({*_GENERATED, *_ANSWERED_AT_ONCE, VIDEOS})
_WITH_A_DEFAULT_MODEL = frozenset(
    {"/v1/moderations", "/v1/images/edits", "/v1/images/generations", VIDEOS}
)


def answer_call(
    path: str, raw: bytes, settings: SimulatorSettings, videos: Videos, prefixes: Prefixes
) -> Answer:
    """Answer a POST to one of the `ENDPOINTS`."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise Refusal(400, "We could not parse the JSON body of your request.") from None
    if not isinstance(body, dict):
        raise Refusal(400, "The body of your request must be a JSON object.")
    if path not in _WITH_A_DEFAULT_MODEL or body.get("model") is not None:
        check_model(body, settings)
    if body.get("stream"):
        raise Refusal(
            400,
            "The simulated server does not stream.",
            code="unsupported_value",
            param="stream",
        )
    generate = _GENERATED.get(path)
    if generate is not None:
        if not settings.prefix_cache:
            return generate(body, settings, 0)
        prefix = prefix_of(body)
        is_hit = prefixes.look_up(prefix, settings.prefix_cache)
        said = generate(body, settings, max(1, len(prefix) // 4) if is_hit else 0)
        return said._replace(is_prefix_hit=is_hit)
    if path == VIDEOS:
        is_doomed = has_marker(settings.video_fail_marker, raw)
        return videos.begin(body, settings, is_doomed=is_doomed)
    return _ANSWERED_AT_ONCE[path](body, settings)


def has_marker(marker: str | None, raw: bytes) -> bool:
    """Whether a body carries the word that decides its fate."""
    return marker is not None and marker.encode() in raw


def list_models(settings: SimulatorSettings) -> Answer:
    """The list of the models served."""
    names = settings.models or SERVED_BY_DEFAULT
    return Answer(orjson.dumps({"object": "list", "data": [_model(name) for name in names]}))


def one_model(name: str, settings: SimulatorSettings) -> Answer:
    """One model; when no names were given, any name has one."""
    if settings.models and name not in settings.models:
        raise refusal.unknown_model(name)
    return Answer(orjson.dumps(_model(name)))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": "simulated"}
