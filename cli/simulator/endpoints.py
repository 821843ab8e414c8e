"""What the simulated model says: from a request's body to the endpoint's finished answer.

Pure: no clock but the `created` field, no randomness, no state. A body the real API would refuse
raises `Refusal`.
"""

from collections.abc import Callable
from typing import Any

import orjson

from cli.simulator import refusal
from cli.simulator.answer import Answer
from cli.simulator.body import check_model
from cli.simulator.generation import chat_completion, response, text_completion
from cli.simulator.refusal import Refusal
from cli.simulator.scoring import embeddings, moderation
from cli.simulator.settings import SERVED_BY_DEFAULT, SimulatorSettings

_CREATED = 1_750_000_000


ENDPOINTS: dict[str, Callable[[dict[str, Any], SimulatorSettings], Answer]] = {
    "/v1/chat/completions": chat_completion,
    "/v1/completions": text_completion,
    "/v1/embeddings": embeddings,
    "/v1/moderations": moderation,
    "/v1/responses": response,
}


def answer_call(path: str, raw: bytes, settings: SimulatorSettings) -> Answer:
    """Answer a POST to one of the `ENDPOINTS`."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise Refusal(400, "We could not parse the JSON body of your request.") from None
    if not isinstance(body, dict):
        raise Refusal(400, "The body of your request must be a JSON object.")
    if path != "/v1/moderations" or body.get("model") is not None:
        check_model(body, settings)
    if body.get("stream"):
        raise Refusal(
            400,
            "The simulated server does not stream.",
            code="unsupported_value",
            param="stream",
        )
    return ENDPOINTS[path](body, settings)


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
