"""Metrics of the gateway, read at ``/metrics``.

Label values are scales of the configuration, fixed words and, for one metric with a bound, names of machines. Names of
sensors and cylinders are not used, because clients choose them.
"""

import platform
from collections.abc import Callable

from prometheus_client import Counter, Gauge, Info, ProcessCollector

from gateway import __version__
from gateway.runtime.metric_types import AskedGauge, FastCounters, FastHistograms, GatewayRegistry


class Counters:
    """All metrics of one gateway, in one registry.

    :ivar log_reports: functions that log how many lines a rate limit left out, one for each such log.
    """

    def __init__(self) -> None:
        self.registry = GatewayRegistry()
        self.log_reports: list[Callable[[bool], None]] = []
        ProcessCollector(registry=self.registry)
        self._add_gateway()
        self._add_scales()
        self._add_connections()
        self._add_machines()
        self._add_events()
        self._add_http()
        self._add_raw_files()
        self._add_store()
        self._add_cylinders()
        self._add_relay()
        self.push_messages = self._counter(
            "cynow_push_messages_total",
            "Push messages, by outcome (sent, failed, expired: too old, held: within the interval, dropped: queue "
            "full), and attempts that are repeated (retried).",
            "outcome",
        )
        _begin_at_zero(self.push_messages, "sent", "failed", "expired", "dropped")
        self.log_suppressed = self._counter("cynow_log_suppressed_total", "Log lines left out by a rate limit.")

    def report_log(self, everything: bool) -> None:
        """Log how many lines rate limits left out.

        :param everything: include periods that have not ended.
        """
        for report in self.log_reports:
            report(everything)

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(name, documentation, labels, registry=self.registry)

    def _fast_counters(self, name: str, documentation: str, *labels: str) -> FastCounters:
        return FastCounters(name, documentation, labels, registry=self.registry)

    def _asked_gauge(self, name: str, documentation: str, *labels: str) -> AskedGauge:
        return AskedGauge(name, documentation, labels, registry=self.registry)

    def _fast_histograms(self, name: str, documentation: str, *labels: str) -> FastHistograms:
        return FastHistograms(name, documentation, labels, registry=self.registry)

    def _add_gateway(self) -> None:
        build = Info("cynow_build", "Version of the gateway and of Python.", registry=self.registry)
        build.info({"version": __version__, "python": platform.python_version()})
        self.ready = self._asked_gauge("cynow_ready", "1 if /readyz answers 200, 0 if it answers 503.")
        self.problems = self._asked_gauge("cynow_problems", "Problems that /healthz lists.")
        self.time = self._asked_gauge(
            "cynow_time_seconds", "Wall clock of the gateway, in seconds since 1970; to compare with other clocks."
        )
        self.disk_free = self._asked_gauge(
            "cynow_disk_free_bytes",
            "Free bytes of the file system of a folder: database, data, log.",
            "folder",
        )
        self.disk_size = self._asked_gauge(
            "cynow_disk_size_bytes",
            "Size in bytes of the file system of a folder: database, data, log.",
            "folder",
        )

    def _add_scales(self) -> None:
        self.scale_connected = self._asked_gauge(
            "cynow_scale_connected", "1 if a scale is connected to this gateway, otherwise 0.", "scale_id"
        )
        self.scale_line_age = self._asked_gauge(
            "cynow_scale_last_line_age_seconds",
            "Seconds since the last line of a scale, valid or not; absent before the first line.",
            "scale_id",
        )
        self.scale_readings = self._fast_counters(
            "cynow_scale_readings_total", "Readings of a scale, by status.", "scale_id", "status"
        )
        self.scale_rejected = self._counter(
            "cynow_scale_rejected_lines_total", "Lines of a scale that are not valid readings.", "scale_id"
        )
        self.scale_overlong = self._counter(
            "cynow_scale_overlong_lines_total", "Lines of a scale that exceed 1 KiB and are skipped.", "scale_id"
        )
        self.scale_held = self._counter(
            "cynow_scale_held_total",
            "Lines of a scale that were held for another width or number of decimals (line_pattern_lock).",
            "scale_id",
        )
        self.scale_discarded = self._counter(
            "cynow_scale_discarded_lines_total",
            "Lines of a scale that were discarded because they came too soon after connecting (discard_ms).",
            "scale_id",
        )
        self.scale_polls_stuck = self._counter(
            "cynow_scale_polls_stuck_total",
            "Connections of a scale that were closed because the peer did not read the commands of poll.",
            "scale_id",
        )
        self.scale_http_requests = self._counter(
            "cynow_scale_http_requests_total",
            "Connections of a scale that were closed for an HTTP request or a TLS handshake.",
            "scale_id",
        )
        self.scale_silent_closed = self._counter(
            "cynow_scale_silent_connections_closed_total",
            "Connections of a scale without a reading that were closed for a new one at the connection limit.",
            "scale_id",
        )
        self.scale_failed_attempts = self._counter(
            "cynow_scale_failed_attempts_total",
            "Failed attempts to dial a scale or to open its serial line.",
            "scale_id",
        )
        self._add_passports()

    def _add_passports(self) -> None:
        self.scale_check_deviation = self._asked_gauge(
            "cynow_scale_check_deviation_kg",
            "Shown weight minus nominal one at the last check of a scale; absent before the first check.",
            "scale_id",
        )
        self.scale_zero_drift = self._asked_gauge(
            "cynow_scale_zero_drift_kg",
            "Mean of the last stable weights of an empty scale; absent before there are ten.",
            "scale_id",
        )
        self.scale_zero_noise = self._asked_gauge(
            "cynow_scale_zero_noise_kg",
            "Standard deviation of the last stable weights of an empty scale; absent before there are ten.",
            "scale_id",
        )
        self.scale_calibration_due = self._asked_gauge(
            "cynow_scale_calibration_due_days",
            "Days until check_weigh.calibration_due of a scale, negative when overdue; absent without that key.",
            "scale_id",
        )

    def _add_connections(self) -> None:
        self.connections = self._gauge(
            "cynow_connections", "Open connections: scale, daq, http, websocket, events, socketio.", "kind"
        )
        self.connections_refused = self._counter(
            "cynow_connections_refused_total",
            "Connections closed at once at the limit (open_files: at the process's limit of open files; not_allowed: "
            "their address is not in allow).",
            "kind",
        )
        self.tls_expiry = self._gauge(
            "cynow_tls_certificate_expiry_timestamp_seconds",
            "Time at which the certificate of a listener (server, daq, a scale) expires, in Unix time.",
            "listener",
        )
        self.tls_failures = self._counter(
            "cynow_tls_handshake_failures_total", "TLS handshakes that failed or took too long.", "listener"
        )

    def _add_machines(self) -> None:
        self.machines_connected = self._asked_gauge(
            "cynow_machines_connected", "Machines that are connected to this gateway."
        )
        self.machine_connected = self._asked_gauge(
            "cynow_machine_connected",
            "1 if a machine is connected to this gateway, 0 if it was before; at most 1,000 machines.",
            "machine",
        )
        self.daq_messages = self._fast_counters(
            "cynow_daq_messages_total", "Messages of DAQ programs, by event.", "event"
        )
        self.daq_samples = self._fast_counters("cynow_daq_samples_total", "Samples of sensors.").labels()
        self.daq_nonfinite = self._counter(
            "cynow_daq_nonfinite_samples_total",
            "Samples left out of means: NaN, infinite, or with a sum that exceeds a double. Raw files include them.",
        )
        self.daq_dropped = self._counter(
            "cynow_daq_dropped_messages_total", "Frames of plain data that are not valid messages."
        )
        self.daq_left_out = self._counter(
            "cynow_daq_left_out_sensors_total",
            "Sensors left out of messages: an invalid name, type or sample, or beyond a limit.",
        )
        self.daq_takeovers = self._counter(
            "cynow_daq_takeovers_total", "DAQ connections replaced by another connection of the same machine."
        )
        self.daq_refused = self._counter(
            "cynow_daq_refused_connections_total", "DAQ connections closed because of invalid input."
        )
        self.daq_unproven = self._counter(
            "cynow_daq_unproven_connections_total",
            "DAQ connections refused for lack of a proof of their machine (listed, allow, certificate, secret).",
            "proof",
        )
        self.daq_pauses = self._counter(
            "cynow_daq_pauses_total", "Pauses of DAQ connections because the store was behind."
        )

    def _add_events(self) -> None:
        self.events = self._fast_counters(
            "cynow_events_total", "Live events; equal to the current event number."
        ).labels()
        self.sink_failures = self._counter(
            "cynow_sink_failures_total", "Records that a part of the gateway failed to process.", "sink"
        )
        self.subscribers = self._gauge("cynow_subscribers", "Subscribers of live events.")
        self.subscribers_slow = self._counter(
            "cynow_slow_subscribers_total", "Subscribers that were disconnected because they read too slowly."
        )
        self.websocket_errors = self._counter(
            "cynow_websocket_errors_total", "Refused WebSocket handshakes, WebSocket messages and Socket.IO packets."
        )

    def _add_http(self) -> None:
        self.http_requests = self._fast_counters(
            "cynow_http_requests_total", "Answers to HTTP requests, by status.", "status"
        )
        self.auth_refused = self._counter(
            "cynow_auth_refused_total",
            "Requests and connections without the rights that they need (missing: no token, invalid: not known, "
            "expired, forbidden: without the scope, ended: the token of a live connection is no longer valid).",
            "reason",
        )
        self.http_limited = self._counter(
            "cynow_http_limited_requests_total", "Requests refused with 429: more than limits.requests_per_second."
        )
        self.http_seconds = self._fast_histograms(
            "cynow_http_request_seconds",
            "Seconds from a complete request to the end of its answer, without live events (latest, commit, stat, api: "
            "other paths below /api, other).",
            "path",
        )
        self.http_slow = self._counter(
            "cynow_http_slow_connections_total",
            "HTTP connections closed because they were slow (head: sending a request's head, body: sending its body, "
            "reader: reading an answer, idle: without a request).",
            "what",
        )
        self.commits = self._counter(
            "cynow_commits_total", "Commit requests, by outcome (ok, replayed, or the error).", "outcome"
        )
        _begin_at_zero(self.commits, "ok", "store_unavailable", "outcome_unknown", "rejected_by_database")
        self.commit_seconds = self._fast_histograms(
            "cynow_commit_seconds", "Seconds that the store took for a commit, whatever the outcome."
        ).labels()

        self.record_failures = self._counter(
            "cynow_record_publish_failures_total",
            "Heads of the record that could not be published (file, webhook, gateway).",
            "target",
        )
        _begin_at_zero(self.record_failures, "file", "webhook", "gateway")

    def _add_raw_files(self) -> None:
        self.raw_lost = self._counter("cynow_rawlog_lost_bytes_total", "Bytes of raw CSV that could not be written.")
        self.raw_damaged = self._counter(
            "cynow_rawlog_damaged_bytes_total",
            "Bytes of raw files that are not samples: NUL bytes, torn and unreadable lines.",
        )
        self.raw_missing = self._counter(
            "cynow_rawlog_missing_bytes_total",
            "Bytes of raw files that statistics count and the files no longer contain.",
        )
        self.raw_compressed = self._counter("cynow_rawlog_compressed_files_total", "Compressed raw files.")
        self.raw_removed = self._counter(
            "cynow_rawlog_removed_files_total", "Raw files removed by retention, as configured."
        )
        self.raw_failures = self._counter("cynow_rawlog_failures_total", "Failed writes of raw CSV.")

    def _add_store(self) -> None:
        self.store_up = self._asked_gauge("cynow_store_up", "1 if the store takes commits, otherwise 0.")
        self.spool_bytes = self._asked_gauge(
            "cynow_spool_bytes", "Bytes of database.spool_mb that the spool uses; only with PostgreSQL."
        )
        self.store_retries = self._counter("cynow_store_retries_total", "Postponed writes of statistics and anomalies.")
        self.store_lost = self._counter("cynow_store_lost_total", "Abandoned writes of statistics and anomalies.")
        self.store_waiting = self._gauge("cynow_store_waiting", "Statistics and anomalies that wait for the store.")
        self.spool_waiting = self._gauge(
            "cynow_spool_waiting", "Statistics and anomalies in the spool that wait for PostgreSQL."
        )
        self.tickets_waiting = self._gauge("cynow_tickets_waiting", "Commits that wait for PostgreSQL as tickets.")
        self.tickets = self._counter(
            "cynow_tickets_total",
            "Tickets (made; written: a row was written, known: there was a row with the same request or key, rejected: "
            "the database rejects the row, full: refused at database.max_tickets).",
            "outcome",
        )

    def _add_cylinders(self) -> None:
        self.cylinder_lookups = self._counter(
            "cynow_cylinder_lookups_total",
            "Look-ups of cylinders for commits (hit: from the cache, found, absent: no row, slow: no answer "
            "within cylinders.timeout_ms, failed, busy: too many queries ran).",
            "outcome",
        )
        _begin_at_zero(self.cylinder_lookups, "hit", "found", "absent", "slow", "failed", "busy")
        self.cylinder_unreadable = self._counter(
            "cynow_cylinder_unreadable_values_total",
            "Values of the table of cylinders that cannot be read and count as unknown, by column.",
            "column",
        )
        self.cylinders_cached = self._asked_gauge(
            "cynow_cylinders_cached", "Cylinders in the cache, at most cylinders.cache_size."
        )

    def _add_relay(self) -> None:
        self.relay_gateways = self._gauge("cynow_relay_gateways", "Connected gateways on the same database.")
        self.relay_sent = self._counter("cynow_relay_sent_records_total", "Records sent to other gateways.")
        self.relay_received = self._counter("cynow_relay_received_records_total", "Live events from other gateways.")
        self.relay_dropped = self._counter(
            "cynow_relay_dropped_records_total",
            "Records not sent to other gateways (away: PostgreSQL is unavailable, full: too many waited, long: over "
            "the limit of NOTIFY, failed: PostgreSQL refused them).",
            "reason",
        )
        self.relay_gaps = self._counter("cynow_relay_gaps_total", "Gaps in the notifications of another gateway.")
        self.relay_rejected = self._counter(
            "cynow_relay_rejected_total",
            "Notifications that were ignored (foreign: not of a gateway with the key, old: repeated, or sent before "
            "this gateway listened, invalid: a part or all of a gateway's notification).",
            "reason",
        )


def _begin_at_zero(counter: Counter, *values: str) -> None:
    """Show series before they count, so that Prometheus sees their first increase, which an alert waits for."""
    for value in values:
        counter.labels(value)
