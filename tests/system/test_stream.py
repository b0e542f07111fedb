"""Live events by WebSocket on a real daemon."""

import json
import socket
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import websocket

from tests.support.daemon import PATIENCE, Daemon, Subscriber, running, until, with_constants
from tests.support.frames import frame

#: A daemon that waits long for answers to pings and close frames, so that a slow test does not fail.
FORBEARING = with_constants(
    {"gateway.web.push.ws_endpoint._PING": 10 * PATIENCE, "gateway.web.clients.websocket._CLOSE": 10 * PATIENCE}
)


def test_subscribed_snapshot_and_events_arrive_in_order(daemon: Daemon) -> None:
    daemon.weigh(b"ST,+00001.00 kg")
    until(daemon.latest_is(1.0), "the weight")
    client = daemon.subscribe("scale/default", "machine/*")
    subscribed = client.hear()
    assert subscribed == {
        "type": "subscribed",
        "topics": ["scale/default", "machine/*"],
        "seq": subscribed["seq"],
    }
    snapshot = client.hear()
    assert (snapshot["topic"], snapshot["event"]) == ("scale/default", "snapshot")
    assert snapshot["data"]["latest"]["weight"] == 1.0
    assert snapshot["data"]["connected"] in (True, False)
    datetime.fromisoformat(snapshot["time"])
    until(lambda: daemon.metric("cynow_connections", kind="scale") == 0, "the scale has gone")
    scale = daemon.scale()
    scale.sendall(b"US,+00002.00 kg\r\n")
    connected, reading = client.events(2, "connected", "reading")
    assert connected["data"] == {"scale_id": "default"}
    assert reading["seq"] == connected["seq"] + 1
    assert reading["data"] == {
        "scale_id": "default",
        "status": "US",
        "weight": 2.0,
        "raw": "US,+00002.00 kg",
        "received_at": reading["data"]["received_at"],
        "kind": "gross",
        "reading_id": snapshot["data"]["latest"]["reading_id"],
        "out_of_range": False,
        "commit": {"allowed": True, "error": None, "message": ""},
    }


def test_machine_that_has_never_connected_can_be_subscribed(shared_daemon: Daemon) -> None:
    client = shared_daemon.subscribe("machine/아직 없음")
    client.hear()
    assert client.hear()["data"] == {"connected": False, "sensors": {}}


def test_overlapping_topics_send_each_event_once(shared_daemon: Daemon) -> None:
    client = shared_daemon.subscribe("scale/*", "scale/default", "*/*")
    client.say({"type": "subscribe", "topics": ["*/default"]})
    shared_daemon.weigh(b"US,+00001.00 kg", b"US,+00002.00 kg")
    assert [event["data"]["weight"] for event in client.events(2, "reading")] == [1.0, 2.0]


def test_unsubscribe_stops_the_events_of_a_topic(shared_daemon: Daemon) -> None:
    client = shared_daemon.subscribe("scale/default", "machine/M1")
    client.say({"type": "unsubscribe", "topics": ["scale/default"]})
    while (message := client.hear())["type"] != "unsubscribed":
        pass
    assert message == {"type": "unsubscribed", "topics": ["scale/default"]}
    before = shared_daemon.metric("cynow_scale_readings_total", status="US")
    shared_daemon.weigh(b"US,+00001.00 kg")
    # Otherwise the reading might arrive after the last check.
    until(lambda: shared_daemon.metric("cynow_scale_readings_total", status="US") == before + 1, "the reading")
    shared_daemon.daq(frame("name", "M1"), frame("FaultDetect", {"score": 0.5, "threshold": 1.0}))
    assert [event["event"] for event in client.events(2)] == ["connected", "anomaly"]


