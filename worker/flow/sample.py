"""What was seen of a model server at one level of calls in flight, and how two levels compare. Pure."""

import math
from dataclasses import dataclass
from typing import Self

LEARNED = 0.4


@dataclass(slots=True, kw_only=True)
class Sample:
    """Sums over a stretch of time."""

    seconds: float = 0.0
    slot_seconds: float = 0.0
    calls: float = 0.0
    latency_seconds: float = 0.0

    @property
    def in_flight(self) -> float:
        """On average."""
        return self.slot_seconds / self.seconds

    @property
    def latency(self) -> float:
        """Of one call, on average."""
        return max(self.latency_seconds, 1e-9) / self.calls

    @property
    def rate(self) -> float:
        """Answers a second, by Little's law: it has none of the noise of counting bursts."""
        return self.in_flight / self.latency

    def add(self, other: Self, *, at_most: float = math.inf) -> None:
        """Take in what was seen next; forget the oldest above so many calls."""
        keep = min(1.0, max(0.0, at_most - other.calls) / self.calls) if self.calls else 1.0
        self.seconds = self.seconds * keep + other.seconds
        self.slot_seconds = self.slot_seconds * keep + other.slot_seconds
        self.calls = self.calls * keep + other.calls
        self.latency_seconds = self.latency_seconds * keep + other.latency_seconds


def change_of(before: float, after: float) -> float:
    """The logarithm of their ratio."""
    return math.log(after / before)


def elasticity(low: Sample, high: Sample) -> float:
    """How much of the rise in calls in flight became a rise in throughput: 1 below the knee, 0 above."""
    rise = change_of(low.in_flight, high.in_flight)
    return change_of(low.rate, high.rate) / rise if rise > 0.01 else 0.0


def noise_between(one: Sample, other: Sample, spread: float) -> float:
    """The standard error of the change in throughput, where `spread` is that of one call."""
    return spread * math.sqrt(1 / one.calls + 1 / other.calls)


def learn_spread(spread: float, known: Sample, seen: Sample) -> float:
    """The relative spread of single latencies, by how their means differ at one level."""
    if seen.calls < 8 or known.calls < 8:
        return spread
    variance = change_of(known.latency, seen.latency) ** 2 / (1 / seen.calls + 1 / known.calls)
    spread_squared = (1 - LEARNED) * spread**2 + LEARNED * min(variance, 6 * spread**2)
    return min(2.0, max(0.2, math.sqrt(spread_squared)))
