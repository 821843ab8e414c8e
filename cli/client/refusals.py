"""What an answer that is not the wanted one means: whether to try again, when, and what to say."""

import email.utils
import time

import httpx

from cli.console import CommandError

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 20.0
_LONGEST_ASKED_SECONDS = 60.0
_OPENAI = "api.openai.com"


class ServerSaidNo(CommandError):
    """The server refused a request, in its own words."""

    def __init__(self, message: str, *, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code


def pause_seconds(tried: int) -> float:
    """How long to wait after so many tries."""
    return min(_FIRST_PAUSE_SECONDS * 2.0 ** min(tried - 1, 8), _LONGEST_PAUSE_SECONDS)


def may_pass(error: httpx.TransportError, *, repeatable: bool) -> bool:
    """Whether sending again may help, and cannot do a thing twice."""
    if isinstance(error, httpx.LocalProtocolError):
        return False
    return repeatable or isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))


def is_busy(status_code: int, *, repeatable: bool) -> bool:
    """Whether this status says "not now"; of a request that must not be done twice, "not done"."""
    if not repeatable:
        return status_code == httpx.codes.TOO_MANY_REQUESTS
    return status_code >= 500 or status_code in {408, 409, 425, 429}


def refusal(answer: httpx.Response) -> ServerSaidNo:
    """The server's own words, from the error envelope where there is one."""
    try:
        words = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        words = answer.text[:300].strip() or answer.reason_phrase
    hint = ""
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        # Overnight speaks as OpenAI does, but its keys are not to be had there.
        if answer.request.url.host != _OPENAI:
            words = words.partition(" You can find your API key at ")[0]
        hint = _key_hint(answer.request)
    elif answer.status_code == httpx.codes.NOT_FOUND:
        hint = _not_found_hint(answer.request, words)
    end = "" if words.endswith((".", "!", "?")) else "."
    return ServerSaidNo(
        f"The server said {answer.status_code}: {words}{end}{hint}", status_code=answer.status_code
    )


def _key_hint(request: httpx.Request) -> str:
    if "authorization" not in request.headers:
        return " No key was sent: set OPENAI_API_KEY, or give --api-key-file."
    return (
        " Is the key in OPENAI_API_KEY (or --api-key-file) one of this server's? `overnight up` says"
        " where its own is; `overnight keys create --project NAME` makes one."
    )


def _not_found_hint(request: httpx.Request, words: str) -> str:
    path = request.url.path
    if "/v1/" not in path:
        return " The base URL should probably end in /v1."
    if path.endswith(("/v1/batches", "/v1/files")):
        return (
            " It has no batches: is this the model server's address? Overnight's is such as"
            " http://127.0.0.1:8080/v1."
        )
    if path.endswith(("/pause", "/resume", "/retry")) and "batch_" not in words:
        return " (Pause, resume and retry are Overnight's own: other servers do not have them.)"
    if "/files/" in path:
        return " It has expired or was deleted."
    return " `overnight ls` lists the batches that your key can see." if "/batches/" in path else ""


def asked_wait(answer: httpx.Response) -> float | None:
    """How long the server asks to wait, as OpenAI's own clients read it."""
    headers = answer.headers
    try:
        if "retry-after-ms" in headers:
            return min(float(headers["retry-after-ms"]) / 1000, _LONGEST_ASKED_SECONDS)
        return min(float(headers["retry-after"]), _LONGEST_ASKED_SECONDS)
    except (KeyError, ValueError):
        pass
    when = email.utils.parsedate_tz(headers.get("retry-after", ""))
    if when is None:
        return None
    return min(max(0.0, email.utils.mktime_tz(when) - time.time()), _LONGEST_ASKED_SECONDS)
