"""Clients of HTTP: their addresses behind proxies, the networks that may come, and the rate of their requests."""

import random
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from gateway.auth.tokens import Token, hash_of
from gateway.config.settings import LimitSettings, ServerSettings
from gateway.runtime.networks import NetworkSet
from gateway.web.http.forwarded import forwarded_client
from gateway.web.http.request_rate import MAX_CLIENTS, RequestRate
from tests.unit.test_http_channel import Connection, ask

PROXIES = NetworkSet(ServerSettings.model_validate({"trusted_proxies": ["10.0.0.0/24", "fd00::/64"]}).trusted_proxies)
PROXY = "10.0.0.1"


# -- addresses


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        ([], PROXY),
        ([b""], PROXY),
        ([b" , ,"], PROXY),
        ([b"192.0.2.7"], "192.0.2.7"),
        ([b"192.0.2.7:51022"], "192.0.2.7"),
        ([b" 192.0.2.7\t"], "192.0.2.7"),
        ([b"2001:DB8::0007"], "2001:db8::7"),
        ([b"[2001:db8::7]"], "2001:db8::7"),
        ([b"[2001:db8::7]:443"], "2001:db8::7"),
        ([b"::ffff:192.0.2.7"], "192.0.2.7"),
        # Several hops, in one header or in several.
        ([b"192.0.2.7, 10.0.0.2"], "192.0.2.7"),
        ([b"192.0.2.7", b"10.0.0.2, fd00::1", b"10.0.0.3"], "192.0.2.7"),
        ([b"192.0.2.7, ::ffff:10.0.0.2"], "192.0.2.7"),
        # A client invents addresses before its own.
        ([b"127.0.0.1, 192.0.2.7"], "192.0.2.7"),
        ([b"127.0.0.1", b"192.0.2.7"], "192.0.2.7"),
        ([b"10.0.0.9, 192.0.2.7, 10.0.0.2"], "192.0.2.7"),
        ([b"garbage, 192.0.2.7"], "192.0.2.7"),
        ([b"\xff\x00, 192.0.2.7"], "192.0.2.7"),
        # All are proxies: the first of them is the client.
        ([b"10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        # A proxy that writes something else.
        ([b"unknown"], PROXY),
        ([b"_hidden"], PROXY),
        ([b"192.0.2.7, unknown"], PROXY),
        ([b"192.0.2.7, unknown, 10.0.0.2"], PROXY),
        ([b"192.0.2.256"], PROXY),
        ([b"192.0.2.7:"], PROXY),
        ([b"192.0.2.7:123456"], PROXY),
        ([b"192.0.2"], PROXY),
        ([b"192.0.2.07"], PROXY),
        ([b"[2001:db8::7"], PROXY),
        ([b"2001:db8::7]"], PROXY),
        ([b"2001:db8:::7"], PROXY),
        ([b"fe80::1%eth0"], PROXY),
        ([b'"192.0.2.7"'], PROXY),
        ([b"for=192.0.2.7"], PROXY),
        ([b"192.0.2.0/24"], PROXY),
    ],
    ids=repr,
)
def test_forwarded_client_is_the_last_address_that_is_no_proxy(headers: list[bytes], client: str) -> None:
    assert forwarded_client(PROXY, b",".join(headers), PROXIES) == client


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_forwarded_client_of_any_header_is_an_address(headers: list[bytes]) -> None:
    assert ip_address(forwarded_client(PROXY, b",".join(headers), PROXIES))


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_forwarded_client_does_not_depend_on_text_before_its_address(headers: list[bytes]) -> None:
    assert forwarded_client(PROXY, b",".join([*headers, b"192.0.2.7, 10.0.0.2"]), PROXIES) == "192.0.2.7"