@pytest.mark.parametrize(
    "message",
    [
        "no json",
        "[]",
        "5",
        "{}",
        '{"type": "shout"}',
        '{"type": "subscribe"}',
        '{"type": "subscribe", "topics": "scale/default"}',
        '{"type": "subscribe", "topics": []}',
        '{"type": "subscribe", "topics": [1]}',
        '{"type": "subscribe", "topics": ["scale"]}',
        '{"type": "subscribe", "topics": ["scale/def*"]}',
        '{"type": "subscribe", "topics": ["valve/1"]}',
        '{"type": "subscribe", "topics": ["scale/default/samples"]}',
        '{"type": "subscribe", "topics": ["machine/M/other"]}',
        '{"type": "subscribe", "topics": ["machine/a/samples/b"]}',
        '{"type": "subscribe", "topics": ["scale/default"], "since": "1"}',
        '{"type": "subscribe", "topics": ["scale/default"], "since": -1}',
        '{"type": "subscribe", "topics": ["scale/default"], "since": true}',
        '{"type": "unsubscribe", "topics": ["nonsense"]}',
    ],
)
def test_invalid_message_keeps_the_connection(shared_daemon: Daemon, message: str) -> None:
    client = Subscriber(shared_daemon.stream())
    client.client.send(message)
    error = client.hear()
    assert (error["type"], error["error"]) == ("error", "invalid_request")
    assert error["message"]
    client.say({"type": "subscribe", "topics": ["scale/default"]})
    assert client.hear()["type"] == "subscribed"


def test_binary_message_is_an_error(shared_daemon: Daemon) -> None:
    client = Subscriber(shared_daemon.stream())
    client.client.send_binary(b'{"type": "subscribe", "topics": ["scale/default"]}')
    assert client.hear()["type"] == "error"


def test_message_above_the_bound_closes_the_connection(shared_daemon: Daemon) -> None:
    client = shared_daemon.stream()
    client.send("x" * 100_000)
    opcode, data = client.recv_data(control_frame=True)
    assert opcode == websocket.ABNF.OPCODE_CLOSE
    assert int.from_bytes(data[:2], "big") == 1009


def test_since_sends_the_missed_events(shared_daemon: Daemon) -> None:
    client = shared_daemon.subscribe("scale/default")
    shared_daemon.weigh(b"US,+00001.00 kg")
    (last,) = client.events(1, "reading")
    client.client.close()
    shared_daemon.daq(frame("name", "Elsewhere"))
    shared_daemon.weigh(b"US,+00002.00 kg", b"US,+00003.00 kg")
    until(lambda: shared_daemon.metric("cynow_connections", kind="scale") == 0, "the scale has gone")
    back = shared_daemon.subscribe("scale/default", since=last["seq"])
    assert back.hear()["recovered"] is True
    missed = back.events(5)
    assert [event["event"] for event in missed if event["event"] == "reading"] == ["reading", "reading"]
    assert {event["topic"] for event in missed} == {"scale/default"}
    seqs = [event["seq"] for event in missed]
    assert seqs == sorted(set(seqs))
    assert seqs[0] > last["seq"]
    # An unknown number gets the snapshot instead.
    lost = shared_daemon.subscribe("scale/default", since=last["seq"] + 10**9)
    assert lost.hear()["recovered"] is False
    assert lost.hear()["event"] == "snapshot"
    # A client that has missed nothing gets an answer too.
    newest = shared_daemon.subscribe("scale/default").hear()["seq"]
    assert shared_daemon.subscribe("scale/default", since=newest).hear()["recovered"] is True
    assert "recovered" not in shared_daemon.subscribe("scale/default").hear()


def test_seq_increases_over_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        for _ in range(3):
            seq = daemon.subscribe("scale/default").hear()["seq"]
            daemon.weigh(b"US,+00001.00 kg")
            until(lambda seq=seq: daemon.subscribe("scale/default").hear()["seq"] > seq, "an event")
            highest = daemon.subscribe("scale/default").hear()["seq"]
            daemon.kill()
            daemon.start()
            # Events before the restart are no longer in the backlog.
            back = daemon.subscribe("scale/default", since=highest)
            answer = back.hear()
            assert answer["seq"] > highest
            assert answer["recovered"] is False
            assert back.hear()["event"] == "snapshot"


def test_plain_http_is_answered_with_426(shared_daemon: Daemon) -> None:
    status, body, headers = shared_daemon.get("/ws")
    assert (status, body["error"]) == (426, "upgrade_required")
    assert headers["upgrade"].lower() == "websocket"


