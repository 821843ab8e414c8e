"""How long calls were in the system, one kind of caller at a time."""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What one kind of caller has met.

    Seconds are from the whole request to its answer, in the queue and in service, over the calls
    answered with success; None where there was none.
    """

    answered: int
    """Successes."""
    refused: int
    """Calls answered 429, for whatever reason."""
    mean_seconds: float | None
    p50_seconds: float | None
    p90_seconds: float | None
    p99_seconds: float | None
    most_seconds: float | None


@dataclass(slots=True)
class Latencies:
    """The seconds of every answer: noting one must cost a call next to nothing."""

    refused: int = 0
    seconds: list[float] = field(default_factory=list)

    def traffic(self) -> Traffic:
        """The figures as they are now."""
        # In place: what was sorted the last time takes one merge, so this may be asked in mid-run.
        self.seconds.sort()
        answered = len(self.seconds)
        return Traffic(
            answered=answered,
            refused=self.refused,
            mean_seconds=math.fsum(self.seconds) / answered if answered else None,
            p50_seconds=self._percentile(0.5),
            p90_seconds=self._percentile(0.9),
            p99_seconds=self._percentile(0.99),
            most_seconds=self._percentile(1.0),
        )

    def _percentile(self, share: float) -> float | None:
        """The nearest rank: the least time within which that share of the calls was answered."""
        if not self.seconds:
            return None
        return self.seconds[math.ceil(len(self.seconds) * share) - 1]
