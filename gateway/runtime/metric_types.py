"""Kinds of metrics that ``prometheus_client`` lacks: cheap ones, and gauges that are asked for their values."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final, TypeAlias

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

#: Label values of a gauge and its value, of each of its series.
Series: TypeAlias = Iterable[tuple[tuple[str, ...], float]]

#: Upper bounds of the buckets of all histograms, in seconds.
BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_BUCKET_NAMES: Final = (*map(floatToGoString, BUCKETS), "+Inf")


class GatewayRegistry(CollectorRegistry):
    """Registry without the ``_created`` series of counters, which would double their number.

    ``prometheus_client`` can leave them out for the whole process only.
    """

    def collect(self) -> Iterator[Metric]:
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class FastCounter:
    """Counter that only the reactor's thread changes.

    The counter of ``prometheus_client`` takes a lock for each increment, which costs as much as parsing a scale's line.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Add an amount."""
        self.value += amount


class FastCounters(Collector):
    """Fast counters of one metric, one for each combination of label values; one in all without labels."""

    def __init__(
        self, name: str, documentation: str, labels: tuple[str, ...] = (), *, registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._counters: dict[tuple[str, ...], FastCounter] = {}
        registry.register(self)

    def labels(self, *values: str) -> FastCounter:
        """Return the counter of these label values."""
        counter = self._counters.get(values)
        if counter is None:
            counter = self._counters[values] = FastCounter()
        return counter

    def describe(self) -> Iterator[CounterMetricFamily]:
        """Yield the metric without values."""
        yield CounterMetricFamily(self._name, self._documentation, labels=self._labels)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the metric with all values."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, counter in self._counters.items():
            family.add_metric(values, counter.value)
        yield family


class FastHistogram:
    """Histogram that only the reactor's thread changes.

    The histogram of ``prometheus_client`` takes ten times as long for each observation.

    :ivar counts: observations by bucket, those above all bounds last.
    :ivar total: sum of all observations.
    """

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count an observation."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds


class FastHistograms(Collector):
    """Fast histograms of one metric, one for each combination of label values; one in all without labels."""

    def __init__(
        self, name: str, documentation: str, labels: tuple[str, ...] = (), *, registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._histograms: dict[tuple[str, ...], FastHistogram] = {}
        registry.register(self)

    def labels(self, *values: str) -> FastHistogram:
        """Return the histogram of these label values."""
        return self._histograms.setdefault(values, FastHistogram())

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """Yield the metric without values."""
        yield HistogramMetricFamily(self._name, self._documentation, labels=self._labels)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the metric with all values."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, histogram in self._histograms.items():
            buckets = list(zip(_BUCKET_NAMES, accumulate(histogram.counts), strict=True))
            family.add_metric(values, buckets, histogram.total)
        yield family


class AskedGauge(Collector):
    """Gauge that asks for its values when it is read, so that series come and go with their subjects."""

    def __init__(
        self, name: str, documentation: str, labels: tuple[str, ...] = (), *, registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._series: Callable[[], Series] = tuple
        registry.register(self)

    def ask(self, series: Callable[[], Series]) -> None:
        """Set the source of all series. It must be quick and must not block."""
        self._series = series

    def ask_one(self, value: Callable[[], float]) -> None:
        """Set the source of the value of a gauge without labels."""
        self.ask(lambda: [((), value())])

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metric without values."""
        yield GaugeMetricFamily(self._name, self._documentation, labels=self._labels)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metric with its current values."""
        family = GaugeMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, value in self._series():
            family.add_metric(values, value)
        yield family
