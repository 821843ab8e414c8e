"""Who is let through, and what the simulated server answers itself: all that is not a model call."""

import dataclasses
import random

import orjson

from cli.simulator import refusal
from cli.simulator.answer import Answer
from cli.simulator.connection import Exchange
from cli.simulator.control import change_settings
from cli.simulator.endpoints import VIDEOS, list_models, one_model
from cli.simulator.metrics import write_metrics
from cli.simulator.record import Record
from cli.simulator.refusal import Refusal
from cli.simulator.settings import SimulatorSettings
from cli.simulator.videos import Videos


class Closed(Exception):
    """The server is down, and says nothing."""


class Desk:
    """Answers about the server, its models and its videos."""

    def __init__(self, record: Record, videos: Videos, dice: random.Random) -> None:
        """Answer from these."""
        self._record = record
        self._videos = videos
        self._random = dice

    def answer(self, exchange: Exchange, settings: SimulatorSettings) -> Answer:
        """The answer; or a refusal, or `Closed`."""
        reply = self._answer_always(exchange, settings)
        if reply is not None:
            return reply
        method, path = exchange.method, exchange.path
        _check_outage(settings)
        if path == "/health":
            return Answer(b'{"status":"ok"}')
        if path == "/metrics" and settings.metrics is not None:
            record = self._record
            return write_metrics(settings, running=record.in_flight, waiting=record.queued)
        _check_key(exchange, settings)
        if method == "GET" and path == "/v1/models":
            return list_models(settings)
        if method == "GET" and path.startswith("/v1/models/"):
            return one_model(path.removeprefix("/v1/models/"), settings)
        if method == "GET" and path.startswith(f"{VIDEOS}/"):
            return self._poll(path.removeprefix(f"{VIDEOS}/"), settings)
        raise Refusal(404, f"Unknown request URL: {method} {path}.", code="unknown_url")

    def _answer_always(self, exchange: Exchange, settings: SimulatorSettings) -> Answer | None:
        """What is answered in an outage too; None for all else."""
        if exchange.path == "/stats":
            return Answer(orjson.dumps(dataclasses.asdict(self._record.stats())))
        if not settings.control or exchange.method != "POST":
            return None
        if exchange.path == "/stats/reset":
            _check_key(exchange, settings)
            return Answer(orjson.dumps(dataclasses.asdict(self._record.reset())))
        if exchange.path == "/control":
            _check_key(exchange, settings)
            return Answer(change_settings(exchange.body, settings))
        return None

    def _poll(self, rest: str, settings: SimulatorSettings) -> Answer:
        if settings.poll_error_rate and self._random.random() < settings.poll_error_rate:
            raise refusal.failure(settings.error_status)
        video_id, _, part = rest.partition("/")
        if part == "content":
            return self._videos.content(video_id)
        return self._videos.retrieve(rest)


def check_entry(exchange: Exchange, settings: SimulatorSettings) -> None:
    """The server is up, and the caller holds the key if there is one."""
    _check_outage(settings)
    _check_key(exchange, settings)


def _check_outage(settings: SimulatorSettings) -> None:
    if settings.outage:
        if settings.down_mode == "close":
            raise Closed
        raise refusal.failure(503)


def _check_key(exchange: Exchange, settings: SimulatorSettings) -> None:
    key = settings.api_key
    if key is not None and exchange.authorization != f"Bearer {key}".encode():
        raise Refusal(401, "Incorrect API key provided.", code="invalid_api_key")
