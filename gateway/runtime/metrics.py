"""Everything that is counted, read at ``/metrics``.

Labels are scales of the configuration and fixed words only: no machine's, sensor's or cylinder's name, which
strangers could choose.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector


class FastCounter:
    """A number that only rises, and that only the reactor's thread changes.

    ``prometheus_client``'s own takes a lock each time, which costs as much as reading a line of a scale.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        self.value += amount


class FastCounters(Collector):
    """The tallies of one metric, by the values of its labels; without labels, there is one."""

    def __init__(
        self, name: str, documentation: str, labels: tuple[str, ...] = (), *, registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._tallies: dict[tuple[str, ...], FastCounter] = {}
        registry.register(self)

    def labels(self, *values: str) -> FastCounter:
        """The tally of some values of the labels."""
        tally = self._tallies.get(values)
        if tally is None:
            tally = self._tallies[values] = FastCounter()
        return tally

    def describe(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._documentation, labels=self._labels)

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, tally in self._tallies.items():
            family.add_metric(values, tally.value)
        yield family


class Counters:
    """One registry and what is in it; made once, handed to whoever counts."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        #: Functions that log how many lines a rate limit left out, one of each such log; see `report_log`.
        self.log_reports: list[Callable[[bool], None]] = []
        ProcessCollector(registry=registry)

        self.scale_readings = FastCounters(
            "cynow_scale_readings_total", "Readings of a scale, by status.", ("scale_id", "status"), registry=registry
        )
        self.scale_rejected = Counter(
            "cynow_scale_rejected_lines_total", "Lines of a scale that are no reading.", ["scale_id"], registry=registry
        )
        self.scale_overlong = Counter(
            "cynow_scale_overlong_lines_total",
            "Lines of a scale beyond 1 KiB, skipped.",
            ["scale_id"],
            registry=registry,
        )
        self.scale_http_requests = Counter(
            "cynow_scale_http_requests_total",
            "Connections of a scale that were closed for an HTTP request or a TLS handshake.",
            ["scale_id"],
            registry=registry,
        )
        self.scale_silent_closed = Counter(
            "cynow_scale_silent_connections_closed_total",
            "Connections of a scale without a reading that were closed for a new one: the limit is reached.",
            ["scale_id"],
            registry=registry,
        )
        self.scale_failed_attempts = Counter(
            "cynow_scale_failed_attempts_total",
            "Failed attempts to dial a scale or to open its serial line.",
            ["scale_id"],
            registry=registry,
        )
        self.connections = Gauge(
            "cynow_connections",
            "Open connections: scale, daq, http, websocket, events, socketio.",
            ["kind"],
            registry=registry,
        )
        self.connections_refused = Counter(
            "cynow_connections_refused_total",
            "Connections closed at once: the limit is reached (open_files: that of the process).",
            ["kind"],
            registry=registry,
        )
        self.daq_messages = FastCounters(
            "cynow_daq_messages_total", "Messages of DAQ programs, by event.", ("event",), registry=registry
        )
        self.daq_samples = FastCounters("cynow_daq_samples_total", "Samples of sensors.", registry=registry).labels()
        self.daq_nonfinite = Counter(
            "cynow_daq_nonfinite_samples_total",
            "Samples left out of means: NaN, infinite, or with a sum that exceeds a double. The raw files have them.",
            registry=registry,
        )
        self.daq_dropped = Counter(
            "cynow_daq_dropped_messages_total", "Frames of plain data that are no message.", registry=registry
        )
        self.daq_left_out = Counter(
            "cynow_daq_left_out_sensors_total",
            "Sensors that were left out of messages: a bad name, type or sample, or beyond a bound.",
            registry=registry,
        )
        self.daq_takeovers = Counter(
            "cynow_daq_takeovers_total",
            "DAQ connections that another of the same machine took over.",
            registry=registry,
        )
        self.daq_refused = Counter(
            "cynow_daq_refused_connections_total", "DAQ connections closed for what they sent.", registry=registry
        )
        self.daq_pauses = Counter(
            "cynow_daq_pauses_total", "Times that DAQ connections were paused: the store was behind.", registry=registry
        )
        self.events = FastCounters(
            "cynow_events_total", "Live events, the present seq included.", registry=registry
        ).labels()
        self.sink_failures = Counter(
            "cynow_sink_failures_total", "Records that a part of the gateway failed on.", ["sink"], registry=registry
        )
        self.subscribers = Gauge("cynow_subscribers", "Subscribers of live events.", registry=registry)
        self.subscribers_slow = Counter(
            "cynow_slow_subscribers_total", "Subscribers that were closed, for they read too slowly.", registry=registry
        )
        self.websocket_errors = Counter(
            "cynow_websocket_errors_total",
            "WebSocket handshakes, messages and Socket.IO packets that are refused.",
            registry=registry,
        )
        self.http_requests = FastCounters(
            "cynow_http_requests_total", "Answers to HTTP requests, by status.", ("status",), registry=registry
        )
        self.http_slow = Counter(
            "cynow_http_slow_connections_total",
            "HTTP connections closed for their slowness (head: of a request, body: of a request, reader: of an answer, "
            "idle: no request).",
            ["what"],
            registry=registry,
        )
        self.commits = Counter(
            "cynow_commits_total",
            "Commit requests, by outcome (ok, replayed, or the error).",
            ["outcome"],
            registry=registry,
        )
        self.raw_lost = Counter(
            "cynow_rawlog_lost_bytes_total", "Bytes of raw CSV that could not be written.", registry=registry
        )
        self.raw_damaged = Counter(
            "cynow_rawlog_damaged_bytes_total",
            "Bytes of raw files that are not samples: NUL bytes, torn and unreadable lines.",
            registry=registry,
        )
        self.raw_missing = Counter(
            "cynow_rawlog_missing_bytes_total",
            "Bytes of raw files that statistics count and the files do not hold any more.",
            registry=registry,
        )
        self.raw_compressed = Counter(
            "cynow_rawlog_compressed_files_total", "Raw files that were compressed.", registry=registry
        )
        self.raw_removed = Counter(
            "cynow_rawlog_removed_files_total", "Raw files that were removed as configured.", registry=registry
        )
        self.raw_failures = Counter("cynow_rawlog_failures_total", "Failed writes of raw CSV.", registry=registry)
        self.store_retries = Counter(
            "cynow_store_retries_total", "Writes of statistics and anomalies that were put off.", registry=registry
        )
        self.store_lost = Counter(
            "cynow_store_lost_total", "Writes of statistics and anomalies given up.", registry=registry
        )
        self.store_waiting = Gauge(
            "cynow_store_waiting", "Writes of statistics and anomalies that wait.", registry=registry
        )
        self.spool_waiting = Gauge(
            "cynow_spool_waiting", "Statistics and anomalies on the disk that wait for PostgreSQL.", registry=registry
        )
        self.relay_gateways = Gauge(
            "cynow_relay_gateways", "Other gateways on the same database that are heard.", registry=registry
        )
        self.relay_sent = Counter(
            "cynow_relay_sent_records_total", "Records that were sent to other gateways.", registry=registry
        )
        self.relay_received = Counter(
            "cynow_relay_received_records_total", "Live events of other gateways.", registry=registry
        )
        self.relay_dropped = Counter(
            "cynow_relay_dropped_records_total",
            "Records that other gateways were not sent (away: PostgreSQL is, full: too many waited, long: over the "
            "limit of NOTIFY, failed: PostgreSQL did not take them).",
            ["reason"],
            registry=registry,
        )
        self.relay_gaps = Counter(
            "cynow_relay_gaps_total", "Times that notifications of another gateway were lost.", registry=registry
        )
        self.relay_rejected = Counter(
            "cynow_relay_rejected_total", "Notifications, or parts of them, that no gateway sends.", registry=registry
        )
        self.push_messages = Counter(
            "cynow_push_messages_total",
            "Push messages, by outcome (sent, failed, expired: too old, held: within the interval, "
            "dropped: queue full), and tries that are made again (retried).",
            ["outcome"],
            registry=registry,
        )
        self.log_suppressed = Counter(
            "cynow_log_suppressed_total", "Log lines left out by a rate limit.", registry=registry
        )

    def report_log(self, everything: bool) -> None:
        """Log how many lines rate limits left out.

        :param everything: include periods that have not ended.
        """
        for report in self.log_reports:
            report(everything)
