"""What a shell offers when somebody presses Tab at the place of a batch's id, or of a status.

Promises: silent when there is no server, no key, or no answer within a second.
"""

import asyncio
import os

from cli.client.server import connect, find_server
from cli.console import CommandError
from models.lifecycle import BatchStatus

_SECONDS = 1.0
_MOST = 20


def complete_batch_id(incomplete: str) -> list[tuple[str, str]]:
    """Ids of the newest batches that begin so, each with its status."""
    try:
        return asyncio.run(_newest(incomplete))
    except (CommandError, TimeoutError, OSError, KeyError):
        # There is no place for an error in a line that is being typed.
        return []


def complete_status(incomplete: str) -> list[str]:
    """The statuses that begin so."""
    return [status.value for status in BatchStatus if status.value.startswith(incomplete)]


async def _newest(incomplete: str) -> list[tuple[str, str]]:
    async with asyncio.timeout(_SECONDS):
        server = find_server(os.environ.get("OPENAI_BASE_URL"), None)
        async with connect(server, on_trouble=_keep_quiet) as client:
            page = await client.get("batches", {"limit": str(_MOST)}, tries=1)
    return [
        (str(batch["id"]), str(batch["status"]))
        for batch in page["data"]
        if str(batch["id"]).startswith(incomplete)
    ]


def _keep_quiet(_: str) -> None:
    """Say nothing."""
