"""`overnight check`: try everything that this installation stands on, and say what to do.

Promises: changes nothing; never shows a password or a key; exits with 1 if anything is wrong. A
variable that nothing reads is pointed out, and is no more than a warning.
"""

import difflib
import os
from collections.abc import Callable, Iterator

import httpx
import redis
import typer
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from api.settings import ApiSettings
from cli.address import shown_url
from cli.console import CommandError, explain_settings
from cli.revision import current_revision, newest_revision
from models.settings import BrokerSettings, DatabaseSettings, UpstreamSettings, WebhookSettings
from worker.settings import ControlSettings, NotifySettings, RunSettings, ValidateSettings

_SECONDS = 5.0
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
)
_PREFIX = "OVERNIGHT_"
# What no settings class reads: what the commands do, and what docker-compose.yml reads from the same
# .env file that it hands to the containers.
_OTHER_NAMES = frozenset({"DATA_DIR", "HOST", "LOG_LEVEL", "PORT"})
_NAMES_OF_COMPOSE = frozenset({"BIND", "ENV_FILE", "STOP_GRACE", "VERSION"})


def check() -> None:
    """Try the settings, the database, the broker and the model server."""
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("Settings", _check_settings),
        ("Database", _check_database),
        ("Broker", _check_broker),
        ("Model server", _check_upstream),
    )
    wrong = 0
    for name, look in checks:
        try:
            mark, words = "✓", look()
        except CommandError as error:
            mark, words, wrong = "✗", str(error), wrong + 1
        except ValidationError:
            mark, words, wrong = "✗", "Not tried: its settings are wrong.", wrong + 1
        typer.echo(f"{mark} {name:<13} {words}")
    for warning in _unknown_variables():
        typer.echo(f"! {'Settings':<13} {warning}")
    if wrong:
        raise typer.Exit(1)


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


def _check_upstream() -> str:
    settings = UpstreamSettings()
    key = settings.upstream_api_key
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    url = shown_url(settings.upstream_url)
    try:
        answer = httpx.get(
            f"{settings.upstream_url}/models",
            headers=headers,
            timeout=_SECONDS,
            trust_env=not settings.is_local,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CommandError(
            f"{url} does not answer ({error}). Is it running? Batches wait until it is."
        ) from error
    if answer.status_code in {401, 403}:
        raise CommandError(
            f"{url} refuses the key ({answer.status_code}): set OVERNIGHT_UPSTREAM_API_KEY."
        )
    if answer.is_server_error:
        raise CommandError(f"{url} answers with {answer.status_code}; its own log should say why.")
    if answer.is_error:
        return f"{url} answers, though it lists no models ({answer.status_code})."
    return f"{url} answers and serves {_models(answer)}."


def _models(answer: httpx.Response) -> str:
    try:
        names = [str(each["id"]) for each in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return "an unreadable list of models"
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown or "no model yet"
