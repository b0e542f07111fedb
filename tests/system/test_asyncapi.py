"""``/asyncapi.json`` of a real daemon, and the agreement of its events with it."""

import http.client
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator

from tests.support.daemon import PATIENCE, Daemon, Subscriber
from tests.support.frames import frame
from tests.system.test_recovery import at, seoul, set_clock

#: The channels whose messages a WebSocket carries.
CHANNELS = ("connection", "scale", "machine", "samples")


def matching_message(document: Any, message: Any) -> tuple[str, str]:
    """Return the channel and key of the message in the document whose schema allows it."""
    channels = document["channels"]
    found = [
        (channel, key)
        for channel in CHANNELS
        for key, each in channels[channel]["messages"].items()
        if Draft7Validator({**document, **each["payload"]}).is_valid(message)
    ]
    assert len(found) == 1, f"{found}: {message}"
    return found[0]


def ask(daemon: Daemon, method: str, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    connection.request(method, path)
    return connection.getresponse()


def test_document_is_served(shared_daemon: Daemon) -> None:
    status, document, headers = shared_daemon.get("/asyncapi.json")
    assert (status, headers["content-type"]) == (200, "application/json; charset=utf-8")
    assert document["asyncapi"] == "3.0.0"
    host = f"127.0.0.1:{shared_daemon.port}"
    assert {server["host"] for server in document["servers"].values()} == {host}
    assert [server["pathname"] for server in document["servers"].values()] == ["/ws", "/events", "/socket.io/"]
    # The host is that of the request; one with braces is not repeated.
    for given, expected in (("plant.example", "plant.example"), ("[::1]:80", "[::1]:80"), ("a!b", host)):
        _, document, _ = shared_daemon.get("/asyncapi.json", Host=given)
        assert {server["host"] for server in document["servers"].values()} == {expected}


def test_head_is_answered_and_other_methods_are_refused(shared_daemon: Daemon) -> None:
    length = shared_daemon.get("/asyncapi.json")[2]["content-length"]
    response = ask(shared_daemon, "HEAD", "/asyncapi.json")
    assert (response.status, response.read()) == (200, b"")
    assert response.headers["content-length"] == length
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        status, body, headers = shared_daemon.request(method, "/asyncapi.json")
        assert (status, body["ok"], body["error"], headers["allow"]) == (405, False, "method_not_allowed", "GET, HEAD")


def test_events_match_the_document(tmp_path: Path) -> None:
    with at(tmp_path, seoul("2025-12-18 10:11:00")) as daemon:
        daemon.configure(scale={"idle_timeout_sec": 1})
        daemon.start()
        check_all_events(daemon)


def check_all_events(daemon: Daemon) -> None:
    document = daemon.get("/asyncapi.json")[1]
    client = daemon.subscribe("*/*", "*/*/samples")
    heard = [client.hear()]
    first = heard[0]["seq"]

    def receive_until(channel: str, key: str) -> None:
        while matching_message(document, heard[-1]) != (channel, key):
            heard.append(client.hear())

    machine = daemon.daq(frame("name", "ShotBlast 1호"))
    samples = {"vib1": {"type": "VIB", "data": [0.5, float("nan"), 1]}, "온도": {"type": "TEMP", "data": [21.5]}}
    machine.sendall(frame("DataUpdate", samples) + frame("FaultDetect", {"score": 2, "threshold": 1.0}))
    receive_until("machine", "anomaly")
    daemon.weigh(
        b"ST,+00053.26 kg", b"US,+00001.00 kg", b"ST,NT,+00002.00 kg", b"ST,TR,+00003.00 kg", b"OL,+9999999E+19"
    )
    receive_until("scale", "disconnected")
    assert daemon.commit("CY1", arrival_shipping_no="A1")[0] == 200
    receive_until("scale", "commit")
    # A scale that says nothing.
    quiet = daemon.scale()
    receive_until("scale", "silent")
    quiet.close()
    receive_until("scale", "disconnected")
    # A minute ends.
    set_clock(daemon.folder, seoul("2025-12-18 10:30:00"))
    receive_until("machine", "update")
    machine.close()
    receive_until("machine", "disconnected")

    # Again with a state for the snapshots, and again with a replay.
    later = daemon.subscribe("scale/*", "machine/*")
    snapshots = [later.hear() for _ in range(3)][1:]
    assert [bool(each["data"].get("latest") or each["data"].get("sensors")) for each in snapshots] == [True, True]
    heard += snapshots
    client.say({"type": "subscribe", "topics": ["scale/default"], "since": first})
    client.say({"type": "unsubscribe", "topics": ["scale/default"]})
    client.say({"type": "unsubscribe"})
    receive_until("connection", "error")

    assert {matching_message(document, message) for message in heard} == {
        (channel, key) for channel in CHANNELS for key in document["channels"][channel]["messages"]
    } - {("connection", "subscribe"), ("connection", "unsubscribe")}
    readings = [message["data"] for message in heard if message.get("event") == "reading"]
    assert [(data["status"], data["kind"]) for data in readings] == 2 * [
        ("ST", "gross"),
        ("US", "gross"),
        ("ST", "net"),
        ("ST", "tare"),
        ("OL", "gross"),
    ]


def test_requests_of_the_document_are_accepted(shared_daemon: Daemon) -> None:
    document = shared_daemon.get("/asyncapi.json")[1]
    messages = document["channels"]["connection"]["messages"]
    for operation in document["operations"].values():
        if operation["action"] == "receive" and operation["channel"]["$ref"].endswith("/connection"):
            (reference,) = operation["messages"]
            request = messages[reference["$ref"].rpartition("/")[2]]
            client = Subscriber(shared_daemon.stream())
            client.say(request["examples"][0]["payload"])
            answers = [each["$ref"].rpartition("/")[2] for each in operation["reply"]["messages"]]
            assert client.hear()["type"] == answers[0]


def test_server_sent_events_match_the_document(shared_daemon: Daemon) -> None:
    document = shared_daemon.get("/asyncapi.json")[1]
    with ask(shared_daemon, "GET", document["servers"]["events"]["pathname"] + "?topics=scale/default") as response:
        lines = [response.readline() for _ in range(4)]
    assert lines[:2] == [b"retry: 2000\n", b"\n"]
    event = json.loads(lines[3].removeprefix(b"data: "))
    assert lines[2] == b"id: %d\n" % event["seq"]
    assert matching_message(document, event) == ("scale", "snapshot")
