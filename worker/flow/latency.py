"""How long a lane's calls take, and from when on one that lasts longer is taken to hang. Pure.

A histogram with buckets a tenth wider each, whose counts are halved now and then, so that it follows a
server that becomes slower or faster. Memory is the same however many calls there are.
"""

import math
from itertools import accumulate

_GROWTH = math.log(1.1)
_LEAST_SECONDS = 0.001
_BUCKETS = 200
"""Up to 190,000 seconds."""

_MOST_COUNTED = 2_000
_FEW = 50
_TAIL = 0.98


class Latencies:
    """Times from the beginning of a call to its answer."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._total = 0

    def add(self, seconds: float) -> None:
        """A call was answered after so many seconds."""
        bucket = int(math.log(max(seconds, _LEAST_SECONDS) / _LEAST_SECONDS) / _GROWTH)
        self._counts[min(bucket, _BUCKETS - 1)] += 1
        self._total += 1
        if self._total > _MOST_COUNTED:
            self._counts = [count // 2 for count in self._counts]
            self._total = sum(self._counts)

    def quantile(self, share: float) -> float | None:
        """The time within which this share of the calls were answered; null if there were too few."""
        if self._total < _FEW:
            return None
        wanted = share * self._total
        for bucket, below in enumerate(accumulate(self._counts)):
            if below >= wanted:
                return _LEAST_SECONDS * math.exp(_GROWTH * (bucket + 1))
        return None

    def hang_seconds(self, *, least_seconds: float, factor: float) -> float | None:
        """From when on a call is taken to hang: `factor` times what 98 % of them take.

        Never less than `least_seconds`; null as long as too few have been answered to tell.
        """
        usual = self.quantile(_TAIL)
        return None if usual is None else max(least_seconds, factor * usual)
