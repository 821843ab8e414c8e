"""The few calls of OpenAI's Batches API that `overnight run` makes, on plain HTTP.

Promises: works against any base URL that speaks the contract; neither an upload nor a download is
ever held in memory; a connection that breaks, or a server that is busy for a moment, is tried again
wherever trying again cannot do a thing twice.
"""

import asyncio
import email.utils
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urlsplit

import httpx

from cli.address import is_loopback
from cli.console import CommandError, UsageError

_TRIES = 6
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 20.0
_LONGEST_ASKED_SECONDS = 60.0
# An answer may take a while: a server stores the whole upload before it says yes.
_TIMEOUT = httpx.Timeout(connect=10, read=120, write=120, pool=10)
_PARTIAL = 206
_RANGE_REFUSED = 416


class ServerSaidNo(CommandError):
    """The server refused a request, in its own words."""

    def __init__(self, message: str, *, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code


class BatchClient:
    """Uploads, creates, watches and downloads."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        on_trouble: Callable[[str], None] = lambda _: None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._on_trouble = on_trouble
        headers = {"User-Agent": "overnight-run"}
        # A key that comes from a file often ends in a newline.
        if key := (api_key or "").strip():
            if not (key.isascii() and key.isprintable()):
                # Here, because what httpx says of it repeats it.
                message = (
                    "The API key may hold visible ASCII characters only: was all of it copied?"
                )
                raise UsageError(message)
            headers["Authorization"] = f"Bearer {key}"
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=_TIMEOUT,
            transport=transport,
            # A proxy cannot reach what listens on this machine only.
            trust_env=not is_loopback(urlsplit(base_url).hostname or ""),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def upload(self, name: str, file: IO[bytes]) -> str:
        """Upload a file of requests. Returns the file's id. A second try may leave a second file."""

        async def send() -> httpx.Response:
            file.seek(0)
            return await self._http.post(
                f"{self.base_url}/files",
                data={"purpose": "batch"},
                files={"file": (name, file, "application/jsonl")},
            )

        answer = await self._again_and_again(send, tries=3)
        return str(answer.json()["id"])

    async def create(
        self, *, input_file_id: str, endpoint: str, window: str, metadata: dict[str, str]
    ) -> dict[str, Any]:
        """Create the batch of a file that was uploaded for it alone.

        Never sent twice, unless it surely was not done the first time. A 503 leaves that open (the
        server may have lost its database in the very moment), so that the list of batches decides.
        """
        body: dict[str, Any] = {
            "input_file_id": input_file_id,
            "endpoint": endpoint,
            "completion_window": window,
        }
        if metadata:
            body["metadata"] = metadata

        async def send() -> httpx.Response:
            return await self._http.post(f"{self.base_url}/batches", json=body)

        tried = 0
        while True:
            tried += 1
            try:
                answer = await self._again_and_again(send, tries=_TRIES, repeatable=False)
                return dict(answer.json())
            except ServerSaidNo as error:
                if error.status_code != httpx.codes.SERVICE_UNAVAILABLE or tried == _TRIES:
                    raise
                self._on_trouble(f"{error} Looking whether the batch was created.")
            await asyncio.sleep(_pause_seconds(tried))
            created = await self._newest_batch_of(input_file_id)
            if created is not None:
                return created

    async def _newest_batch_of(self, input_file_id: str) -> dict[str, Any] | None:
        async def send() -> httpx.Response:
            return await self._http.get(f"{self.base_url}/batches", params={"limit": 100})

        answer = await self._again_and_again(send, tries=_TRIES)
        for batch in answer.json()["data"]:
            if batch["input_file_id"] == input_file_id:
                return dict(batch)
        return None

    async def retrieve(self, batch_id: str) -> dict[str, Any]:
        """Read the batch. Patient without end: an outage does not end a batch, so not a watch."""

        async def send() -> httpx.Response:
            return await self._http.get(f"{self.base_url}/batches/{batch_id}")

        answer = await self._again_and_again(send, tries=None)
        return dict(answer.json())

    async def download(self, file_id: str, file: IO[bytes]) -> None:
        """Stream a file's content into `file`; what a broken connection left is continued."""

        async def receive() -> httpx.Response:
            have = file.seek(0, 2)
            headers = {"Range": f"bytes={have}-"} if have else {}
            url = f"{self.base_url}/files/{file_id}/content"
            async with self._http.stream("GET", url, headers=headers) as answer:
                if answer.is_error:
                    await answer.aread()
                    return answer
                if have and answer.status_code != _PARTIAL:
                    file.seek(0)
                    file.truncate()
                async for piece in answer.aiter_bytes():
                    file.write(piece)
                return answer

        try:
            await self._again_and_again(receive, tries=_TRIES)
        except ServerSaidNo as error:
            # Nothing is left after what we have: it broke after the last byte.
            if error.status_code != _RANGE_REFUSED or not file.tell():
                raise

    async def _again_and_again(
        self,
        send: Callable[[], Awaitable[httpx.Response]],
        *,
        tries: int | None,
        repeatable: bool = True,
    ) -> httpx.Response:
        """Send until it succeeds, is refused for good, or `tries` are used up."""
        tried = 0
        while True:
            tried += 1
            wait = _pause_seconds(tried)
            trouble: CommandError
            try:
                answer = await send()
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise UsageError(
                    f"{self.base_url} is not a base URL such as http://127.0.0.1:8080/v1 ({error})"
                ) from error
            except httpx.TransportError as error:
                trouble = CommandError(
                    f"{self.base_url} does not answer ({str(error) or type(error).__name__})."
                )
                if not _may_pass(error, repeatable=repeatable):
                    raise trouble from error
            else:
                if answer.is_success:
                    return answer
                trouble = _refusal(answer)
                if not _is_busy(answer.status_code, repeatable=repeatable):
                    raise trouble
                asked = _asked_wait(answer)
                wait = wait if asked is None else min(asked, _LONGEST_ASKED_SECONDS)
            if tried == tries:
                raise trouble
            # An outage is worth a word now and then, not one for every try.
            if tried % _TRIES == 1:
                self._on_trouble(f"{trouble} Trying again.")
            await asyncio.sleep(wait)


def _pause_seconds(tried: int) -> float:
    return min(_FIRST_PAUSE_SECONDS * 2.0 ** min(tried - 1, 8), _LONGEST_PAUSE_SECONDS)


def _may_pass(error: httpx.TransportError, *, repeatable: bool) -> bool:
    """Whether sending again may help, and cannot do a thing twice."""
    if isinstance(error, httpx.LocalProtocolError):
        return False
    return repeatable or isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))


