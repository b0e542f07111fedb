"""Fast routes on a site in memory."""

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger, capturedLogs
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from gateway.runtime.clock import WallClock, zone_named
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.store.interface import StoreUnavailable
from gateway.web.http.answers import Refusal, encoded_answer
from gateway.web.http.fast_routes import FastRoutes
from gateway.web.http.host_checks import HostChecks
from gateway.web.http.request import Traffic
from gateway.web.http.root import Root
from gateway.web.http.site import GatewaySite
from tests.support.access import no_client_checks, open_gate


class Rest(Resource):
    """Resource in the place of Klein's."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        return b"rest " + b"/".join(request.postpath)


class Plant:
    """Site whose only fast route returns a result set by the test."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.request: Any = None
        counters = Counters()
        warnings = LimitedLog(Logger("tests"), WallClock(zone_named("UTC")), counters)
        self.traffic = Traffic(
            counters, warnings, HostChecks([]), open_gate(counters), no_client_checks(counters), 1000
        )
        direct = FastRoutes({(b"POST", b"a/b"): ("commit", self.route)}, Rest())
        self.site = GatewaySite(Clock(), Root({"api": direct}, Rest()), self.traffic, counters, 10)
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 1))
        self.channel = self.site.buildProtocol(None)
        self.channel.makeConnection(self.transport)

    def route(self, request: Any) -> Any:
        self.request = request
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def post(self, path: str = "/api/a/b") -> None:
        self.channel.dataReceived(f"POST {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    def answers(self) -> list[bytes]:
        """Return the first line of each answer."""
        return [line for line in self.transport.value().split(b"\r\n") if b"HTTP/1.1 " in line]


@pytest.mark.parametrize(
    ("path", "answer"),
    [("/api/a/b", b"direct"), ("/api/a/b/", b"direct"), ("/api/a", b"rest a"), ("/api/a/b/c", b"rest a/b/c")],
)
def test_request_without_a_fast_route_goes_to_the_rest(path: str, answer: bytes) -> None:
    plant = Plant(b"direct")
    plant.post(path)
    assert plant.transport.value().endswith(b"\r\n\r\n" + answer)
    plant.channel.dataReceived(b"GET /api/a/b HTTP/1.1\r\nHost: x\r\n\r\n")
    assert plant.transport.value().endswith(b"rest a/b")


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (Refusal(409, "stale_weight"), 409, b"stale_weight"),
        (StoreUnavailable("away"), 503, b"store_unavailable"),
        (KeyError("a mistake"), 500, b"internal_error"),
    ],
)
def test_error_of_a_route_is_answered_in_the_common_form(
    error: Exception, status: int, word: bytes, later: bool
) -> None:
    waiting: Deferred[bytes] = Deferred()
    plant = Plant(waiting if later else error)
    with capturedLogs() as logs:
        plant.post()
        if later:
            assert plant.answers() == []
            waiting.errback(error)
    (line,) = plant.answers()
    assert line.startswith(b"HTTP/1.1 %d " % status)
    assert b'"error":"%b"' % word in plant.transport.value()
    assert (b"\r\nRetry-After: " in plant.transport.value()) == (status == 503)
    assert len([event for event in logs if "log_failure" in event]) == (status == 500)
    # The next request is answered on the same connection.
    plant.result = b"direct"
    plant.post()
    assert plant.transport.value().endswith(b"\r\n\r\ndirect")


@pytest.mark.parametrize("error", [None, Refusal(409, "stale_weight"), KeyError("a mistake")])
def test_result_for_a_client_that_has_left_is_dropped(error: Exception | None) -> None:
    waiting: Deferred[bytes] = Deferred()
    plant = Plant(waiting)
    plant.post()
    drained = plant.traffic.drained()
    assert not drained.called
    plant.channel.connectionLost(Failure(ConnectionLost()))
    assert drained.called
    with capturedLogs() as logs:
        if error is None:
            waiting.callback(encoded_answer(plant.request, b"{}"))
        else:
            waiting.errback(error)
    assert plant.transport.value() == b""
    # Only an unexpected error is logged.
    assert len(logs) == isinstance(error, KeyError)


def test_shutdown_waits_for_an_unfinished_answer() -> None:
    waiting: Deferred[bytes] = Deferred()
    plant = Plant(waiting)
    plant.post()
    drained = plant.traffic.drained()
    assert not drained.called
    waiting.callback(encoded_answer(plant.request, b"done"))
    assert drained.called
    assert plant.transport.value().endswith(b"\r\n\r\ndone")


def test_form_is_not_parsed_into_arguments() -> None:
    plant = Plant(b"")
    plant.channel.dataReceived(
        b"POST /api/a/b?x=1&x=2&y= HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: 3\r\n\r\nz=3"
    )
    assert plant.request.args == {b"x": [b"1", b"2"], b"y": [b""]}
    assert plant.request.path == b"/api/a/b"
