"""Counters as /metrics gives them."""

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.runtime.metrics import Counters


def test_tallies_are_counters_like_the_others() -> None:
    counters = Counters()
    counters.scale_readings.labels('dock "1"', "ST").inc()
    counters.scale_readings.labels('dock "1"', "ST").inc(2)
    counters.scale_readings.labels('dock "1"', "OL").inc()
    counters.daq_samples.inc(30)
    families = {
        family.name: family for family in text_string_to_metric_families(generate_latest(counters.registry).decode())
    }
    readings = families["cynow_scale_readings"]
    assert (readings.type, readings.documentation) == ("counter", "Readings of a scale, by status.")
    found = {
        sample.labels["status"]: (sample.name, sample.labels["scale_id"], sample.value) for sample in readings.samples
    }
    assert found == {
        "ST": ("cynow_scale_readings_total", 'dock "1"', 3.0),
        "OL": ("cynow_scale_readings_total", 'dock "1"', 1.0),
    }
    assert [sample.value for sample in families["cynow_daq_samples"].samples] == [30.0]
    # Nothing was counted yet.
    assert [sample.value for sample in families["cynow_events"].samples] == [0.0]


def test_no_name_is_given_twice() -> None:
    names = [family.name for family in Counters().registry.collect()]
    assert len(names) == len(set(names))
