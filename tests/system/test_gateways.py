"""Several gateways on one real server: each shows the whole site, also after failures of peers or the server."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.store.postgres.notify import CHANNEL
from tests.support.daemon import PATIENCE, Daemon, Stopwatch, until, with_constants
from tests.support.frames import fault, frame
from tests.support.postgres import Server
from tests.system.test_recovery import AT_TIME, seoul, set_clock

#: Gateway that waits long for the answer to a ping, because the test reads its connections late.
FORBEARING = with_constants({"gateway.web.push.ws_endpoint._PING": 10 * PATIENCE})


@pytest.fixture
def start(server: Server, tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts a gateway with a scale of the same name."""
    with contextlib.ExitStack() as stack:

        def start(name: str, twistd: list[str] = FORBEARING) -> Daemon:
            (tmp_path / name).mkdir()
            gateway = Daemon(
                tmp_path / name,
                twistd,
                database={"url": server.url},
                gateway={"name": f"hall {name}"},
                scale={"id": name, "idle_timeout_sec": 3},
                timezone="Asia/Seoul",
            )
            stack.callback(gateway.end)
            gateway.start()
            until(lambda: gateway.get("/healthz")[1]["problems"] == [], "PostgreSQL is connected")
            return gateway

        yield start


def latest(gateway: Daemon, scale_id: str) -> Any:
    return gateway.get(f"/api/scale-gateway/latest/?scale_id={scale_id}")[1]


def weight(gateway: Daemon, scale_id: str) -> Any:
    return latest(gateway, scale_id).get("weight")


def machines(gateway: Daemon) -> Any:
    return gateway.get("/sio/machineList")[1]["machine_list"]


def others(gateway: Daemon, count: int) -> Callable[[], bool]:
    return lambda: gateway.metric("cynow_relay_gateways") == count


def test_gateway_shows_the_whole_site(server: Server, start: Callable[..., Daemon]) -> None:
    a, b = start("a"), start("b")
    for gateway in (a, b):
        until(others(gateway, 1), "they hear each other")
    client = b.subscribe("scale/*", "machine/*")
    until(lambda: latest(b, "a").get("error") == "no_data", "the other's scale")
    # Readings, with their original status and time.
    scale = a.scale()
    scale.sendall(b"US,+00001.00 kg\r\nST,+00053.26 kg\r\nOL,+99999.99 kg\r\n")
    first = client.events(4, "connected", "reading")
    assert [event["event"] for event in first] == ["connected", "reading", "reading", "reading"]
    assert {event["topic"] for event in first} == {"scale/a"}
    assert [event["data"]["weight"] for event in first[1:]] == [1.0, 53.26, None]
    assert first[2]["data"]["received_at"] == latest(a, "a")["received_at"]
    assert [event["seq"] for event in first] == list(range(first[0]["seq"], first[0]["seq"] + 4))
    there, here = latest(b, "a"), latest(a, "a")
    assert {**there, "age_ms": 0} == {**here, "age_ms": 0}
    # A commit of the peer's scale.
    status, answer, _ = b.commit("CY1", scale_id="a")
    assert (status, answer["gross_kg"]) == (200, 53.26)
    assert client.events(1, "commit")[0]["data"] == {**answer, "scale_id": "a"}
    followed = a.subscribe("scale/a")
    status, answer, _ = b.commit("CY2", scale_id="a")
    until(lambda: followed.events(1, "commit")[0]["data"]["id"] == answer["id"], "the commit")
    assert b.commit("CY3", scale_id="nowhere")[0] == 404
    # A machine, by both kinds of clients.
    polls = Polls(b)
    polls.post("40/sio/M,")
    polls.hear("40/sio/M")
    machine = a.daq(frame("name", "M"), fault(1.5), frame("DataUpdate", {"v": {"type": "VIB", "data": [1.0, 3.0]}}))
    events = client.events(2, "connected", "anomaly")
    assert [(event["topic"], event["event"]) for event in events] == [
        ("machine/M", "connected"),
        ("machine/M", "anomaly"),
    ]
    assert events[1]["data"]["score"] == 1.5
    assert polls.hear("42/sio/M") == ["anomaly", {"score": 1.5, "threshold": 1.0}]
    assert machines(a) == machines(b) == ["/M"]
    until(lambda: server.sql("SELECT score FROM cynow_anomaly") == [(1.5,)], "it is stored once")
    day = server.sql("SELECT (time::date)::text FROM cynow_anomaly")[0][0]
    found = [gateway.get(f"/stat/anomaly/all?start={day}&end={day}")[1] for gateway in (a, b)]
    assert found[0] == found[1]
    assert [event["score"] for event in found[0]] == [1.5]
    for gateway in (a, b):
        until(lambda gateway=gateway: gateway.get("/stat/machineList")[1] == {"machine_list": ["M"]}, "stored data")
    # The peer stops, after its machine has disconnected.
    machine.close()
    assert client.events(1, "disconnected")[0]["topic"] == "machine/M"
    assert machines(b) == []
    assert a.terminate() == 0
    assert client.events(1, "disconnected")[0]["topic"] == "scale/a"
    # The peer reports its end; it is not only noticed later.
    assert "hall a has stopped" in b.log()
    # Its weight stays and becomes stale.
    until(lambda: latest(b, "a")["stale"], "it is stale")
    assert weight(b, "a") == 53.26
    assert [row[0] for row in server.sql("SELECT cylinder_no FROM scale_weight_log ORDER BY id")] == ["CY1", "CY2"]
    assert server.sql("SELECT count(*) FROM cynow_anomaly") == [(1,)]


