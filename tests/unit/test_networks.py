"""Sets of networks."""

from ipaddress import ip_network

import pytest

from gateway.runtime.networks import NetworkSet, plain_host

NETWORKS = NetworkSet(map(ip_network, ["10.1.0.0/16", "192.0.2.7/32", "2001:db8::/32", "::ffff:198.51.100.0/120"]))


@pytest.mark.parametrize(
    "host",
    [
        "10.1.2.3",
        "192.0.2.7",
        "::ffff:10.1.2.3",
        "::FFFF:a01:203",
        "2001:db8::1",
        "2001:0DB8:0:0::1",
        "2001:db8::1%eth0",
        "198.51.100.9",
    ],
)
def test_address_in_a_network_is_contained(host: str) -> None:
    assert host in NETWORKS
    # The second answer is a remembered one.
    assert host in NETWORKS


@pytest.mark.parametrize("host", ["10.2.0.1", "192.0.2.8", "::ffff:10.2.0.1", "2001:db9::1", "fe80::1%eth0", "x", ""])
def test_other_text_is_not_contained(host: str) -> None:
    assert host not in NETWORKS
    assert host not in NETWORKS


def test_empty_set_contains_nothing_and_is_false() -> None:
    assert "127.0.0.1" not in NetworkSet()
    assert not NetworkSet()
    assert NETWORKS


def test_any_address_of_both_families_is_contained_in_the_two_largest_networks() -> None:
    everything = NetworkSet(map(ip_network, ["0.0.0.0/0", "::/0"]))
    assert "203.0.113.1" in everything
    assert "2001:db8::1" in everything
    assert everything == NetworkSet(map(ip_network, ["::/0", "0.0.0.0/0"]))
    assert len({everything, NetworkSet(), NetworkSet()}) == 2


def test_remembered_answers_are_bounded() -> None:
    networks = NetworkSet([ip_network("10.0.0.0/8")])
    for number in range(10_000):
        assert f"10.0.{number // 256}.{number % 256}" in networks
    assert len(networks._answers) <= 4096


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:0db8::0:1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("a:b", "a:b"),
    ],
)
def test_plain_host_is_the_shortest_form(host: str, plain: str) -> None:
    assert plain_host(host) == plain
