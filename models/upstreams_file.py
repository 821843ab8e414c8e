"""`overnight.toml`: the model servers and the models, as a person writes them down.

Promises: what is wrong is told in sentences that name the file, the table and the key, all of them at
once; a key that is not known is refused, with the nearest one that is; nothing that may be a secret is
repeated. The keys themselves stand elsewhere: in a variable or a file that this one names.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from models.hours import ActiveHours
from models.lines import Endpoint
from models.upstreams import (
    FlowLimits,
    ModelServer,
    Route,
    Upstreams,
    check_key,
    find_metrics_url,
)
from models.upstreams_tables import FlowTable, ModelTable, ServerTable, Table, UpstreamsFile, hint

_MOST_KEY_BYTES = 64 * 1024


class UpstreamsFileError(ValueError):
    """The file cannot be used; the message is a sentence for each thing that is wrong."""


_FLOW_KEYS = FlowTable.model_fields.keys()
_TABLES: dict[str, type[Table]] = {"upstreams": ServerTable, "models": ModelTable}


def read_upstreams(path: Path, fallback: ModelServer, environment: Mapping[str, str]) -> Upstreams:
    """The servers and models of the file; `fallback` has what a server's table leaves out.

    Raises:
        UpstreamsFileError: something in it, or a key that it names, is wrong or missing.
    """
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UpstreamsFileError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UpstreamsFileError(f"{path} is not UTF-8, which TOML must be.") from error
    except tomllib.TOMLDecodeError as error:
        raise UpstreamsFileError(f"{path} is not TOML: {error}.") from error
    try:
        file = UpstreamsFile.model_validate(written)
    except ValidationError as error:
        raise _refused(path, _explain(error)) from None
    reader = _Resolver(path.parent, fallback, environment)
    upstreams = reader.resolve(file)
    if reader.troubles:
        raise _refused(path, reader.troubles)
    return upstreams


def _refused(path: Path, troubles: "Iterator[str] | list[str]") -> UpstreamsFileError:
    sentences = [each if each.endswith("?") else f"{each}." for each in dict.fromkeys(troubles)]
    return UpstreamsFileError(" ".join(f"{path}: {each}" for each in sentences))


class _Resolver:
    """Puts the tables together, and notes what does not fit."""

    def __init__(self, folder: Path, fallback: ModelServer, environment: Mapping[str, str]) -> None:
        self.troubles: list[str] = []
        self._folder = folder
        self._fallback = fallback
        self._environment = environment
        self._flows_sent: dict[tuple[str, str], tuple[str, FlowLimits | None]] = {}

    def resolve(self, file: UpstreamsFile) -> Upstreams:
        """The servers and routes; of use only if there are no troubles."""
        if not file.upstreams:
            self.troubles.append("it needs at least one [upstreams.NAME]")
        servers = {name: self._server(name, each) for name, each in file.upstreams.items()}
        if file.default is None and not file.models and file.upstreams:
            self.troubles.append(
                "it names neither a default nor a model, so that every batch would be refused"
            )
        default = None
        if file.default is not None:
            default = self._find("default", file.default, servers)
        routes: dict[str, Route] = {}
        for name, model in file.models.items():
            server = self._find(f"{_title('models', name)} upstream", model.upstream, servers)
            flow = None if server is None else self._flow_of_model(name, model, server)
            for each in [name, *model.aliases]:
                if each in routes or (each != name and each in file.models):
                    self.troubles.append(f"{_title('models', name)}: '{each}' is there twice")
                elif server is not None:
                    sent = model.upstream_model or name
                    routes[each] = Route(server, None if sent == each else sent, flow)
        return Upstreams(servers, default, routes)

    def _find(
        self, place: str, name: str, servers: Mapping[str, ModelServer]
    ) -> ModelServer | None:
        if name not in servers:
            self.troubles.append(f"{place}: there is no server '{name}'{hint(name, servers)}")
        return servers.get(name)

    def _flow_of_model(
        self, name: str, table: ModelTable, server: ModelServer
    ) -> FlowLimits | None:
        """The model's own limits with its server's where it has none; null if all are its server's."""
        title = _title("models", name)
        most = server.flow.max_in_flight
        if table.max_in_flight is not None and most is not None and table.max_in_flight > most:
            self.troubles.append(
                f"{title} max_in_flight: it must be {most} at most, as for all models of"
                f" {_title('upstreams', server.name)}"
            )
        flow = _flow(table, server.flow) if table.model_fields_set & _FLOW_KEYS else None
        sent = (server.name, table.upstream_model or name)
        first, known = self._flows_sent.setdefault(sent, (name, flow))
        if known != flow:
            self.troubles.append(
                f"{title} is the same model there as {_title('models', first)} and must have the"
                " same limits"
            )
        return flow

    def _server(self, name: str, table: ServerTable) -> ModelServer:
        title = _title("upstreams", name)
        key = None
        try:
            key = self._key(table)
        except ValueError as error:
            self.troubles.append(f"{title} {error}")
        return ModelServer(
            name=name,
            url=table.url,
            api_key=key,
            headers=table.headers,
            flow=_flow(table, FlowLimits()),
            active_hours=None
            if table.active_hours is None
            else ActiveHours.parse(table.active_hours, table.time_zone or "UTC"),
            metrics_url=find_metrics_url(table.metrics, table.url),
            call_timeout_seconds=table.call_timeout_seconds or self._fallback.call_timeout_seconds,
            connect_timeout_seconds=table.connect_timeout_seconds
            or self._fallback.connect_timeout_seconds,
            max_response_bytes=self._fallback.max_response_bytes,
            endpoints=frozenset(map(Endpoint, table.endpoints or Endpoint)),
        )

    def _key(self, table: ServerTable) -> SecretStr | None:
        if table.api_key_env is not None:
            # Somebody may have put the key itself there: only what looks like a name is repeated.
            name = table.api_key_env if table.api_key_env.isupper() else "of that name"
            place = f"api_key_env: the environment variable {name}"
            found = self._environment.get(table.api_key_env, "")
        elif table.api_key_file is not None:
            # Relative to the file that names it: processes are started in folders of their own.
            try:
                path = self._folder / Path(table.api_key_file).expanduser()
            except RuntimeError:
                message = f"api_key_file: {table.api_key_file}: there is no such home folder"
                raise ValueError(message) from None
            place = f"api_key_file: {path}"
            found = _read_key(path, place)
        else:
            return None
        if not found.strip():
            message = f"{place} is {'not set' if table.api_key_env else 'empty'}"
            raise ValueError(message)
        try:
            return check_key(found)
        except ValueError as error:
            message = f"{place} holds no key: {error}"
            raise ValueError(message) from None