def test_killed_gateway_is_gone_for_its_peers(start: Callable[..., Daemon]) -> None:
    a, b = start("a"), start("b")
    until(others(b, 1), "they hear each other")
    client = b.subscribe("scale/a", "machine/M")
    a.scale().sendall(b"ST,+00001.00 kg\r\n")
    a.daq(frame("name", "M"))
    client.events(2, "connected")
    until(lambda: weight(b, "a") == 1.0, "the weight")
    watch = Stopwatch()
    a.kill()
    assert {event["topic"] for event in client.events(2, "disconnected")} == {"scale/a", "machine/M"}
    assert watch.seconds() < 9
    assert machines(b) == []
    assert weight(b, "a") == 1.0
    until(others(b, 0), "it is gone")
    a.start()
    a.scale().sendall(b"ST,+00002.00 kg\r\n")
    a.daq(frame("name", "M"))
    assert {event["topic"] for event in client.events(2, "connected")} == {"scale/a", "machine/M"}
    until(lambda: weight(b, "a") == 2.0, "the weight")
    assert machines(b) == ["/M"]


def test_later_gateway_gets_the_state(start: Callable[..., Daemon]) -> None:
    a = start("a")
    a.scale().sendall(b"ST,+00001.00 kg\r\n")
    a.daq(frame("name", "M"), frame("DataUpdate", {"v": {"type": "TEMP", "data": [1.0, 3.0]}}))
    until(lambda: latest(a, "a").get("stale"), "stale")
    b = start("b")
    found = until(lambda: its if (its := latest(b, "a")).get("weight") == 1.0 else None, "the weight")
    # The age counts from the weight, not from the message about it.
    assert found["stale"]
    until(lambda: machines(b) == ["/M"], "the machine")
    snapshots = [gateway.subscribe("scale/a", "machine/M").events(2, "snapshot") for gateway in (a, b)]
    by_topic = [{event["topic"]: event["data"] for event in found} for found in snapshots]
    assert by_topic[0] == by_topic[1]
    # Names of peers are not used as labels.
    assert b.metrics("cynow_scale_readings_total", scale_id="a") == []


def test_minute_is_published_by_each_gateway(start: Callable[..., Daemon], tmp_path: Path) -> None:
    twistd = [sys.executable, AT_TIME, str(tmp_path / "ahead"), "-n", "--pidfile=", "cynow-gateway"]
    set_clock(tmp_path, seoul("2025-12-18 10:11:00"))
    a, b = start("a", twistd), start("b", twistd)
    until(others(b, 1), "they hear each other")
    clients = [gateway.subscribe("machine/M") for gateway in (a, b)]
    machine = a.daq(frame("name", "M"))
    machine.sendall(frame("DataUpdate", {"v": {"type": "TEMP", "data": [1.0, 3.0]}}))
    until(lambda: a.metric("cynow_daq_samples_total") == 2, "the samples")
    # The minute ends.
    set_clock(tmp_path, seoul("2025-12-18 10:30:00"))
    updates = [client.events(1, "update")[0] for client in clients]
    assert updates[0]["data"] == updates[1]["data"]
    assert updates[0]["data"]["data"] == 2.0
    snapshots = [gateway.subscribe("machine/M").events(1, "snapshot")[0]["data"] for gateway in (a, b)]
    assert snapshots[0] == snapshots[1]
    # Also for a gateway that starts later, and after a kill.
    c = start("c", twistd)
    until(lambda: machines(c) == ["/M"], "the machine")
    until(lambda: c.subscribe("machine/M").events(1, "snapshot")[0]["data"] == snapshots[0], "its updates")


