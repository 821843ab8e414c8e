"""Addresses, as people give them and as they are shown.

Promises: a model server's URL that cannot be right is refused with a sentence, at the command line
and not by some process later; what may hold a password or a key is never repeated.
"""

import http.client
import ipaddress
import urllib.request
from urllib.parse import urlsplit

from cli.console import Terminal, UsageError

_NO_UPSTREAM = """\
Which model server shall the requests go to? Say it with --upstream (or OVERNIGHT_UPSTREAM_URL):
  vLLM       overnight up --upstream http://localhost:8000/v1
  Ollama     overnight up --upstream http://localhost:11434/v1
  llama.cpp  overnight up --port 8081 --upstream http://localhost:8080/v1
  several    overnight up --config overnight.toml
No server at hand? `overnight demo` shows everything with a simulated one, and `overnight simulate`
starts just that one."""
# A password stands before an @, a key perhaps behind a question mark.
_TELLTALE = frozenset("@?#")


def settle_upstream(given: str | None, terminal: Terminal) -> str:
    """The model server's base URL, ending in /v1, from what a person may well have written."""
    written = (given or "").strip().rstrip("/")
    url = written
    if not url:
        raise UsageError(_NO_UPSTREAM)
    if ":/" not in url and not url.endswith(":"):
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # A bracket that is not closed, a port that is no number.
        raise _no_url(written) from None
    if "@" in parts.netloc:
        raise UsageError(
            "The model server's URL must hold no user and no password: put the key into"
            " OVERNIGHT_UPSTREAM_API_KEY."
        )
    if not is_whole or parts.query or parts.fragment:
        raise _no_url(written)
    if not parts.path:
        url = f"{url}/v1"
    elif "/v1/" in f"{parts.path}/" and not parts.path.endswith("/v1"):
        # The address of one endpoint, as in …/v1/chat/completions.
        url = url[: url.rindex("/v1/") + len("/v1")]
    elif not parts.path.endswith("/v1"):
        raise UsageError(
            f"The model server's URL must end in /v1, as in {parts.scheme}://{parts.netloc}/v1;"
            f" got {written}."
        )
    if url != written:
        terminal.say(f"Note: the model server's base URL is taken to be {url}.")
    return url


def _no_url(written: str) -> UsageError:
    quoted = "" if _TELLTALE & set(written) else f": {written}"
    return UsageError(
        f"The model server's URL is not one{quoted}. It looks like http://localhost:8000/v1."
    )


def shown_url(url: str) -> str:
    """Scheme, host, port and path of a URL: what may be shown of it."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl()


def is_loopback(host: str) -> bool:
    """Whether this host is the machine itself, which no proxy leads to."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_answered(url: str, *, seconds: float) -> bool:
    """Whether a GET of this URL (http or https) gets any HTTP answer at all."""
    # The standard library's client, for the sake of a quick start. These handlers only: whatever
    # status comes is an answer, and no redirection is followed.
    is_here = is_loopback(urlsplit(url).hostname or "")
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler({} if is_here else None),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
    ):
        opener.add_handler(handler)
    try:
        with opener.open(url, timeout=seconds):
            return True
    except (OSError, http.client.HTTPException):
        return False
