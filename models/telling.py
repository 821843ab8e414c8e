"""How a metric is described, counted and told.

Promises: what is not in `DESCRIBED` is not told; nothing here opens a file or a port.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import Metric

# Twice as many series, for what Prometheus knows by itself.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no types

REGISTRY = CollectorRegistry()
"""What this process counted."""

DESCRIBED: dict[str, "Described"] = {}
"""By name: filled by `models.metrics`."""

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Described:
    """A metric as it is told and documented."""

    name: str
    kind: Kind
    words: str
    told_by: str
    labels: tuple[str, ...] = ()
    is_shared: bool = False
    """Whether all processes tell the same, so that the largest number is that of all; else they add up."""

    def family(self, samples: Iterable[tuple[Sequence[str], float]]) -> Metric:
        """The metric with its values: of each, the labels' values and the number."""
        family = Metric(self.name.removesuffix("_total"), self.words, self.kind)
        for labels, value in samples:
            family.add_sample(self.name, dict(zip(self.labels, labels, strict=True)), value)
        return family

    def histogram_family(
        self, bounds: Sequence[float], samples: Iterable[tuple[Sequence[str], Sequence[int], float]]
    ) -> Metric:
        """A histogram's: of each, the labels' values, the counts of the buckets (one more than bounds
        there are), and the sum.
        """
        family = Metric(self.name, self.words, self.kind)
        for values, counts, total in samples:
            labels = dict(zip(self.labels, values, strict=True))
            below = 0
            for bound, count in zip((*map(str, map(float, bounds)), "+Inf"), counts, strict=True):
                below += count
                family.add_sample(f"{self.name}_bucket", labels | {"le": bound}, below)
            family.add_sample(f"{self.name}_count", labels, below)
            family.add_sample(f"{self.name}_sum", labels, total)
        return family

    def counter(self, *values: str) -> Counter:
        """A counter of this process. Of these values of its only label it tells 0 from the start: to
        Prometheus, a count that begins with 1 has not risen.
        """
        counter = Counter(self.name, self.words, self.labels, registry=REGISTRY)
        for value in values:
            counter.labels(value)
        return counter

    def gauge(self) -> Gauge:
        """A gauge of this process."""
        return Gauge(self.name, self.words, self.labels, registry=REGISTRY)

    def histogram(self, bounds: Sequence[float]) -> Histogram:
        """A histogram of this process."""
        return Histogram(self.name, self.words, self.labels, registry=REGISTRY, buckets=bounds)


@dataclass(frozen=True, slots=True)
class Told:
    """Families as `generate_latest` takes them."""

    families: Sequence[Metric]

    def collect(self) -> Sequence[Metric]:
        """The families."""
        return self.families


def counted_by(*processes: str) -> list[Metric]:
    """What this process counted, of the metrics that such processes tell."""
    return [
        family
        for family in REGISTRY.collect()
        if DESCRIBED[family.name + "_total" * (family.type == "counter")].told_by in processes
    ]


def render(families: Iterable[Metric]) -> bytes:
    """Prometheus' text format."""
    return generate_latest(Told(list(families)))


def describe(
    name: str, kind: Kind, told_by: str, words: str, *labels: str, is_shared: bool = False
) -> Described:
    """Add a metric to those that can be told."""
    DESCRIBED[name] = Described(name, kind, words, told_by, labels, is_shared)
    return DESCRIBED[name]
