"""`overnight check`: try everything that this installation stands on, and say what to do.

Promises: changes nothing; never shows a password or a key; exits with 1 if anything is wrong. A
variable that nothing reads is pointed out, and is no more than a warning.
"""

import difflib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import redis
import typer
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from api.settings import ApiSettings
from cli.config import CONFIG_VARIABLE, ConfigOption
from cli.console import CommandError, explain_settings
from cli.limits import say_limits
from cli.revision import current_revision, newest_revision
from cli.tables import AsJson, show_json
from cli.trial import some, try_server
from models.settings import (
    BrokerSettings,
    DatabaseSettings,
    MetricsSettings,
    UpstreamSettings,
    WebhookSettings,
)
from models.upstreams import ModelServer
from worker.settings import ControlSettings, NotifySettings, RunSettings, ValidateSettings

_SECONDS = 5.0
_AT_ONCE = 16
_NOT_TRIED = "Not tried: its settings are wrong."
_SETTINGS: tuple[type[BaseSettings], ...] = (
    ApiSettings,
    DatabaseSettings,
    BrokerSettings,
    UpstreamSettings,
    ValidateSettings,
    RunSettings,
    ControlSettings,
    WebhookSettings,
    NotifySettings,
    MetricsSettings,
)
_PREFIX = "OVERNIGHT_"
# What no settings class reads: what the commands do, and what docker-compose.yml reads from the same
# .env file that it hands to the containers.
_OTHER_NAMES = frozenset({"DATA_DIR", "HOST", "LOG_FORMAT", "LOG_LEVEL", "PORT"})
_NAMES_OF_COMPOSE = frozenset({"BIND", "ENV_FILE", "STOP_GRACE", "VERSION"})


class Finding(NamedTuple):
    """One line of what is shown."""

    name: str
    words: str
    is_wrong: bool = False

    def as_object(self) -> dict[str, Any]:
        """For scripts; `overnight doctor` has the same form."""
        return {"name": self.name, "ok": not self.is_wrong, "words": self.words}


def check(config: ConfigOption = None, *, as_json: AsJson = False) -> None:
    """Try the settings, the database, the broker and the model servers."""
    if config is not None:
        os.environ[CONFIG_VARIABLE] = str(config)
    found = []
    for finding in findings():
        found.append(finding)
        if not as_json:
            typer.echo(f"{'✗' if finding.is_wrong else '✓'} {finding.name:<13} {finding.words}")
    warnings = [*_unknown_variables(), *_unused(), *_not_needed()]
    if as_json:
        show_json([each.as_object() for each in found] + [_as_object(each) for each in warnings])
    else:
        for warning in warnings:
            typer.echo(f"! {'Settings':<13} {warning}")
    if any(each.is_wrong for each in found):
        raise typer.Exit(1)


def _as_object(warning: str) -> dict[str, Any]:
    return {"name": "Settings", "ok": True, "words": warning, "warning": True}


def findings() -> Iterator[Finding]:
    """Try everything; what each trial found."""
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("Settings", _check_settings),
        ("Database", _check_database),
        ("Broker", _check_broker),
    )
    for name, look in checks:
        try:
            yield Finding(name, look())
        except CommandError as error:
            yield Finding(name, str(error), is_wrong=True)
        except ValidationError:
            yield Finding(name, _NOT_TRIED, is_wrong=True)
    try:
        yield from _try_servers()
    except ValidationError:
        yield Finding("Model server", _NOT_TRIED, is_wrong=True)


def _unused() -> Iterator[str]:
    """What is set and has no effect."""
    if os.environ.get(CONFIG_VARIABLE, "").strip():
        for field in UpstreamSettings.model_fields:
            name = f"{_PREFIX}{field.upper()}"
            if field.startswith("upstream_") and os.environ.get(name):
                yield f"{name} is not used: {CONFIG_VARIABLE} names a file of model servers, and it wins."


def _not_needed() -> Iterator[str]:
    """What somebody who only uses `overnight up` need not set."""
    names = ("OVERNIGHT_DATABASE_URL", "OVERNIGHT_REDIS_URL")
    if not any(os.environ.get(name) for name in names):
        yield (
            f"`overnight up` needs neither {' nor '.join(names)}: it brings a database and a broker"
            " of its own."
        )


def _check_settings() -> str:
    troubles = list(dict.fromkeys(_settings_troubles()))
    if troubles:
        raise CommandError(" ".join(troubles))
    return "All are there and make sense."


def _settings_troubles() -> Iterator[str]:
    for settings in _SETTINGS:
        try:
            settings()
        except ValidationError as error:
            yield from explain_settings(error)


def known_names() -> set[str]:
    """The names of all settings, without their prefix."""
    fields = {field.upper() for settings in _SETTINGS for field in settings.model_fields}
    return fields | _OTHER_NAMES | _NAMES_OF_COMPOSE


def _unknown_variables() -> Iterator[str]:
    known = known_names()
    for variable in sorted(os.environ):
        name = variable.upper().removeprefix(_PREFIX)
        if not variable.upper().startswith(_PREFIX) or name in known:
            continue
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {_PREFIX}{nearest[0]}?" if nearest else "."
        yield f"{variable} is not a setting{hint}"


def _check_database() -> str:
    settings = DatabaseSettings()
    found = current_revision(settings.database_url.get_secret_value())
    needed = newest_revision()
    if found != needed:
        raise CommandError(
            f"It answers, but its schema is {found or 'empty'} and this version needs {needed}:"
            " run `overnight migrate`."
        )
    return f"It answers and is up to date ({found})."


def _check_broker() -> str:
    # Celery writes a socket's URL its own way.
    url = BrokerSettings().redis_url.get_secret_value().replace("redis+socket://", "unix://", 1)
    try:
        with redis.Redis.from_url(
            url, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS
        ) as client:
            client.ping()
    except ValueError as error:
        raise CommandError(
            "OVERNIGHT_REDIS_URL is not a URL such as redis://host:6379/0."
        ) from error
    except redis.RedisError as error:
        raise CommandError(
            f"It does not answer ({error}). Is Redis or Valkey running, and is OVERNIGHT_REDIS_URL right?"
        ) from error
    return "It answers."


def _try_servers() -> Iterator[Finding]:
    """A finding for each model server; all are tried at once."""
    settings = UpstreamSettings()
    upstreams = settings.upstreams()
    name = "Model server"
    if settings.config is not None:
        models = some(list(upstreams.routes)) or "none by name"
        yield Finding(
            "Config",
            f"{settings.config} makes sense: servers {some(list(upstreams.servers))}; models {models}.",
        )

    def look(server: ModelServer) -> Finding:
        title = "" if settings.config is None else f"{server.name}: "
        place = (
            "OVERNIGHT_UPSTREAM_API_KEY"
            if settings.config is None
            else f"api_key_env or api_key_file in [upstreams.{server.name}]"
        )
        try:
            answer = try_server(server, upstreams, place_for_key=place)
            return Finding(name, f"{title}{answer}{say_limits(server, upstreams)}")
        except CommandError as error:
            return Finding(name, f"{title}{error}", is_wrong=True)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(look, upstreams.servers.values())
