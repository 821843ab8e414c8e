"""The other end of a webhook: whether its URL may be called, and the one way to call it.

Promises: a call never reaches an address that is not public, unless the operator allows it: the check
is made of the very address that a socket is about to connect to, at every call, so that a name which
resolves to something else the next time gains nothing; no redirect, proxy or cookie is followed, used
or kept; a call ends within its time, names included, and reads next to nothing of the answer. What
went wrong is told in one word, without the URL.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from models.addresses import is_public
from models.errors import InvalidParameter, ReceiverUnreachable
from models.settings import WebhookSettings
from models.signing import signed_headers

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""From a host and a port to numeric addresses; raises `OSError` if there are none."""

MAX_URL = 2048
_READ_BYTES = 4096
_READ_SECONDS = 1.0
_RESOLVE_SECONDS = 5.0
_RESOLVER_THREADS = 128
"""A thread whose name server is silent comes back after half a minute, long after its caller has gone.

With 32 webhooks at a time of 10 seconds each, about a hundred may be stuck; the rest is for the others.
"""


class Receiver:
    """Calls receivers of webhooks. One for each event loop."""

    def __init__(self, settings: WebhookSettings, *, resolve: Resolve | None = None) -> None:
        self._allows_private = settings.webhook_allow_private
        self._timeout_seconds = settings.webhook_timeout_seconds
        self._resolve = resolve or _SystemResolver()

    async def check(self, url: str) -> None:
        """See whether a webhook may go to this URL, as far as can be told today.

        Raises:
            InvalidParameter: it may not.
        """
        parsed = self._parse(url)
        if self._allows_private:
            return
        try:
            async with asyncio.timeout(_RESOLVE_SECONDS):
                await self._addresses(parsed.raw_host or "", parsed.port or 0)
        # In the same words whatever the reason: nobody learns from here what names exist inside.
        except (OSError, TimeoutError, UnicodeError):
            raise _refused("its host does not resolve to a public address") from None

    async def call(self, url: str, *, webhook_id: str, body: bytes, secrets: Sequence[str]) -> int:
        """Send an event once; the status of the answer.

        Raises:
            ReceiverUnreachable: there was no answer in time, or the address may not be called.
        """
        headers = signed_headers(
            body, webhook_id=webhook_id, timestamp=int(time.time()), secrets=secrets
        )
        try:
            parsed = self._parse(url)
            async with asyncio.timeout(self._timeout_seconds):
                return await self._post(parsed, headers, body)
        except TimeoutError as error:
            raise ReceiverUnreachable("no answer in time") from error
        except InvalidParameter as error:
            # What was allowed at registration may have been forbidden since.
            raise ReceiverUnreachable("forbidden URL") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ReceiverUnreachable(type(error).__name__) from error

    async def _post(self, url: URL, headers: dict[str, str], body: bytes) -> int:
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(self._addresses),
            socket_factory=self._open_socket,
            use_dns_cache=False,
            force_close=True,
        )
        async with (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=self._timeout_seconds),
                trust_env=False,
                auto_decompress=False,
                skip_auto_headers={"Accept-Encoding"},
            ) as session,
            session.post(url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            # What it says does not matter; but who is cut off in mid-answer may log an error.
            with contextlib.suppress(TimeoutError, aiohttp.ClientError):
                async with asyncio.timeout(_READ_SECONDS):
                    await response.content.read(_READ_BYTES)
            return response.status

    def _parse(self, url: str) -> URL:
        """The URL as the client will read it: to read it here in another way would be a hole."""
        if len(url) > MAX_URL or not url.isprintable() or " " in url or "\\" in url:
            raise _refused("expected a URL without spaces or control characters")
        try:
            parsed = URL(url)
            host, port = parsed.raw_host, parsed.port
        except ValueError:
            raise _refused("expected a valid URL") from None
        if parsed.scheme not in ("https", "http") or not host or not port:
            raise _refused("expected an HTTPS URL")
        if parsed.scheme == "http" and not self._allows_private:
            raise _refused("expected an HTTPS URL")
        if parsed.raw_user is not None or parsed.raw_password is not None:
            raise _refused("a URL with a user or a password is not supported")
        if "#" in url:
            raise _refused("a URL with a fragment is not supported")
        return parsed

    async def _addresses(self, host: str, port: int) -> list[str]:
        """The addresses behind a host. One that may not be called spoils them all."""
        addresses = await self._resolve(host, port)
        if not addresses or not all(self._may_call(address) for address in addresses):
            raise _ForbiddenAddress
        return addresses

    def _may_call(self, address: str) -> bool:
        return self._allows_private or is_public(address)

    def _open_socket(self, info: tuple[Any, ...]) -> socket.socket:
        """The last gate: `info` is where the socket will connect, whoever resolved it."""
        family, kind, protocol, _, place = info
        if not self._may_call(place[0]):
            raise _ForbiddenAddress
        return socket.socket(family, kind, protocol)


class _ForbiddenAddress(OSError):
    """The address is not public."""


class _CheckedResolver(AbstractResolver):
    """Resolves for aiohttp, through the check."""

    def __init__(self, addresses: Resolve) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        del family
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in await self._addresses(host, port)
        ]

    async def close(self) -> None:
        """Nothing is kept open."""


class _SystemResolver:
    """The system's resolver, in threads of its own: one that hangs must hold up nothing else."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="resolve")

    async def __call__(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, _getaddrinfo, host, port)
        return list(dict.fromkeys(found))


def _getaddrinfo(host: str, port: int) -> list[str]:
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(place[0]) for *_, place in answers]


def _refused(reason: str) -> InvalidParameter:
    return InvalidParameter(f"Invalid 'url': {reason}.", param="url", code="invalid_value")
