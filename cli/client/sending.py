"""Sending a request until it succeeds, is refused for good, or has been tried often enough.

Promises: what must not be done twice is sent again only where it surely was not done; every end that
is not a success is a sentence with what to do next.
"""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import httpx

from cli.address import is_loopback
from cli.client.refusals import asked_wait, is_busy, may_pass, pause_seconds, refusal
from cli.console import CommandError, UsageError

TRIES = 6
FEW_TRIES = 3
"""Of what a person waits for: 1.5 seconds in all."""


class Sender:
    """Sends requests to one server."""

    def __init__(self, base_url: str, on_trouble: Callable[[str], None]) -> None:
        self._base_url = base_url
        self._on_trouble = on_trouble

    async def send(
        self,
        attempt: Callable[[], Awaitable[httpx.Response]],
        *,
        tries: int | None,
        repeatable: bool = True,
        never_on: tuple[int, ...] = (),
    ) -> httpx.Response:
        """Attempt it so often at most, or without end; `never_on` lists statuses that are final."""
        tried = 0
        while True:
            tried += 1
            wait = pause_seconds(tried)
            trouble: CommandError
            try:
                answer = await attempt()
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise UsageError(
                    f"{self._base_url} is not a base URL such as http://127.0.0.1:8080/v1 ({error})"
                ) from error
            except httpx.TransportError as error:
                trouble = CommandError(
                    f"{self._base_url} does not answer ({str(error) or type(error).__name__})."
                    f"{self._silence_hint(error)}"
                )
                if not may_pass(error, repeatable=repeatable):
                    raise trouble from error
            else:
                if answer.is_success:
                    return answer
                trouble = refusal(answer)
                if answer.status_code in never_on or not is_busy(
                    answer.status_code, repeatable=repeatable
                ):
                    raise trouble
                asked = asked_wait(answer)
                wait = wait if asked is None else asked
            if tried == tries:
                raise trouble
            # An outage is worth a word now and then, not one for every try.
            if tried % TRIES == 1 and tries != FEW_TRIES:
                self._on_trouble(f"{trouble} Trying again.")
            await asyncio.sleep(wait)

    def _silence_hint(self, error: httpx.TransportError) -> str:
        if not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            return ""
        if is_loopback(urlsplit(self._base_url).hostname or ""):
            return " Is it running? `overnight up` starts one; `overnight doctor` looks further."
        return " Is the address right (--url, OPENAI_BASE_URL)? `overnight doctor` looks further."
