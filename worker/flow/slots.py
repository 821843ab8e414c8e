"""How many calls one process may have in flight, whatever its lanes would allow.

Promises: where there are several model servers, a quarter is kept back for them, in equal parts: a slow
server leaves every other one some.
"""

from collections.abc import Sequence

_KEPT_BACK = 4
"""One part in so many."""


class Slots:
    """A fixed number. Nothing waits here."""

    def __init__(self, most: int, servers: Sequence[str]) -> None:
        count = len(servers)
        self._kept = max(1, most // (_KEPT_BACK * count)) if 1 < count <= most else 0
        self._shared = most - self._kept * count
        self._of_server = dict.fromkeys(servers, 0)
        self.in_flight = 0

    @property
    def is_full(self) -> bool:
        """Whether some server may have to wait for another's call to end."""
        return self._shared <= 0

    def has_room(self, server: str) -> bool:
        """Whether a call to this server may be begun."""
        return self._shared > 0 or self._of_server[server] < self._kept

    def take(self, server: str) -> None:
        """A call is begun."""
        self._shared -= self._of_server[server] >= self._kept
        self._of_server[server] += 1
        self.in_flight += 1

    def give_back(self, server: str) -> None:
        """A call has ended."""
        self._of_server[server] -= 1
        self._shared += self._of_server[server] >= self._kept
        self.in_flight -= 1
