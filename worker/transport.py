"""An httpx transport over one aiohttp session, because its cost does not grow with open connections.

httpx's own pool looks at every connection on every acquire and release: at 256 in flight a call costs
2.2 ms of CPU there and 0.2 ms here (encode/httpx#3215; docs/decisions/0001-http-client.md).

Promises: redirects are not followed, cookies are not kept, an answer over the limit is given up; every
error of aiohttp comes out as one of httpx's.
"""

import contextlib
from collections.abc import Generator

import aiohttp
import httpx


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Sends httpx requests whose body is in memory, and reads each answer whole."""

    def __init__(
        self,
        *,
        total_seconds: float,
        connect_seconds: float,
        max_response_bytes: int,
        trust_env: bool = False,
    ) -> None:
        self._timeout = aiohttp.ClientTimeout(total=total_seconds, sock_connect=connect_seconds)
        self._max_response_bytes = max_response_bytes
        self._trust_env = trust_env
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request. Raises only `httpx.TransportError` and its kind."""
        with _as_httpx_errors():
            async with self._open().request(
                request.method,
                str(request.url),
                # Not `multi_items()`: it guesses the encoding of every header, at every call.
                headers=[
                    (name.decode("latin-1"), value.decode("latin-1"))
                    for name, value in request.headers.raw
                ],
                data=request.content,
                allow_redirects=False,
            ) as response:
                content = await self._read(response)
        headers = [
            (name, value)
            for name, value in response.raw_headers
            # aiohttp has already undone these two.
            if name.lower() not in {b"content-encoding", b"transfer-encoding"}
        ]
        answer = httpx.Response(response.status, headers=headers, content=content, request=request)
        answer.headers.encoding = "latin-1"
        return answer

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        declared = response.content_length
        is_plain = "Content-Encoding" not in response.headers
        if is_plain and declared is not None and declared <= self._max_response_bytes:
            return await response.read()
        content = bytearray()
        async for piece in response.content.iter_any():
            content += piece
            if len(content) > self._max_response_bytes:
                message = "the answer is too long"
                raise httpx.RemoteProtocolError(message)
        return bytes(content)

    def _open(self) -> aiohttp.ClientSession:
        # Made on first use: a session belongs to the loop that is running then.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
                # HTTP_PROXY and its kind, and NO_PROXY.
                trust_env=self._trust_env,
                skip_auto_headers={"User-Agent", "Content-Type"},
            )
        return self._session


@contextlib.contextmanager
def _as_httpx_errors() -> Generator[None]:
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise httpx.ConnectTimeout(str(error)) from error
    except (TimeoutError, aiohttp.ServerTimeoutError) as error:
        raise httpx.ReadTimeout(str(error)) from error
    except aiohttp.ClientConnectorError as error:
        raise httpx.ConnectError(str(error)) from error
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as error:
        raise httpx.RemoteProtocolError(str(error)) from error
    except aiohttp.ClientOSError as error:
        raise httpx.ReadError(str(error)) from error
    except (aiohttp.InvalidURL, UnicodeError) as error:
        # A host name that is none.
        raise httpx.UnsupportedProtocol(str(error)) from error
    except aiohttp.ClientError as error:
        raise httpx.RemoteProtocolError(str(error)) from error