@pytest.mark.parametrize(
    ("address", "is_in"),
    [
        ("10.0.0.255", True),
        ("10.0.1.0", False),
        ("::ffff:10.0.0.7", True),
        ("fd00::7", True),
        ("fd00::7%eth0", True),
        ("fd00:0:0:1::7", False),
        ("::", False),
        ("", False),
        ("socket", False),
    ],
)
def test_network_set_has_the_addresses_of_its_networks(address: str, is_in: bool) -> None:
    assert (address in PROXIES) is is_in


# -- requests


class Clients(Connection):
    """Connections of several clients, with the checks that a test configures."""

    def configure(self, server: dict[str, Any] | None = None, **limits: Any) -> None:
        self.checks.update(ServerSettings.model_validate(server or {}), LimitSettings.model_validate(limits))

    def ask(self, peer: str = "192.0.2.1", path: str = "/", **headers: str) -> tuple[int, bytes]:
        """Return the status and the head of the answer to a request on a connection of its own."""
        kind = IPv6Address if ":" in peer else IPv4Address
        transport, channel = self.connect(kind("TCP", peer, 1))
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        channel.dataReceived(ask(path, lines))
        answer: bytes = transport.value()
        return int(answer.split(b" ")[1]), answer

    def limited(self) -> float:
        return self.counters.registry.get_sample_value("cynow_http_limited_requests_total") or 0.0


def test_forwarded_for_of_a_peer_that_is_no_proxy_is_ignored() -> None:
    clients = Clients()
    clients.configure({"allow": ["192.0.2.0/24"], "trusted_proxies": [PROXY]})
    with capturedLogs() as events:
        assert clients.ask("192.0.2.9", X_Forwarded_For="203.0.113.5")[0] == 200
    assert not events
    assert clients.resource.requests[-1].client_address == "192.0.2.9"


def test_forwarded_client_outside_the_allowed_networks_is_refused_counted_and_logged() -> None:
    clients = Clients()
    clients.configure({"allow": ["192.0.2.0/24"], "trusted_proxies": [PROXY]})
    assert clients.ask(PROXY, X_Forwarded_For="203.0.113.5, 192.0.2.7")[0] == 200
    assert clients.resource.requests[-1].client_address == "192.0.2.7"
    with capturedLogs() as events:
        status, answer = clients.ask(PROXY, X_Forwarded_For="192.0.2.7, 203.0.113.5")
    assert status == 403
    assert b'"error":"forbidden"' in answer
    assert clients.counters.registry.get_sample_value("cynow_http_requests_total", {"status": "403"}) == 1
    (event,) = events
    assert (event["peer"], event["reason"]) == (
        "203.0.113.5",
        f"203.0.113.5 behind the proxy {PROXY} is not in server.allow",
    )
    # A proxy that names no client is a client itself.
    assert clients.ask(PROXY)[0] == 403
    assert clients.ask(PROXY, X_Forwarded_For="192.0.2.7, unknown")[0] == 403


def test_client_beyond_its_rate_is_refused_and_admitted_again() -> None:
    clients = Clients()
    clients.configure(requests_per_second=0.5, request_burst=3)
    assert [clients.ask()[0] for _ in range(4)] == [200, 200, 200, 429]
    with capturedLogs() as events:
        status, answer = clients.ask()
    assert status == 429
    assert b"\r\nRetry-After: 2\r\n" in answer
    assert '"error":"too_many_requests","message":"요청이 너무 잦습니다.'.encode() in answer
    assert [event["reason"] for event in events] == ["more than limits.requests_per_second (0.5)"]
    assert clients.limited() == 2
    # Another client is not affected, nor is a supervisor.
    assert clients.ask("192.0.2.2")[0] == 200
    assert clients.ask(path="/healthz")[0] == 200
    assert clients.ask(path="/readyz/")[0] == 200
    clients.clock.advance(1.5)
    assert b"\r\nRetry-After: 1\r\n" in clients.ask()[1]
    clients.clock.advance(0.5)
    assert [clients.ask()[0], clients.ask()[0]] == [200, 429]
    clients.configure()
    assert {clients.ask()[0] for _ in range(50)} == {200}