@pytest.mark.parametrize("how", ["immediate", "silence"])
def test_outage_disconnects_peers_until_the_server_is_back(
    server: Server, start: Callable[..., Daemon], how: str
) -> None:
    a, b = start("a"), start("b")
    until(others(b, 1), "they hear each other")
    client = b.subscribe("scale/*", "machine/*")
    scale = a.scale()
    scale.sendall(b"ST,+00001.00 kg\r\n")
    machine = a.daq(frame("name", "M"))
    client.events(2, "connected")
    if how == "immediate":
        server.stop()
    else:
        server.pause()
    # Without messages, scales and machines of peers count as disconnected, but not those of this gateway.
    assert {event["topic"] for event in client.events(2, "disconnected")} == {"scale/a", "machine/M"}
    assert machines(a) == ["/M"]
    assert machines(b) == []
    scale.sendall(b"ST,+00002.00 kg\r\n")
    machine.sendall(fault(2))
    b.daq(frame("name", "N"))
    until(lambda: weight(a, "a") == 2.0, "the weight")
    assert weight(b, "a") == 1.0
    if how == "immediate":
        server.start()
    else:
        server.resume()
    until(lambda: weight(b, "a") == 2.0, "the weight of meanwhile")
    until(lambda: machines(a) == machines(b) == ["/M", "/N"], "all machines on each")
    scale.sendall(b"ST,+00003.00 kg\r\n")
    assert [event["data"]["weight"] for event in client.events(2, "reading")][-1] in {2.0, 3.0}
    until(lambda: weight(b, "a") == 3.0, "the weight")
    until(lambda: server.sql("SELECT score FROM cynow_anomaly") == [(2,)], "it is stored once")


@pytest.mark.parametrize("what", ["the server", "sessions"])
def test_short_outage_disconnects_no_peer(server: Server, start: Callable[..., Daemon], what: str) -> None:
    # However long the server takes to return, peers do not count as gone.
    twistd = with_constants({"gateway.relay.peers.GONE": PATIENCE, "gateway.relay.service.GONE": PATIENCE})
    a, b = start("a", twistd), start("b", twistd)
    # A snapshot contains only machines that b knows.
    until(lambda: latest(b, "a").get("error") == "no_data", "the other's scale")
    client = b.subscribe("scale/a")
    scale = a.scale()
    scale.sendall(b"ST,+00001.00 kg\r\n")
    until(lambda: weight(b, "a") == 1.0, "the weight")
    if what == "the server":
        server.stop()
    else:
        server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cynow-gateway%events'"
        )
    scale.sendall(b"ST,+00002.00 kg\r\n")
    if what == "the server":
        server.start()
    until(lambda: weight(b, "a") == 2.0, "the weight")
    names = [event["event"] for event in client.events(4)]
    assert names[:2] == ["snapshot", "connected"]
    assert "disconnected" not in names


def test_many_records_arrive_in_order(start: Callable[..., Daemon]) -> None:
    a, b = start("a"), start("b")
    until(others(b, 1), "they hear each other")
    client = b.subscribe("scale/a")
    a.scale().sendall(b"".join(b"US,+%05d.00 kg\r\n" % number for number in range(3000)))
    events = client.events(3000, "reading")
    assert [event["data"]["weight"] for event in events] == list(range(3000))
    for gateway in (a, b):
        assert gateway.metric("cynow_relay_gaps_total") == 0
        assert gateway.metrics("cynow_relay_dropped_records_total") == []


def test_notifications_of_other_programs_are_ignored(server: Server, start: Callable[..., Daemon]) -> None:
    a, b = start("a"), start("b")
    until(others(b, 1), "they hear each other")
    unsigned = {"from": "f", "name": "n", "number": 1, "moment": 2**62, "to": None, "say": "here", "items": []}
    bad = ["", "x", "[]", "{}", "null", "[" * 7000, json.dumps(unsigned), "A" * 22 + json.dumps(unsigned)]
    for payload in bad:
        server.sql("SELECT pg_notify(%s, %s)", [CHANNEL, payload])
    until(lambda: b.metric("cynow_relay_rejected_total", reason="foreign") == len(bad), "they are counted")
    a.scale().sendall(b"ST,+00001.00 kg\r\n")
    until(lambda: weight(b, "a") == 1.0, "the weight")
    assert b.get("/healthz")[1]["problems"] == []


class Polls:
    """Socket.IO client with long polling."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._path = "/socket.io/?EIO=4&transport=polling"
        opened = daemon.get(self._path)[1].decode()
        self._path += f"&sid={json.loads(opened[1:])['sid']}"
        self._heard: list[str] = []

    def post(self, packet: str) -> None:
        assert self._daemon.request("POST", self._path, packet.encode())[0] == 200

    def hear(self, begin: str) -> Any:
        """Return the value of the next packet with a prefix."""
        while True:
            while self._heard:
                packet = self._heard.pop(0)
                if packet.startswith(begin):
                    return json.loads(packet[len(begin) :].removeprefix(","))
            self._heard += self._daemon.get(self._path)[1].decode().split("\x1e")
