"""How many uploads a project has under way: each holds memory for as long as its client takes.

Counted in this process alone: of several behind a load balancer, each lets a project have as many.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from models.errors import TooManyUploads
from models.project import Caller


class UploadSlots:
    """A project's uploads under way, up to a limit; 0 is none."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = Counter[int]()

    @contextmanager
    def take(self, caller: Caller) -> Iterator[None]:
        """Have one upload more while the block runs.

        Raises:
            TooManyUploads: the project has as many as it may.
        """
        if 0 < self._limit <= self._taken[caller.project_pk]:
            raise TooManyUploads(self._limit)
        self._taken[caller.project_pk] += 1
        try:
            yield
        finally:
            self._taken[caller.project_pk] -= 1
            if not self._taken[caller.project_pk]:
                del self._taken[caller.project_pk]
