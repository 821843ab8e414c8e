"""The endpoints that generate text: chat completions, completions and responses.

Each answer is the endpoint's full object, with every field the official SDK's types require.
"""

import time
from collections.abc import Sequence
from typing import Any

import orjson

from cli.simulator import refusal
from cli.simulator.answer import Answer, template
from cli.simulator.body import read_inputs, read_integer, required_list
from cli.simulator.refusal import Refusal
from cli.simulator.schema import minimal_instance
from cli.simulator.settings import SimulatorSettings
from cli.simulator.text import conversation, count_tokens, digest, reply

MOST_CHOICES = 128

_USAGE = {
    "prompt_tokens": "%d",
    "completion_tokens": "%d",
    "total_tokens": "%d",
    "prompt_tokens_details": {"cached_tokens": "%d", "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
# Written into templates rather than built from dictionaries: half the cost of a call otherwise.
_CHAT_COMPLETION = template(
    {
        "id": "chatcmpl-%b",
        "object": "chat.completion",
        "created": "%d",
        "model": "%b",
        "choices": ["%b"],
        "usage": _USAGE,
        "service_tier": "default",
        "system_fingerprint": "fp_simulated",
    }
)
_CHAT_CHOICE = template(
    {
        "index": "%d",
        "message": {"role": "assistant", "content": "%b", "refusal": None, "annotations": []},
        "logprobs": None,
        "finish_reason": "stop",
    }
)
_TEXT_COMPLETION = template(
    {
        "id": "cmpl-%b",
        "object": "text_completion",
        "created": "%d",
        "model": "%b",
        "choices": ["%b"],
        "usage": _USAGE,
        "system_fingerprint": "fp_simulated",
    }
)
_TEXT_CHOICE = template({"index": "%d", "text": "%b", "logprobs": None, "finish_reason": "stop"})


def chat_completion(
    body: dict[str, Any], settings: SimulatorSettings, cached_tokens: int
) -> Answer:
    """Answer the last user message, in JSON where `response_format` asks for it."""
    prompt, characters = conversation(required_list(body, "messages"))
    form = body.get("response_format")
    schema = form.get("json_schema") if isinstance(form, dict) else None
    mark = digest(prompt)
    texts = [
        _structured(reply(prompt, mark, settings.reply_bytes, index), form, schema)
        for index in range(read_integer(body, "n", 1, MOST_CHOICES))
    ]
    return _written(_CHAT_COMPLETION, _CHAT_CHOICE, body, mark, characters, cached_tokens, texts)


def text_completion(
    body: dict[str, Any], settings: SimulatorSettings, cached_tokens: int
) -> Answer:
    """Continue each prompt, `n` times."""
    prompts = read_inputs(body, "prompt")
    marks = [digest(prompt) for prompt in prompts]
    count = read_integer(body, "n", 1, MOST_CHOICES)
    texts = [
        reply(prompt, mark, settings.reply_bytes, index)
        for prompt, mark in zip(prompts, marks, strict=True)
        for index in range(count)
    ]
    characters = sum(map(len, prompts))
    return _written(
        _TEXT_COMPLETION, _TEXT_CHOICE, body, marks[0], characters, cached_tokens, texts
    )


def response(body: dict[str, Any], settings: SimulatorSettings, cached_tokens: int) -> Answer:
    """Answer the last user input, in JSON where `text.format` asks for it."""
    prompt, characters = _asked(body)
    text_settings = body.get("text")
    form = text_settings.get("format") if isinstance(text_settings, dict) else None
    mark, now = digest(prompt), int(time.time())
    text = _structured(reply(prompt, mark, settings.reply_bytes, 0), form, form)
    tokens_in, tokens_out = max(1, characters // 4), count_tokens(text)
    content = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    message = {
        "id": f"msg_{mark}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [content],
    }
    said = {
        "id": f"resp_{mark}",
        "object": "response",
        "created_at": now,
        "completed_at": now,
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "model": body["model"],
        "output": [message],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": body.get("temperature", 1.0),
        "text": {"format": form or {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": {
            "input_tokens": tokens_in,
            "input_tokens_details": {
                "cached_tokens": min(cached_tokens, tokens_in),
                "cache_write_tokens": 0,
            },
            "output_tokens": tokens_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens_in + tokens_out,
        },
        "metadata": body.get("metadata") or {},
    }
    return Answer(orjson.dumps(said), tokens_out, tokens_in)


def _asked(body: dict[str, Any]) -> tuple[str, int]:
    asked = body.get("input")
    if isinstance(asked, str):
        return asked, len(asked)
    if asked is not None and not isinstance(asked, list):
        raise refusal.wrong_type("input", "a string or an array", asked)
    return conversation(required_list(body, "input"))


def _structured(text: str, form: Any, holder: Any) -> str:
    """The text, or JSON carrying it when the request asks for JSON; `holder` has the schema."""
    if not isinstance(form, dict):
        return text
    match form.get("type"):
        case "json_schema":
            if not isinstance(holder, dict) or not isinstance(holder.get("schema"), dict):
                raise refusal.missing("json_schema.schema")
            try:
                return orjson.dumps(minimal_instance(holder["schema"], text)).decode()
            except (ArithmeticError, AttributeError, RecursionError, TypeError) as error:
                raise Refusal(
                    400,
                    f"Invalid schema for response_format: {error}",
                    code="invalid_value",
                    param="response_format",
                ) from None
        case "json_object":
            return orjson.dumps({"simulated": text}).decode()
        case _:
            return text


def _written(
    whole: bytes,
    choice: bytes,
    body: dict[str, Any],
    mark: str,
    characters: int,
    cached_tokens: int,
    texts: Sequence[str],
) -> Answer:
    tokens_in, tokens_out = max(1, characters // 4), sum(map(count_tokens, texts))
    choices = [choice % (index, orjson.dumps(text)) for index, text in enumerate(texts)]
    written = whole % (
        mark.encode(),
        int(time.time()),
        orjson.dumps(body["model"]),
        b",".join(choices),
        tokens_in,
        tokens_out,
        tokens_in + tokens_out,
        cached_tokens and min(cached_tokens, tokens_in),
    )
    return Answer(written, tokens_out, tokens_in)
