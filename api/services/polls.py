"""Showing a batch to all who poll it.

Promises: what a caller is told was read after it had asked, so that it sees its own cancel; however many
ask for a batch at the same time, this process has one look at it under way and one to follow. So the
busier the machine, the more callers a look answers, and polling cannot crowd out the work polled for.
"""

import asyncio

from api.services import batches
from models import wire
from models.database import Database
from models.project import Caller

_Wanted = tuple[int, str]


class Polls:
    """Looks at batches, each for as many callers as are waiting when it begins."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._under_way: dict[_Wanted, asyncio.Task[wire.Batch]] = {}
        self._to_follow: dict[_Wanted, asyncio.Task[wire.Batch]] = {}

    async def get(self, caller: Caller, batch_id: str) -> wire.Batch:
        """Show a batch.

        Raises:
            BatchNotFound: there is none with this id.
        """
        wanted = caller.project_pk, batch_id
        look = self._to_follow.get(wanted)
        if look is None:
            look = asyncio.create_task(self._look(caller, batch_id))
            self._to_follow[wanted] = look
        # Whoever goes away meanwhile goes alone.
        return await asyncio.shield(look)

    async def _look(self, caller: Caller, batch_id: str) -> wire.Batch:
        wanted = caller.project_pk, batch_id
        before = self._under_way.get(wanted)
        if before is not None:
            await asyncio.wait([before])
        # From here on it is too late to join.
        look = self._under_way[wanted] = self._to_follow.pop(wanted)
        try:
            return await batches.get(self._database, caller, batch_id=batch_id)
        finally:
            if self._under_way[wanted] is look:
                del self._under_way[wanted]