def _flow(table: FlowTable, otherwise: FlowLimits) -> FlowLimits:
    return FlowLimits(
        max_in_flight=table.max_in_flight or otherwise.max_in_flight,
        adaptive=otherwise.adaptive if table.adaptive is None else table.adaptive,
        requests_per_minute=table.requests_per_minute or otherwise.requests_per_minute,
        tokens_per_minute=table.tokens_per_minute or otherwise.tokens_per_minute,
    )


def _read_key(path: Path, place: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_KEY_BYTES).decode()
    except OSError as error:
        message = f"{place} cannot be read ({error.strerror})"
        raise ValueError(message) from error
    except UnicodeDecodeError:
        message = f"{place} holds no key: it is not text"
        raise ValueError(message) from None


def _explain(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_input=True):
        place = problem["loc"]
        if problem["type"] == "extra_forbidden":
            yield _unknown_key(place, problem["input"])
            continue
        title, rest = _split(place)
        if problem["type"] == "missing":
            yield f"{title} needs {rest}" if title else f"it needs at least one [{rest}.NAME]"
            continue
        where = f"{title} {rest}".strip()
        reason = problem["msg"].removeprefix("Value error, ").replace("Input should", "it must")
        yield f"{where}: {reason}" if where else reason


def _split(place: tuple[int | str, ...]) -> tuple[str, str]:
    """The table of a place in the file, and the key in it."""
    parts = [str(part) for part in place if part != "[key]"]
    if len(parts) >= 2 and parts[0] in _TABLES:
        return _title(parts[0], parts[1]), parts[2] if len(parts) > 2 else ""
    return "", parts[0] if parts else ""


def _unknown_key(place: tuple[int | str, ...], value: Any) -> str:
    title, key = _split(place)
    known = (_TABLES[str(place[0])] if title else UpstreamsFile).model_fields
    if title and key == "api_key":
        return (
            f"{title}: a key does not belong into this file; name the variable that holds it by"
            " api_key_env, or the file by api_key_file"
        )
    if title and isinstance(value, dict):
        # [models.llama-3.1-8b] is the table 1-8b in the table llama-3.
        whole = _title(str(place[0]), f"{place[1]}.{key}")
        return f"{title} has no table '{key}'; a name with a dot needs quotes, as in {whole}"
    if title and key in UpstreamsFile.model_fields.keys() - _TABLES:
        # What stands below a table's head is in that table.
        return f"{title} has no key '{key}'; it belongs above the first table of the file"
    # What is peculiar to the table comes first.
    listed = sorted(known, key=lambda each: each in _FLOW_KEYS)
    end = hint(key, known) or f"; there are {', '.join(listed)}"
    return f"{title or 'it'} has no key '{key}'{end}"


def _title(kind: str, name: str) -> str:
    is_bare = re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None
    return f"[{kind}.{name}]" if is_bare else f'[{kind}."{name}"]'
