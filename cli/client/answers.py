"""One line of results for a person: the answer's text, whatever endpoint it came from. Pure.

Promises: any server may have written the line, so nothing is taken for granted; what has no text is
shown as JSON.
"""

import json
from typing import Any

_SHOWN_CHARACTERS = 100
_EMPTY = "(an empty answer)"


def pretty(line: dict[str, Any], request: dict[str, Any] | None) -> str:
    """A result laid out for reading: what it is, what was used, what was asked, and the answer."""
    response = _object(line.get("response"))
    body = response.get("body")
    usage = _object(_object(body).get("usage"))
    head = [f"{line.get('custom_id')}  {_status(line)}"]
    tokens_in = usage.get("prompt_tokens", usage.get("input_tokens"))
    tokens_out = usage.get("completion_tokens", usage.get("output_tokens"))
    if tokens_in is not None or tokens_out is not None:
        head.append(f"{tokens_in or 0:,} tokens in, {tokens_out or 0:,} out")
    if model := _object(body).get("model"):
        head.append(str(model))
    error, text = _error(line), text_of(body)
    shown = error or (_laid_out(body) if text is None else text or _EMPTY)
    asked = "(its file is gone)" if request is None else _asked(request.get("body"))
    return f"{', '.join(head)}\n\nRequest\n{asked}\n\n{'Error' if error else 'Answer'}\n{shown}"


def beginning_of(raw: bytes) -> str:
    """A result in one short line."""
    try:
        line = _object(json.loads(raw))
    except ValueError:
        return raw[:_SHOWN_CHARACTERS].decode(errors="replace")
    body = _object(line.get("response")).get("body")
    words = _error(line) or text_of(body)
    if words is None:
        words = json.dumps(body, ensure_ascii=False)
    words = " ".join(words.split()) or _EMPTY
    if len(words) > _SHOWN_CHARACTERS:
        words = f"{words[:_SHOWN_CHARACTERS]}…"
    return f"{line.get('custom_id')}  {_status(line)}  {words}"


def text_of(body: object) -> str | None:
    """The text of an answer of chat completions, completions or responses, if it has one."""
    found = _object(body)
    texts = []
    for choice in _list(found.get("choices")):
        message = _object(choice.get("message"))
        texts += [message.get("content"), choice.get("text")]
    for item in _list(found.get("output")):
        texts += [part.get("text") for part in _list(item.get("content"))]
    said = [each for each in texts if isinstance(each, str)]
    return "\n\n".join(filter(None, said)) if said else None


def _asked(body: object) -> str:
    """A request's body: messages of text as a conversation, anything else as JSON."""
    found = dict(_object(body))
    messages = _list(found.get("messages"))
    if not messages or not all(isinstance(each.get("content"), str) for each in messages):
        return _laid_out(body)
    del found["messages"]
    said = [f"{each.get('role')}: {each['content']}" for each in messages]
    return "\n".join([json.dumps(found, ensure_ascii=False), *said])


def _laid_out(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _status(line: dict[str, Any]) -> str:
    response = _object(line.get("response"))
    if response:
        return str(response.get("status_code"))
    return str(_object(line.get("error")).get("code") or "no answer")


def _error(line: dict[str, Any]) -> str | None:
    body = _object(_object(line.get("response")).get("body"))
    error = _object(line.get("error")) or _object(body.get("error"))
    return str(error.get("message") or json.dumps(error)) if error else None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
