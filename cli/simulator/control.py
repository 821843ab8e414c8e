"""Changing how a simulated server behaves while it runs. For tests and demonstrations only."""

import dataclasses
from typing import Any

import orjson

from cli.simulator.refusal import Refusal
from cli.simulator.settings import SimulatorSettings

# By name in `/control`; the field bears another name in one case.
_FIELDS = {
    name: name
    for name in (
        "latency",
        "latency_sigma",
        "token_latency",
        "load_latency",
        "capacity",
        "over",
        "retry_after",
        "requests_per_minute",
        "tokens_per_minute",
        "prefix_miss_latency",
        "error_rate",
        "error_status",
        "drop_rate",
        "hang_rate",
        "down_mode",
    )
} | {"down": "outage"}


def change_settings(raw: bytes, settings: SimulatorSettings) -> bytes:
    """Take every value of a JSON object, or none of them; what holds now, as JSON."""
    try:
        asked = orjson.loads(raw)
    except orjson.JSONDecodeError:
        asked = None
    if not isinstance(asked, dict):
        raise Refusal(400, "The body must be a JSON object.")
    unknown = asked.keys() - _FIELDS.keys()
    if unknown:
        raise Refusal(400, f"Unknown: {', '.join(sorted(unknown))}. Known: {', '.join(_FIELDS)}.")
    changes: dict[str, Any] = {_FIELDS[name]: value for name, value in asked.items()}
    try:
        dataclasses.replace(settings, **changes)
    except ValueError as error:
        raise Refusal(400, f"{error}.") from None
    for field, value in changes.items():
        setattr(settings, field, value)
    return orjson.dumps({name: getattr(settings, field) for name, field in _FIELDS.items()})
