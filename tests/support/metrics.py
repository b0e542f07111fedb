"""Values of metrics."""

from prometheus_client import Counter, Gauge


def count_of(metric: Counter | Gauge) -> float:
    """Return the value of a metric without labels, or of one child of a metric with labels."""
    value: float = metric._value.get()
    return value
