"""Which pages, and which names of the gateway, a request may come with."""

import pytest

from gateway.web.http.host_checks import HostChecks, HostPort, host_of

ADDRESS = b"10.0.0.7:8080"


def judged(
    visitors: HostChecks, method: str = "POST", host: bytes | None = ADDRESS, origin: str = "", site: str = ""
) -> int:
    """The status that a request is refused with; 200 where it is not."""
    named = None if host is None else host_of(host)
    refusal = visitors.refusal(method.encode(), named, origin.encode(), site.encode())
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
def test_host_that_is_valid_is_read(header: bytes, host: tuple[str, str]) -> None:
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
    visitors = HostChecks(["http://friend.example"])
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
        assert judged(visitors, method, origin=origin) == 403, origin


def test_writing_request_of_an_own_or_a_listed_page_is_taken() -> None:
    visitors = HostChecks(["http://friend.example", "null"], ["plant.example"], "scale-pc.plant.local")
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
        assert judged(visitors, host=host, origin=origin) == 200, (host, origin)


def test_writing_request_without_origin_is_taken_unless_it_is_cross_site() -> None:
    visitors = HostChecks([])
    assert judged(visitors) == 200
    for site in ("same-origin", "same-site", "none", ""):
        assert judged(visitors, site=site) == 200
    for site in ("cross-site", "Cross-Site"):
        assert judged(visitors, site=site) == 403
        assert judged(visitors, "GET", site=site) == 200
    assert judged(HostChecks(["*"]), site="cross-site") == 200


def test_any_page_is_taken_where_all_are_listed() -> None:
    visitors = HostChecks(["*"])
    for origin in ("http://evil.example", "null", "file://", "chrome-extension://abc"):
        assert judged(visitors, origin=origin) == 200
        assert visitors.is_admitted(origin.encode(), host_of(ADDRESS))


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
def test_page_whose_name_was_made_to_resolve_to_the_gateway_is_refused(method: str) -> None:
    visitors = HostChecks(["http://friend.example"])
    assert judged(visitors, method, b"evil.example:8080", "http://evil.example:8080") == 403
    assert judged(visitors, method, b"evil.example:8080", "http://other.example") == 403
    # A page that is listed is trusted by whatever name it calls the gateway.
    assert judged(visitors, method, b"plant.example:8080", "http://friend.example") == 200


def test_request_without_origin_is_judged_by_its_host_only_where_names_are_set() -> None:
    assert judged(HostChecks([]), "GET", b"evil.example:8080") == 200
    named = HostChecks([], ["plant.example"], "scale-pc")
    assert judged(named, "GET", b"evil.example:8080") == 421
    assert judged(named, "POST", b"evil.example:8080") == 421
    for host in (b"plant.example", b"plant.example.:81", b"127.0.0.1:8080", b"[::1]", b"localhost", b"scale-pc", None):
        assert judged(named, "GET", host) == 200, host


def test_foreign_page_may_read_by_an_address_but_follow_no_events() -> None:
    visitors = HostChecks([])
    assert judged(visitors, "GET", origin="http://evil.example") == 200
    assert not visitors.is_admitted(b"http://evil.example", host_of(ADDRESS))
    assert visitors.is_admitted(b"http://10.0.0.7:8080", host_of(ADDRESS))
    assert not visitors.is_admitted(b"http://evil.example:8080", host_of(b"evil.example:8080"))
    assert not visitors.is_admitted(b"http://10.0.0.7:8080", None)


def test_refusal_names_the_origin_and_the_key() -> None:
    refusal = HostChecks([]).refusal(b"POST", host_of(ADDRESS), b"file://", b"")
    assert refusal is not None
    assert refusal.detail == "origin 'file://' is not in server.cors_origins"
    assert "file" not in refusal.message
    rebound = HostChecks([]).refusal(b"GET", host_of(b"evil.example"), b"http://evil.example", b"")
    assert rebound is not None
    assert "server.names" in rebound.detail
