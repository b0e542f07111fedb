"""Server-sent events on a real daemon."""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.daemon import PATIENCE, Daemon, running, until
from tests.support.frames import frame


class Events:
    """Open answer with events."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.headers = response.headers

    def block(self) -> dict[str, str]:
        """Return the next fields up to a blank line; a comment has an empty name."""
        fields = {}
        while line := self._response.readline().decode().rstrip("\n"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        assert fields, "the answer has ended"
        return fields

    def next_event(self) -> tuple[int, Any]:
        """Return the next event and its id."""
        while "data" not in (block := self.block()):
            pass
        return int(block["id"]), json.loads(block["data"])


@contextlib.contextmanager
def events(daemon: Daemon, query: str, **headers: str) -> Iterator[Events]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    try:
        connection.request("GET", f"/events?{query}", headers={k.replace("_", "-"): v for k, v in headers.items()})
        response = connection.getresponse()
        assert response.status == 200
        yield Events(response)
    finally:
        connection.close()


def test_snapshot_events_and_missed_events_arrive_in_order(daemon: Daemon) -> None:
    daemon.weigh(b"ST,+00001.00 kg")
    until(daemon.latest_is(1.0), "the weight")
    with events(daemon, "topics=scale/default,machine/*") as its:
        assert its.headers["content-type"] == "text/event-stream"
        assert its.headers["cache-control"] == "no-store"
        assert its.block() == {"retry": "2000"}
        number, snapshot = its.next_event()
        assert (snapshot["event"], snapshot["data"]["latest"]["weight"]) == ("snapshot", 1.0)
        assert snapshot["seq"] == number
        daemon.daq(frame("name", "M"), frame("FaultDetect", {"score": 0.5, "threshold": 1.0}))
        heard = [its.next_event(), its.next_event()]
        # Events of the scale's connection may arrive in between.
        while heard[-1][1]["event"] != "anomaly":
            heard.append(its.next_event())
        last, event = heard[-1]
        assert (event["seq"], event["topic"], event["data"]["score"]) == (last, "machine/M", 0.5)
        assert [number for number, _ in heard] == list(range(number + 1, last + 1))
    until(lambda: daemon.metric("cynow_connections", kind="events") == 0, "it has gone")
    machine = daemon.daq(frame("name", "N"))
    for score in (1.5, 2.5):
        machine.sendall(frame("FaultDetect", {"score": score, "threshold": 1.0}))
    # The header that a browser sends, or a parameter; several topics in one parameter or in two.
    for query, headers in (
        ("topics=machine/N&topics=scale/default", {"Last_Event_ID": str(last)}),
        (f"topics={quote('machine/N,scale/default', safe='')}&since={last}", {}),
    ):
        with events(daemon, query, **headers) as its:
            missed: list[Any] = []
            while len(missed) < 2:
                _, event = its.next_event()
                assert event["event"] != "snapshot"
                if event["event"] == "anomaly":
                    missed.append(event["data"]["score"])
            assert missed == [1.5, 2.5]


@pytest.mark.parametrize(
    "query",
    ["", "topics=", "topics=,", "topics=scale", "topics=scale/a/b", "topics=scale/*&since=-1", "topics=*/*&since=x"],
)
def test_invalid_query_is_refused(shared_daemon: Daemon, query: str) -> None:
    status, content, _ = shared_daemon.get(f"/events?{query}")
    assert (status, content["error"]) == (400, "invalid_request")
    assert content["message"]


def test_other_methods_are_refused(shared_daemon: Daemon) -> None:
    status, content, headers = shared_daemon.request("POST", "/events?topics=*/*", b"")
    assert (status, content["error"], headers["allow"]) == (405, "method_not_allowed", "GET, HEAD")
    status, content, headers = shared_daemon.request("HEAD", "/events?topics=*/*")
    assert (status, content, headers["content-type"]) == (200, b"", "text/event-stream")


def test_client_that_does_not_read_is_disconnected_without_effect_on_others(tmp_path: Path) -> None:
    with running(tmp_path, limits={"subscriber_bytes": 100_000, "backlog_bytes": 1_000_000}) as daemon:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", daemon.port))
            slow.sendall(b"GET /events?topics=machine/*/samples HTTP/1.1\r\nHost: x\r\n\r\n")
            until(lambda: daemon.metric("cynow_connections", kind="events") == 1, "it is there")
            before = daemon.resident_mib()
            quick = daemon.subscribe("scale/default")
            machine = daemon.daq(frame("name", "Loud"))
            loud = frame("DataUpdate", {"v": {"type": "VIB", "data": [0.123456789] * 5000}})
            sent = 0
            while daemon.metric("cynow_slow_subscribers_total") == 0:
                machine.sendall(loud)
                sent += 1
                assert sent < 1000, "the slow client was never cut off"
            assert daemon.resident_mib() < before + 30
            daemon.weigh(b"US,+00001.00 kg")
            quick.events(1, "reading")
            until(lambda: daemon.metric("cynow_connections", kind="events") == 0, "it has gone")


def test_shutdown_completes_the_answer(tmp_path: Path) -> None:
    with running(tmp_path) as daemon, events(daemon, "topics=scale/default") as its:
        its.next_event()
        assert daemon.terminate() == 0
        # A complete answer: a proxy sees no error.
        assert its._response.read() == b""


def test_subscribers_of_all_transports_share_one_bound(tmp_path: Path) -> None:
    with running(tmp_path, limits={"subscribers": 2}) as daemon, events(daemon, "topics=scale/default"):
        daemon.subscribe("scale/default").hear()
        for path in ("/events?topics=scale/default", "/socket.io/?EIO=4&transport=polling"):
            assert daemon.get(path)[0] == 503
        with pytest.raises(Exception, match="503"):
            daemon.stream()
