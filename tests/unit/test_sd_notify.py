"""Notifications to systemd."""

import secrets
import socket
import time
from pathlib import Path

import pytest

from gateway.runtime.sd_notify import SystemdNotifier


def received(address: str, notify_socket: str) -> bytes:
    """Return the datagram that arrives at an address when a state is sent."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.setblocking(False)
        SystemdNotifier({"NOTIFY_SOCKET": notify_socket}).notify("READY=1")
        return manager.recv(100)


def test_notify_with_a_path_sends_the_state(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    assert received(path, path) == b"READY=1"


def test_notify_with_an_abstract_address_sends_the_state() -> None:
    name = f"cynow-{secrets.token_hex(8)}"
    assert received(f"\0{name}", f"@{name}") == b"READY=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/at/all"}])
def test_notify_without_a_manager_does_nothing(environment: dict[str, str]) -> None:
    SystemdNotifier(environment).notify("READY=1")


def test_notify_to_a_full_socket_does_not_block(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        notifier = SystemdNotifier({"NOTIFY_SOCKET": path})
        for _ in range(10_000):
            notifier.notify("WATCHDOG=1")


def test_reload_is_reported_with_the_time_and_ends_with_ready(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.setblocking(False)
        notifier = SystemdNotifier({"NOTIFY_SOCKET": path})
        # systemd compares with the time at which it sent the signal, on the same clock.
        signalled = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notifier.reloading()
        notifier.ready()
        lines = manager.recv(100).decode().splitlines()
        assert lines[0] == "RELOADING=1"
        name, _, microseconds = lines[1].partition("=")
        assert name == "MONOTONIC_USEC"
        assert signalled <= int(microseconds) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert manager.recv(100) == b"READY=1"
