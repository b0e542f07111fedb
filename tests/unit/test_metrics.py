"""Counters as /metrics gives them."""

from prometheus_client import generate_latest
from prometheus_client.openmetrics import exposition, parser
from prometheus_client.parser import text_string_to_metric_families

from gateway.runtime.metric_types import BUCKETS
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


def test_no_format_has_created_series() -> None:
    counters = Counters()
    counters.commits.labels("ok").inc()
    texts = generate_latest(counters.registry) + exposition.generate_latest(counters.registry)
    assert b"cynow_commits_total" in texts
    assert b"_created" not in texts


def test_openmetrics_text_is_valid() -> None:
    counters = Counters()
    counters.scale_readings.labels('dock "1"', "ST").inc()
    counters.http_seconds.labels("latest").observe(0.002)
    counters.machine_connected.ask(lambda: [(("ShotBlast",), 1)])
    text = exposition.generate_latest(counters.registry).decode()
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    assert families["cynow_build"].type == "info"
    assert families["cynow_http_request_seconds"].type == "histogram"
    assert [sample.labels for sample in families["cynow_machine_connected"].samples] == [{"machine": "ShotBlast"}]


def test_histogram_counts_each_observation_in_its_bucket_and_all_larger_ones() -> None:
    counters = Counters()
    for seconds in (0.0001, BUCKETS[1], 0.002, 60.0):
        counters.commit_seconds.observe(seconds)

    def count(bound: str) -> float | None:
        return counters.registry.get_sample_value("cynow_commit_seconds_bucket", {"le": bound})

    assert [count(bound) for bound in ("0.0005", "0.001", "0.0025", "10.0", "+Inf")] == [1, 2, 3, 3, 4]
    assert counters.registry.get_sample_value("cynow_commit_seconds_count") == 4
    assert counters.registry.get_sample_value("cynow_commit_seconds_sum") == 0.0001 + 0.001 + 0.002 + 60.0


def test_series_of_an_asked_gauge_come_and_go() -> None:
    counters = Counters()
    connected = {"dock-1": 1.0}
    counters.scale_connected.ask(lambda: [((scale_id,), value) for scale_id, value in connected.items()])

    def value(scale_id: str) -> float | None:
        return counters.registry.get_sample_value("cynow_scale_connected", {"scale_id": scale_id})

    assert (value("dock-1"), value("dock-2")) == (1.0, None)
    connected.clear()
    connected["dock-2"] = 0.0
    assert (value("dock-1"), value("dock-2")) == (None, 0.0)
