"""Checks of the page and of the gateway's name in requests."""

import pytest

from gateway.web.http.host_checks import HostChecks, HostPort, host_of

ADDRESS = b"10.0.0.7:8080"


def status_of(
    checks: HostChecks, method: str = "POST", host: bytes | None = ADDRESS, origin: str = "", site: str = ""
) -> int:
    """Return the status of the refusal; 200 without one."""
    named = None if host is None else host_of(host)
    refusal = checks.refusal(method.encode(), named, origin.encode(), site.encode())
    return 200 if refusal is None else refusal.status


@pytest.mark.parametrize(
    ("header", "host"),
    [
        (b"10.0.0.7", ("10.0.0.7", "")),
        (b"10.0.0.7:8080", ("10.0.0.7", "8080")),
        (b"Plant.Example.:80", ("plant.example.", "80")),
        (b"[::1]:8080", ("[::1]", "8080")),
        (b"[fe80::1]", ("[fe80::1]", "")),
        (b"scale_gateway:8080", ("scale_gateway", "8080")),
        (b"plant:", ("plant", "")),
    ],
)
def test_host_of_a_valid_header_is_parsed(header: bytes, host: tuple[str, str]) -> None:
    assert host_of(header) == HostPort(*host)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b":80",
        b"a b",
        b"a/b",
        b"http://a",
        b"u@a",
        b"a:x",
        b"a:80:80",
        b"a:999999",
        b"[::1",
        b"\xec\xa0\x80",
        b"a,b:1/",
    ],
)
def test_host_that_is_not_valid_is_none(header: bytes) -> None:
    assert host_of(header) is None


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "ANYTHING"])
def test_writing_request_of_a_foreign_page_is_refused(method: str) -> None:
    checks = HostChecks(["http://friend.example"])
    for origin in (
        "http://evil.example",
        "null",
        "file://",
        "http://10.0.0.7",
        "http://10.0.0.7:8081",
        "http://10.0.0.8:8080",
        "http://friend.example.evil.example",
        "http://friend.example:8080",
        "https://friend.example",
        "nonsense",
        "http://friend.example, http://evil.example",
    ):
        assert status_of(checks, method, origin=origin) == 403, origin


def test_writing_request_of_an_own_or_a_listed_page_is_accepted() -> None:
    checks = HostChecks(["http://friend.example", "null"], ["plant.example"], "scale-pc.plant.local")
    for host, origin in (
        (ADDRESS, "http://10.0.0.7:8080"),
        (ADDRESS, "HTTP://10.0.0.7:8080"),
        (b"10.0.0.7", "http://10.0.0.7"),
        (b"10.0.0.7", "http://10.0.0.7:80"),
        (b"10.0.0.7:443", "https://10.0.0.7"),
        (b"[::1]:8080", "http://[::1]:8080"),
        (b"localhost:8080", "http://localhost:8080"),
        (b"scale-pc:8080", "http://scale-pc:8080"),
        (b"SCALE-PC.plant.local:8080", "http://scale-pc.plant.local:8080"),
        (b"scale-pc.local:8080", "http://scale-pc.local:8080"),
        (b"plant.example", "https://plant.example"),
        (b"plant.example.:8080", "http://plant.example.:8080"),
        (ADDRESS, "http://friend.example"),
        (ADDRESS, "HTTP://Friend.example:80"),
        (ADDRESS, "null"),
    ):
        assert status_of(checks, host=host, origin=origin) == 200, (host, origin)


def test_writing_request_without_origin_is_accepted_unless_it_is_cross_site() -> None:
    checks = HostChecks([])
    assert status_of(checks) == 200
    for site in ("same-origin", "same-site", "none", ""):
        assert status_of(checks, site=site) == 200
    for site in ("cross-site", "Cross-Site"):
        assert status_of(checks, site=site) == 403
        assert status_of(checks, "GET", site=site) == 200
    assert status_of(HostChecks(["*"]), site="cross-site") == 200


def test_any_page_is_accepted_if_all_are_listed() -> None:
    checks = HostChecks(["*"])
    for origin in ("http://evil.example", "null", "file://", "chrome-extension://abc"):
        assert status_of(checks, origin=origin) == 200
        assert checks.is_admitted(origin.encode(), host_of(ADDRESS))


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
def test_page_after_dns_rebinding_is_refused(method: str) -> None:
    checks = HostChecks(["http://friend.example"])
    assert status_of(checks, method, b"evil.example:8080", "http://evil.example:8080") == 403
    assert status_of(checks, method, b"evil.example:8080", "http://other.example") == 403
    # A listed page may use any name of the gateway.
    assert status_of(checks, method, b"plant.example:8080", "http://friend.example") == 200


def test_host_of_a_request_without_origin_is_checked_only_if_names_are_set() -> None:
    assert status_of(HostChecks([]), "GET", b"evil.example:8080") == 200
    named = HostChecks([], ["plant.example"], "scale-pc")
    assert status_of(named, "GET", b"evil.example:8080") == 421
    assert status_of(named, "POST", b"evil.example:8080") == 421
    for host in (b"plant.example", b"plant.example.:81", b"127.0.0.1:8080", b"[::1]", b"localhost", b"scale-pc", None):
        assert status_of(named, "GET", host) == 200, host


def test_foreign_page_may_read_by_an_address_but_not_receive_events() -> None:
    checks = HostChecks([])
    assert status_of(checks, "GET", origin="http://evil.example") == 200
    assert not checks.is_admitted(b"http://evil.example", host_of(ADDRESS))
    assert checks.is_admitted(b"http://10.0.0.7:8080", host_of(ADDRESS))
    assert not checks.is_admitted(b"http://evil.example:8080", host_of(b"evil.example:8080"))
    assert not checks.is_admitted(b"http://10.0.0.7:8080", None)


def test_refusal_names_the_origin_and_the_key() -> None:
    refusal = HostChecks([]).refusal(b"POST", host_of(ADDRESS), b"file://", b"")
    assert refusal is not None
    assert refusal.detail == "origin 'file://' is not in server.cors_origins"
    assert "file" not in refusal.message
    rebound = HostChecks([]).refusal(b"GET", host_of(b"evil.example"), b"http://evil.example", b"")
    assert rebound is not None
    assert "server.names" in rebound.detail
