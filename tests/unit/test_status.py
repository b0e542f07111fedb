"""``/readyz`` and ``/metrics`` as requests get them, and the sources of their values."""

import json
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger

from gateway.assembly.status import MAX_MACHINES, _machine_series
from gateway.auth.principal import NOBODY
from gateway.model.records import Presence
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.web.http.host_checks import HostChecks
from gateway.web.http.request import AnswerTimes, GatewayRequest, Traffic
from gateway.web.http.root import Root
from gateway.web.http.site import GatewaySite
from gateway.web.rest.status import StatusApi
from tests.support.access import no_client_checks, open_gate
from tests.support.runtime import make_runtime

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


class StatusSite:
    """Site with the paths of the gateway's state, without sockets."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.runtime = runtime = make_runtime(self.clock)
        counters = runtime.counters
        api = StatusApi(self.clock, runtime.live, counters, runtime.health.problems, runtime.readiness)
        warnings = LimitedLog(Logger("tests"), runtime.clock, counters)
        self.traffic = Traffic(
            counters,
            warnings,
            HostChecks([]),
            open_gate(counters),
            no_client_checks(counters),
            1000,
            self.clock.seconds,
        )
        self.site = GatewaySite(self.clock, Root({}, api.app.resource()), self.traffic, counters, 10)
        self.channel: Any = None

    def get(self, path: str, accept: str = "*/*", *, reconnect: bool = True) -> tuple[bytes, dict[bytes, bytes], bytes]:
        """Return status line, headers and body of an answer."""
        if reconnect or self.channel is None:
            self.channel = self.site.buildProtocol(None)
            self.channel.makeConnection(StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 1)))
        transport = self.channel.transport
        self.channel.dataReceived(f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())
        head, _, content = transport.value().partition(b"\r\n\r\n")
        transport.clear()
        status, *lines = head.split(b"\r\n")
        return status, {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}, content


@pytest.fixture
def site() -> StatusSite:
    return StatusSite()


def test_part_that_is_down_gives_503_with_retry_after(site: StatusSite) -> None:
    site.runtime.readiness.watch("disk", "down", lambda: ["0 MiB are free"])
    status, headers, content = site.get("/readyz")
    assert status.startswith(b"HTTP/1.1 503 ")
    assert (headers[b"retry-after"], headers[b"cache-control"]) == (b"2", b"no-store")
    answer = json.loads(content)
    assert (answer["ok"], answer["state"]) == (False, "down")
    assert answer["parts"]["disk"] == {"state": "down", "details": ["0 MiB are free"]}


def test_client_without_the_scope_read_gets_no_details(site: StatusSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatewayRequest, "principal", NOBODY)
    site.runtime.readiness.watch("scales", "degraded", lambda: ["scale dock-1 is not connected"])
    status, headers, content = site.get("/readyz")
    assert status.startswith(b"HTTP/1.1 200 ")
    assert headers[b"cache-control"] == b"no-store"
    assert json.loads(content) == {"ok": True, "state": "degraded"}
    assert site.get("/healthz")[0].startswith(b"HTTP/1.1 200 ")
    assert site.get("/metrics")[0].startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (OPENMETRICS, b"application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("*/*", b"text/plain"),
        ("text/plain", b"text/plain"),
        ("application/openmetrics-text;q=0.1,text/plain", b"text/plain"),
        ("application/json", b"text/plain"),
    ],
)
def test_metrics_have_the_format_that_the_client_prefers(site: StatusSite, accept: str, kind: bytes) -> None:
    _, headers, content = site.get("/metrics", accept)
    assert headers[b"content-type"].startswith(kind)
    assert content.endswith(b"# EOF\n") is (accept == OPENMETRICS)


def test_each_format_is_made_at_most_once_a_second_for_a_connection(site: StatusSite) -> None:
    site.runtime.counters.ready.ask_one(site.clock.seconds)

    def value(accept: str) -> float:
        text = site.get("/metrics", accept, reconnect=False)[2].decode()
        return float(text.partition("\ncynow_ready ")[2].partition("\n")[0])

    assert (value("*/*"), value(OPENMETRICS)) == (0, 0)
    site.clock.advance(0.5)
    assert (value("*/*"), value(OPENMETRICS)) == (0, 0)
    site.clock.advance(0.5)
    assert (value("*/*"), value(OPENMETRICS)) == (1, 1)


def test_answer_is_timed_from_the_complete_request(site: StatusSite) -> None:
    site.get("/healthz")
    value = site.runtime.counters.registry.get_sample_value
    assert value("cynow_http_request_seconds_count", {"path": "other"}) == 1
    assert value("cynow_http_request_seconds_sum", {"path": "other"}) == 0


@pytest.mark.parametrize(
    ("path", "label"),
    [
        (b"/api/scale-gateway/latest/", "latest"),
        (b"/api/scale-gateway/commit", "commit"),
        (b"/api/v1/machines/M/samples", "api"),
        (b"/stat/hour", "stat"),
        (b"/statistics", "other"),
        (b"/", "other"),
        (b"*", "other"),
        (b"/\xff", "other"),
    ],
)
def test_path_of_a_request_gives_one_of_a_few_labels(path: bytes, label: str) -> None:
    counters = Counters()
    AnswerTimes(counters).observe(path, 0.002)
    assert [
        sum(counters.http_seconds.labels(name).counts) for name in ("latest", "commit", "stat", "api", "other")
    ] == [int(name == label) for name in ("latest", "commit", "stat", "api", "other")]


def test_machines_above_the_bound_have_no_series_of_their_own() -> None:
    runtime = make_runtime(Clock())
    for number in range(MAX_MACHINES):
        runtime.bus.publish(Presence("machine", f"M{number}", connected=True))
        runtime.bus.publish(Presence("machine", f"M{number}", connected=number < 10))
    runtime.bus.publish(Presence("machine", "last", connected=True))
    series = dict(_machine_series(runtime.live))
    assert len(series) == MAX_MACHINES
    assert sum(series.values()) == 11
    assert series["last",] == 1
