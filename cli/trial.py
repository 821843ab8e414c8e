"""One model server tried: what it is, or what is wrong with it, in a sentence.

Promises: changes nothing there; shows no key, and of a URL nothing that may be one.
"""

import difflib
import socket
import ssl

import httpx

from cli.address import shown_url
from cli.console import CommandError
from models.upstreams import ModelServer, Upstreams

_SECONDS = 5.0


def try_server(server: ModelServer, upstreams: Upstreams, *, place_for_key: str) -> str:
    """Ask a model server for its list of models; what it says.

    `place_for_key` is where its key is set, for the case that it wants another.

    Raises:
        CommandError: it does not answer, refuses us, or does not list a model that goes there.
    """
    url = shown_url(server.url)
    answer = _ask(server, url)
    if answer.status_code in {401, 403}:
        key = "a call without a key" if server.api_key is None else "the key"
        raise CommandError(f"{url} refuses {key} ({answer.status_code}): set {place_for_key}.")
    if answer.is_server_error:
        raise CommandError(f"{url} answers with {answer.status_code}; its own log should say why.")
    if not answer.is_success:
        return f"{url} answers, though it lists no models ({answer.status_code})."
    listed = _listed(answer)
    if listed is None:
        return f"{url} answers, though its list of models cannot be read."
    sent_there = sorted(
        {
            route.model or name
            for name, route in upstreams.routes.items()
            if route.server.name == server.name
        }
    )
    missing = [name for name in sent_there if name not in listed]
    if missing:
        raise CommandError(
            f"{url} answers, but does not list {some(missing)}, which the file sends there"
            f"{_nearest(missing[0], listed)}; it serves {some(listed) or 'no model yet'}."
        )
    return f"{url} answers and serves {some(listed) or 'no model yet'}."


def _ask(server: ModelServer, url: str) -> httpx.Response:
    try:
        return httpx.get(
            f"{server.url}/models",
            headers=server.own_headers(),
            timeout=_SECONDS,
            trust_env=not server.is_local,
        )
    except httpx.InvalidURL as error:
        raise CommandError(f"{url} cannot be the URL of a server ({error}).") from error
    except httpx.HTTPError as error:
        raise CommandError(f"{url} {_reason(error, server)}") from error


def _reason(error: BaseException, server: ModelServer) -> str:
    causes = _causes(error)
    host = httpx.URL(server.url).host
    if any(isinstance(each, socket.gaierror) for each in causes):
        return f"cannot be found: the name {host} leads to no address. Is it spelt right?"
    if any(isinstance(each, ConnectionRefusedError) for each in causes):
        return "does not answer: nothing listens there. Is it running? Batches wait until it is."
    for each in causes:
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"has a certificate that is not trusted ({each.verify_message})."
    if any(isinstance(each, ssl.SSLError) for each in causes):
        return "does not speak TLS as it should. Does its URL begin with http:// instead?"
    if isinstance(error, httpx.TimeoutException):
        return f"does not answer within {_SECONDS:.0f} s. Is it running, and not behind a firewall?"
    return f"does not answer ({error}). Is it running? Batches wait until it is."


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found


def _listed(answer: httpx.Response) -> list[str] | None:
    try:
        return [str(each["id"]) for each in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return None


def some(names: list[str]) -> str:
    """The first of these names, and how many more there are."""
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _nearest(name: str, listed: list[str]) -> str:
    near = difflib.get_close_matches(name, listed, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