def _is_busy(status_code: int, *, repeatable: bool) -> bool:
    """Whether this status says "not now"; of a request that must not be done twice, "not done"."""
    if not repeatable:
        return status_code == httpx.codes.TOO_MANY_REQUESTS
    return status_code >= 500 or status_code in {408, 409, 425, 429}


def _refusal(answer: httpx.Response) -> ServerSaidNo:
    """The server's own words, from the error envelope where there is one."""
    try:
        words = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        words = answer.text[:300].strip() or answer.reason_phrase
    hint = ""
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        hint = " Set OPENAI_API_KEY, or give --api-key."
    elif answer.status_code == httpx.codes.NOT_FOUND and "/v1/" not in answer.url.path:
        hint = " The base URL should probably end in /v1."
    end = "" if words.endswith((".", "!", "?")) else "."
    return ServerSaidNo(
        f"The server said {answer.status_code}: {words}{end}{hint}", status_code=answer.status_code
    )


def _asked_wait(answer: httpx.Response) -> float | None:
    """How long the server asks to wait, as OpenAI's own clients read it."""
    headers = answer.headers
    try:
        if "retry-after-ms" in headers:
            return float(headers["retry-after-ms"]) / 1000
        return float(headers["retry-after"])
    except (KeyError, ValueError):
        pass
    when = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return None if when is None else max(0.0, email.utils.mktime_tz(when) - time.time())