def test_client_that_does_not_read_is_closed_without_effect_on_others(tmp_path: Path) -> None:
    with running(tmp_path, twistd=FORBEARING, limits={"subscriber_bytes": 100_000}) as daemon:
        slow = daemon.stream(sockopt=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)])
        slow.send(json.dumps({"type": "subscribe", "topics": ["scale/default", "machine/*/samples"]}))
        quick = daemon.subscribe("scale/default")
        quick.events(1, "snapshot")
        before = daemon.resident_mib()
        data = {f"vib{n}": {"type": "VIB", "data": [0.123456789 * n] * 1000} for n in range(1, 9)}
        machine = daemon.daq(frame("name", "Loud"))
        # More than the buffers of the operating system hold.
        loud = frame("DataUpdate", data)
        sent = 0
        while daemon.metric("cynow_slow_subscribers_total") == 0:
            machine.sendall(loud)
            sent += 1
            assert sent < 500, "the slow client was never closed"
        daemon.weigh(b"US,+00001.00 kg")
        quick.events(1, "reading")
        # The backlog has a bound of its own: 32 MiB.
        assert daemon.resident_mib() < before + 80
        code = None
        while code is None:
            opcode, content = slow.recv_data(control_frame=True)
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                code = int.from_bytes(content[:2], "big")
        assert code == 4008


def test_offered_compression_is_used_in_both_directions(daemon: Daemon) -> None:
    """Use a raw socket: the client of the other tests has no compression."""
    client, lines, head = open_websocket(
        daemon, "permessage-deflate; client_max_window_bits; server_max_window_bits=12"
    )
    with client, lines:
        assert (
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=12;"
            " client_max_window_bits=10" in head
        )

        def say(message: Any) -> None:
            compressor = zlib.compressobj(wbits=-10)
            text = compressor.compress(json.dumps(message).encode()) + compressor.flush(zlib.Z_SYNC_FLUSH)
            size = len(text) - 4
            length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2)
            client.sendall(b"\xc1" + length + bytes(4) + text[:-4])

        def receive() -> tuple[bool, Any]:
            first, size = lines.read(2)
            payload = lines.read(int.from_bytes(lines.read(2)) if size == 126 else size)
            if not first & 0x40:
                return False, json.loads(payload)
            return True, json.loads(zlib.decompressobj(-12).decompress(payload + b"\0\0\xff\xff"))

        say({"type": "subscribe", "topics": ["machine/M/samples"]})
        assert receive() == (False, {"type": "subscribed", "topics": ["machine/M/samples"], "seq": ANY})
        machine = daemon.daq(frame("name", "M"))
        for _ in range(3):
            machine.sendall(frame("DataUpdate", {"v": {"type": "VIB", "data": [0.5] * 500}}))
            compressed, event = receive()
            assert compressed
            assert event["data"]["v"]["data"] == [0.5] * 500
        # A decompression bomb is stopped at the maximum size of a message: 64 KiB.
        say({"type": "subscribe", "topics": ["machine/M" * 20_000]})
        while (first := lines.read(2))[0] & 0x0F != 8:
            lines.read(first[1])
        assert int.from_bytes(lines.read(first[1])[:2]) == 1009


def open_websocket(daemon: Daemon, extensions: str = "") -> tuple[socket.socket, Any, str]:
    """Open a WebSocket; return its socket, a file of its input, and the head of the answer."""
    client = socket.create_connection(("127.0.0.1", daemon.port), PATIENCE)
    offer = f"Sec-WebSocket-Extensions: {extensions}\r\n" if extensions else ""
    client.sendall(
        f"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n{offer}\r\n".encode()
    )
    lines = client.makefile("rb")
    return client, lines, b"".join(iter(lines.readline, b"\r\n")).decode()


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("permessage-deflate; server_max_window_bits=8", ""),
        ("permessage-deflate; something", ""),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", "client_no_context_takeover"),
        ("x-webkit-deflate-frame", ""),
    ],
)
def test_unacceptable_compression_is_declined(shared_daemon: Daemon, offer: str, answer: str) -> None:
    client, lines, head = open_websocket(shared_daemon, offer)
    with client, lines:
        assert head.startswith("HTTP/1.1 101 ")
        assert head.count("Sec-WebSocket-Extensions") == bool(answer)
        assert answer in head