def test_pipelined_requests_count_one_by_one() -> None:
    clients = Clients()
    clients.configure(requests_per_second=1, request_burst=2)
    clients.send(ask() * 4)
    clients.clock.pump([0] * 5)
    statuses = [part[:3] for part in clients.transport.value().split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"200", b"429", b"429"]


def test_client_of_a_network_of_ipv6_has_one_rate() -> None:
    clients = Clients()
    clients.configure(requests_per_second=1, request_burst=1)
    assert clients.ask("2001:db8::1")[0] == 200
    assert clients.ask("2001:db8::ffff:2")[0] == 429
    assert clients.ask("2001:db8:0:1::1")[0] == 200
    # Link-local addresses are all in one network.
    assert [clients.ask("fe80::1%eth0")[0], clients.ask("fe80::2%eth0")[0]] == [200, 200]
    # One client by IPv4, whichever socket it reached.
    assert [clients.ask("192.0.2.9")[0], clients.ask("::ffff:192.0.2.9")[0]] == [200, 429]


def test_clients_behind_a_proxy_have_rates_of_their_own() -> None:
    clients = Clients()
    clients.configure({"trusted_proxies": [PROXY]}, requests_per_second=1, request_burst=1)
    for address in ("192.0.2.1", "192.0.2.2"):
        assert clients.ask(PROXY, X_Forwarded_For=address)[0] == 200
    for invented in ("", "127.0.0.1, ", "x, "):
        assert clients.ask(PROXY, X_Forwarded_For=f"{invented}192.0.2.1")[0] == 429
    assert clients.ask("192.0.2.2", X_Forwarded_For="192.0.2.3")[0] == 429


def test_token_has_a_rate_of_its_own_and_invalid_ones_count_for_their_address() -> None:
    clients = Clients()
    token = Token(name="display", scopes=("read",), sha256=hash_of(b"secret"), created=datetime(2026, 1, 1, tzinfo=UTC))
    clients.access.update([token], ["read"])
    clients.configure(requests_per_second=1, request_burst=2)
    bearer = {"Authorization": "Bearer secret"}
    # One token, from several addresses.
    assert [clients.ask(peer, **bearer)[0] for peer in ("192.0.2.1", "192.0.2.2", "192.0.2.3")] == [200, 200, 429]
    # The same address without a token.
    assert clients.ask("192.0.2.3")[0] == 200
    # Nobody tries tokens fast.
    wrong = [clients.ask("192.0.2.4", Authorization=f"Bearer {number}")[0] for number in range(4)]
    assert wrong == [401, 401, 429, 429]


def test_remembered_clients_are_bounded_and_the_longest_silent_one_is_forgotten() -> None:
    clock = Clock()
    rate = RequestRate(clock.seconds)
    rate.update(0.001, 1)
    for number in range(MAX_CLIENTS):
        assert not rate.take(f"client {number}")
    assert rate.take("client 0")
    assert not rate.take("one more")
    assert rate.take("client 0")
    assert not rate.take("client 1")
    assert len(rate._full_at) == MAX_CLIENTS


@pytest.mark.parametrize("seed", range(5))
def test_rate_admits_the_burst_and_then_the_rate(seed: int) -> None:
    """Compare with a bucket that is kept as a number of tokens."""
    source = random.Random(seed)
    clock = Clock()
    rate = RequestRate(clock.seconds)
    per_second, burst = source.choice([0.25, 1.0, 3.0, 50.0]), source.randint(1, 20)
    rate.update(per_second, burst)
    tokens, before = float(burst), 0.0
    for _ in range(2000):
        clock.advance(source.choice([0.0, 0.0, 0.25, 0.5, 1.0, 4.0]) / per_second)
        tokens, before = min(burst, tokens + (clock.seconds() - before) * per_second), clock.seconds()
        wait = rate.take("client")
        assert (wait == 0) == (tokens > 1 - 1e-5), (tokens, wait)
        if wait:
            assert wait == pytest.approx((1 - tokens) / per_second)
        else:
            tokens -= 1
