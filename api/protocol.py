"""uvicorn's reading of HTTP, but for the answer to what is no HTTP: the envelope here, too.

Promises: such a request gets a 400 and the end of its connection, as before; nothing of it is repeated
or logged. If its answer had begun already, the connection just ends.
"""

import uuid

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from api.errors import envelope

_MESSAGE = "We could not read your request: it is not valid HTTP."


class HttpProtocol(HttpToolsProtocol):
    """One connection of a client."""

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be parsed, and hang up."""
        del msg
        # It is of the request before this one, or of none yet.
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()
            return
        answer = envelope(400, _MESSAGE)
        headers = {
            "content-type": "application/json",
            "content-length": str(len(answer.body)),
            "connection": "close",
            "x-request-id": f"req_{uuid.uuid4().hex}",
            "openai-version": "2020-10-01",
            "openai-processing-ms": "0",
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(f"HTTP/1.1 400 Bad Request\r\n{head}\r\n".encode() + answer.body)
        self.transport.close()