def test_fragmented_message_with_a_ping_between_is_accepted(shared_daemon: Daemon) -> None:
    client, lines, _ = open_websocket(shared_daemon)
    with client, lines:
        message = json.dumps({"type": "subscribe", "topics": ["machine/Fragments"]}).encode()
        client.sendall(b"\x01\x85" + bytes(4) + message[:5])
        client.sendall(b"\x89\x82" + bytes(4) + b"hi")
        client.sendall(bytes([0x80, 0x80 | len(message) - 5]) + bytes(4) + message[5:])
        assert lines.read(4) == b"\x8a\x02hi"
        first, size = lines.read(2)
        assert (first, json.loads(lines.read(size))["type"]) == (0x81, "subscribed")


def test_text_that_is_not_utf8_closes_the_connection(shared_daemon: Daemon) -> None:
    client, lines, _ = open_websocket(shared_daemon)
    with client, lines:
        client.sendall(b"\x81\x81" + bytes(4) + b"\xff")
        first, size = lines.read(2)
        assert (first, int.from_bytes(lines.read(size)[:2])) == (0x88, 1007)


def test_shutdown_closes_with_1001(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        client = daemon.stream()
        assert daemon.terminate() == 0
        opcode, data = client.recv_data(control_frame=True)
        assert (opcode, int.from_bytes(data[:2], "big")) == (websocket.ABNF.OPCODE_CLOSE, 1001)


def test_replays_to_clients_that_do_not_read_cost_little(tmp_path: Path) -> None:
    with running(tmp_path, twistd=FORBEARING) as daemon:
        early = daemon.subscribe("scale/default")
        first = early.hear()["seq"]
        # A client that does not read either.
        early.client.close()
        daemon.weigh(*[b"US,+00001.00 kg"] * 5000)
        until(lambda: daemon.metric("cynow_scale_readings_total", status="US") == 5000, "all readings")
        greedy = daemon.stream(sockopt=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)])
        before = daemon.resident_mib()
        asked = json.dumps({"type": "subscribe", "topics": ["scale/default"], "since": first})
        for _ in range(20_000):
            try:
                greedy.send(asked)
            except OSError:
                break
        until(lambda: daemon.metric("cynow_slow_subscribers_total") == 1, "it is closed")
        assert daemon.resident_mib() < before + 30


def test_replay_of_the_whole_backlog_reaches_a_reading_client(tmp_path: Path) -> None:
    """Replay more than may wait for a client, as after a long absence."""
    with running(tmp_path, limits={"subscriber_bytes": 10_000}) as daemon:
        first = daemon.subscribe("scale/default").hear()["seq"]
        daemon.weigh(*[b"US,+00001.00 kg"] * 9000)
        until(lambda: daemon.metric("cynow_scale_readings_total", status="US") == 9000, "all readings")
        back = daemon.subscribe("scale/default", since=first)
        seqs = [event["seq"] for event in back.events(9000, "reading")]
        assert seqs == sorted(set(seqs))


def test_pings_of_a_client_that_does_not_read_are_not_answered(tmp_path: Path) -> None:
    with running(tmp_path, twistd=FORBEARING) as daemon:
        client = daemon.stream(sockopt=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)])
        before = daemon.resident_mib()
        # Masked by zeros: 32 MB in all, and as much for the answers.
        pings = (b"\x89\xfd" + bytes(4) + b"x" * 125) * 1000
        for _ in range(250):
            assert client.sock is not None
            client.sock.sendall(pings)
        client.send("no json")
        # The gateway reads it after all pings.
        until(lambda: daemon.metric("cynow_websocket_errors_total") == 1, "they are read")
        assert daemon.resident_mib() < before + 20


def test_large_batch_arrives_completely_in_several_events(shared_daemon: Daemon) -> None:
    client = shared_daemon.subscribe("machine/Big/samples")
    samples = [0.5] * 200_000
    shared_daemon.daq(frame("name", "Big"), frame("DataUpdate", {"v": {"type": "VIB", "data": samples}}))
    found: list[float] = []
    while len(found) < len(samples):
        (event,) = client.events(1, "samples")
        found += event["data"]["v"]["data"]
    assert found == samples
