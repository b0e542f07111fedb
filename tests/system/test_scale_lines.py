"""What reaches a scale's port beside good lines, and what the log says about it, on a real daemon."""

import contextlib
import os
import re
import socket
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, free_ports, running, until

LATEST = "/api/scale-gateway/latest/"

#: The row of the field: 153.26 kg, whose damaged forms showed 53.26 kg and others.
LINE = b"ST,+000153.26 kg"


def test_control_bytes_at_every_place_give_no_wrong_weight(daemon: Daemon) -> None:
    controls = [byte for byte in range(0x20) if byte not in b"\r\n"] + [0x7F]
    lines = [
        damaged
        for control in controls
        for place in range(len(LINE) + 1)
        for damaged in (
            LINE[:place] + bytes([control]) + LINE[place + 1 :],
            LINE[:place] + bytes([control]) + LINE[place:],
        )
    ]
    scale = daemon.scale()
    for line in lines:
        scale.sendall(line + b"\r\n")
    scale.sendall(b"US,+000001.00 kg\r\n")
    until(lambda: daemon.metric("cynow_scale_readings_total", scale_id="default", status="US") == 1, "the last line")
    # Before the status and behind the unit it is framing: inserted at both ends, and put behind it.
    assert daemon.metric("cynow_scale_readings_total", scale_id="default", status="ST") == 3 * len(controls)
    assert daemon.metric("cynow_scale_rejected_lines_total", scale_id="default") == len(lines) - 3 * len(controls)
    assert daemon.get(LATEST)[1]["weight"] == 153.26
    assert daemon.get(LATEST)[1]["raw"] == LINE.decode()


def test_further_forms_are_events_and_only_stable_gross_weights_the_latest(shared_daemon: Daemon) -> None:
    daemon = shared_daemon
    events = daemon.subscribe("scale/default")
    daemon.weigh(
        b"\xff\xfb\x03\xff\xfb\x01\xff\xfe\x01\xff\xfd\x00ST,G ,+00123.0kg",
        b"ST,GS,1\x07,00053.26 kg",
        b"ST,N ,+00001.0kg",
        b"ST,PT,+00002.00kg",
        b"ST,T ,+00003.00kg",
        b"HD,GS,+00010.00kg",
        b"OL,-99999999PC",
        b"QT,+00000012 PC",
    )
    readings = [event["data"] for event in events.events(7, "reading")]
    assert [(r["status"], r["weight"], r["kind"]) for r in readings] == [
        ("ST", 123.0, "gross"),
        ("ST", 53.26, "gross"),
        ("ST", 1.0, "net"),
        ("ST", 2.0, "tare"),
        ("ST", 3.0, "tare"),
        ("HD", 10.0, "hold"),
        ("OL", None, "gross"),
    ]
    assert readings[1]["raw"] == "ST,GS,1\ufffd,00053.26 kg"
    assert daemon.get(LATEST)[1]["weight"] == 53.26


@pytest.mark.parametrize("path", [b"/", b"/" + b"a" * 5000])
def test_http_request_ends_the_connection_and_leaves_no_weight(shared_daemon: Daemon, path: bytes) -> None:
    daemon = shared_daemon
    before = daemon.metric("cynow_scale_http_requests_total", scale_id="default")
    daemon.weigh(b"ST,+00001.00 kg")
    until(daemon.latest_is(1.0), "the weight")
    page = daemon.scale()
    page.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n\r\nST,+000999.00kg\r\n")
    # It is closed or reset: what was not read is thrown away.
    with contextlib.suppress(ConnectionResetError):
        assert page.recv(100) == b""
    assert daemon.metric("cynow_scale_http_requests_total", scale_id="default") == before + 1
    assert daemon.get(LATEST)[1]["weight"] == 1.0
    assert "this is an HTTP request, not a scale" in daemon.log()


def test_scales_that_come_and_go_are_in_the_log(daemon: Daemon) -> None:
    first, second = daemon.scale(), daemon.scale()
    names = [":".join(map(str, each.getsockname())) for each in (first, second)]
    until(lambda: f"scale default: {names[0]} connected" in daemon.log(), "the first")
    until(lambda: f"scale default: {names[1]} connected while {names[0]} is connected too" in daemon.log(), "the other")
    first.close()
    second.close()
    for name in names:
        until(lambda name=name: f"scale default: {name} disconnected (closed by the peer)" in daemon.log(), "its end")
    assert len(re.findall("scale default", daemon.log())) == 4


def test_scale_that_cannot_be_reached_is_in_the_log_with_its_reason(tmp_path: Path) -> None:
    pytest.importorskip("serial")
    (port,) = free_ports(1)
    scales = {"dock-2": {"connect": f"tcp:127.0.0.1:{port}"}, "bench": {"serial": str(tmp_path / "ttyUSB0")}}
    with running(tmp_path, scales=scales) as daemon:
        text = f"scale dock-2: cannot connect to 127.0.0.1:{port}: connection refused; retrying in "
        until(lambda: text in daemon.log(), "why it cannot be dialled")
        device = f"scale bench: {tmp_path}/ttyUSB0 cannot be opened: no such file or directory; retrying in "
        until(lambda: device in daemon.log(), "why it cannot be opened")
        until(lambda: daemon.metric("cynow_scale_failed_attempts_total", scale_id="dock-2") >= 2, "another attempt")
        log = daemon.log()
        assert "Scheduling retry" not in log
        assert "object at 0x" not in log
        with socket.create_server(("127.0.0.1", port)) as converter:
            converter.settimeout(60)
            line, peer = converter.accept()
            until(lambda: f"scale dock-2: 127.0.0.1:{port} connected" in daemon.log(), "the connection")
            line.close()
        until(lambda: f"the connection to 127.0.0.1:{port} ended at once" in daemon.log(), "its end")
        assert peer


def test_serial_line_with_parity_has_a_damaged_byte_spoil_its_line(tmp_path: Path) -> None:
    """The pseudo-terminal cannot spoil a byte: NUL is what the system would hand over."""
    pytest.importorskip("serial")
    host, device = os.openpty()
    scales = {"bench": {"serial": os.ttyname(device), "bytesize": 8, "parity": "E"}}
    try:
        with running(tmp_path, scales=scales) as daemon:
            events = daemon.subscribe("scale/bench")
            until(lambda: f"scale bench: {os.ttyname(device)} connected" in daemon.log(), "the line is open")
            os.write(host, b"ST,+000153.26 kg\r\nST,+000\x0053.26 kg\r\nUS,+000053.27 kg\r\n")
            assert [event["data"]["weight"] for event in events.events(2, "reading")] == [153.26, 53.27]
            assert daemon.metric("cynow_scale_rejected_lines_total", scale_id="bench") == 1
            assert daemon.get(LATEST)[1]["weight"] == 153.26
    finally:
        os.close(host)
        os.close(device)
