"""The calls of the Batches API that the commands make, on plain HTTP.

Promises: works against any base URL that speaks the contract; neither an upload nor a download is
ever held in memory; a connection that breaks, or a server that is busy for a moment, is tried again
wherever trying again cannot do a thing twice.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import quote, urlsplit

import httpx

from cli.address import is_loopback
from cli.client.refusals import ServerSaidNo, pause_seconds
from cli.client.sending import FEW_TRIES, TRIES, Sender
from cli.console import CommandError, UsageError

# An answer may take a while: a server stores the whole upload before it says yes.
_TIMEOUT = httpx.Timeout(connect=10, read=120, write=120, pool=10)
_PARTIAL = 206
_RANGE_REFUSED = 416


class StopReading(Exception):
    """Raised by the taker of a download that has seen enough."""


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
        self._sender = Sender(self.base_url, on_trouble)
        self._tells_progress = True
        headers = {"User-Agent": "overnight-cli"}
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
        """Upload a file of requests, from its start. Returns the file's id.

        A second try may leave a second file.
        """

        async def send() -> httpx.Response:
            file.seek(0)
            return await self._http.post(
                f"{self.base_url}/files",
                data={"purpose": "batch"},
                files={"file": (name, file, "application/jsonl")},
            )

        answer = await self._sender.send(send, tries=FEW_TRIES)
        return str(self._json(answer).get("id"))

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
                answer = await self._sender.send(send, tries=TRIES, repeatable=False)
                return self._json(answer)
            except ServerSaidNo as error:
                if error.status_code != httpx.codes.SERVICE_UNAVAILABLE or tried == TRIES:
                    raise
                self._on_trouble(f"{error} Looking whether the batch was created.")
            await asyncio.sleep(pause_seconds(tried))
            created = await self._newest_batch_of(input_file_id)
            if created is not None:
                return created

    async def _newest_batch_of(self, input_file_id: str) -> dict[str, Any] | None:
        page = await self.get("batches", {"limit": "100"}, tries=TRIES)
        for batch in page["data"]:
            if batch["input_file_id"] == input_file_id:
                return dict(batch)
        return None

    async def get(
        self,
        path: str,
        query: Mapping[str, str | list[str]] | None = None,
        *,
        tries: int | None = FEW_TRIES,
    ) -> dict[str, Any]:
        """Read an object at a path below the base URL; with no number of tries, without end."""

        async def send() -> httpx.Response:
            return await self._http.get(f"{self.base_url}/{path}", params=query)

        return self._json(await self._sender.send(send, tries=tries))

    async def retrieve(self, batch_id: str, *, is_patient: bool = False) -> dict[str, Any]:
        """Read the batch; if patient, without end: an outage does not end a batch, so not a watch."""
        return await self.get(_path_of(batch_id), tries=None if is_patient else FEW_TRIES)

    async def progress(self, batch_id: str) -> dict[str, Any] | None:
        """How the batch is getting on; null from a server that does not tell, or not just now."""
        if not self._tells_progress:
            return None
        try:
            return await self.get(f"{_path_of(batch_id)}/progress", tries=1)
        except ServerSaidNo as error:
            # An extension that other servers of the contract do not have.
            self._tells_progress = error.status_code >= 500 or error.status_code == 429
            return None
        except CommandError:
            return None

    async def act(self, batch_id: str, verb: str) -> dict[str, Any]:
        """Cancel, pause, resume or retry a batch; what the server says of it then.

        Sent again without a second thought: the first three may be said twice, and a retry carries
        a key of its own.
        """
        headers = {"Idempotency-Key": uuid.uuid4().hex} if verb == "retry" else {}

        async def send() -> httpx.Response:
            url = f"{self.base_url}/{_path_of(batch_id)}/{verb}"
            return await self._http.post(url, headers=headers)

        return self._json(await self._sender.send(send, tries=FEW_TRIES, never_on=(409,)))

    async def list_batches(
        self, query: Mapping[str, str | list[str]] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """All batches, newest first, page by page."""
        after: dict[str, str] = {}
        while True:
            page = await self.get("batches", {"limit": "100", **(query or {}), **after})
            for batch in page["data"]:
                yield batch
            if not page.get("has_more") or not page["data"]:
                return
            after = {"after": page["data"][-1]["id"]}

    async def download(self, file_id: str, file: IO[bytes]) -> None:
        """Stream a file's content into an empty file."""
        await self.read_content(f"files/{quote(file_id, safe='')}/content", file.write)

    async def read_content(
        self, path: str, take: Callable[[bytes], object], *, tries: int = TRIES
    ) -> Mapping[str, str]:
        """Hand the bytes at a path to `take`, piece by piece; what a broken connection left is continued.

        Ends early, and well, if `take` raises `StopReading`. Returns the answer's headers.
        """
        have = 0

        async def receive() -> httpx.Response:
            nonlocal have
            headers = {"Range": f"bytes={have}-"} if have else {}
            url = f"{self.base_url}/{path}"
            async with self._http.stream("GET", url, headers=headers) as answer:
                if answer.is_error:
                    await answer.aread()
                    return answer
                # A server that knows no ranges begins anew.
                known = 0 if answer.status_code == _PARTIAL else have
                async for piece in answer.aiter_bytes():
                    new = piece[known:]
                    known = max(known - len(piece), 0)
                    have += len(new)
                    try:
                        take(new)
                    except StopReading:
                        break
                return answer

        try:
            return (await self._sender.send(receive, tries=tries)).headers
        except ServerSaidNo as error:
            # Nothing is left after what we have: it broke after the last byte.
            if error.status_code != _RANGE_REFUSED or not have:
                raise
            return {}

    def _json(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise CommandError(
                f"{self.base_url} answers, but not as the Batches API does. Is that the right base URL?"
                " It usually ends in /v1."
            )
        return found


def _path_of(batch_id: str) -> str:
    return f"batches/{quote(batch_id, safe='')}"
