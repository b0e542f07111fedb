"""Origins of pages: one form for each, and what no browser can send."""

import pytest

from gateway.config.origins import normal_host, normal_origin, normal_origins


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("http://h:9090", "http://h:9090"),
        ("http://h:9090/", "http://h:9090"),
        ("HTTP://H", "http://h"),
        (" https://Plant.Example ", "https://plant.example"),
        ("http://h:80", "http://h"),
        ("http://h:0080/", "http://h"),
        ("http://h:", "http://h"),
        ("https://h:443", "https://h"),
        ("http://h:443", "http://h:443"),
        ("https://h:80", "https://h:80"),
        ("http://my_host:1", "http://my_host:1"),
        ("http://h.", "http://h."),
        ("http://10.0.0.7:8080", "http://10.0.0.7:8080"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("http://[2001:DB8:0:0:0:0:0:7]/", "http://[2001:db8::7]"),
        ("https://[::1]:443", "https://[::1]"),
        ("http://[::ffff:192.0.2.7]", "http://[::ffff:c000:207]"),
        ("http://진동기.example:3000", "http://xn--ok0b90i6sv.example:3000"),
        ("http://XN--OK0B90I6SV.example", "http://xn--ok0b90i6sv.example"),
        ("https://Straße.example", "https://xn--strae-oqa.example"),
        ("http://ＡＢＣ.example", "http://abc.example"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("*", "*"),
        ("null", "null"),
        ("NULL", "null"),
        ("file://", "file://"),
        ("FILE:///", "file://"),
    ],
)
def test_normal_origin_returns_what_a_browser_sends(given: str, normal: str) -> None:
    assert normal_origin(given) == normal
    assert normal_origin(normal) == normal


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "blank"),
        ("  ", "blank"),
        ("plant.example", "no scheme; write http://plant.example"),
        ("localhost:3000", "no scheme; write http://localhost:3000"),
        ("//h:1", "no scheme; write http://h:1"),
        ("http:/h", "no scheme"),
        ("://h", "not a valid scheme; write http://h"),
        ("1http://h", "not a valid scheme; write http://h"),
        ("http://h:9090/app", "no path, query or fragment; write http://h:9090"),
        ("http://h/?a=b", "no path, query or fragment; write http://h"),
        ("http://h?a=b", "no path, query or fragment; write http://h"),
        ("http://h#top", "no path, query or fragment; write http://h"),
        ("http://h\\x", "no path, query or fragment; write http://h"),
        ("https://u:p@h:1", "no user; write https://h:1"),
        ("http://*.plant.example", "wildcard"),
        ("http://*", "wildcard"),
        ("*://h", "not a valid scheme"),
        ("http://h:*", "not a valid port"),
        ("http://h:99999", "not a valid port: 99999"),
        ("http://h:0", "not a valid port: 0"),
        ("http://h:٨", "not a valid port"),
        ("http://h:" + "9" * 5000, "not a valid port"),
        ("http://", "no host"),
        ("http:///", "no host"),
        ("http://:80", "no host"),
        ("http://a, http://b", "an entry of its own"),
        ("http://a http://b", "an entry of its own"),
        ("http://a,b", "an entry of its own"),
        ("file:///C:/page.html", "write file://"),
        ("file://server", "write file://"),
        ("ws://h:1", "write http://h:1"),
        ("wss://h", "write https://h"),
        ("http://::1", "in brackets"),
        ("http://[::1", "in brackets"),
        ("http://[::1]x", "in brackets"),
        ("http://[::g]", "not a valid IPv6 address"),
        ("http://[fe80::1%eth0]", "not a valid IPv6 address"),
        ("http://[]", "not a valid IPv6 address"),
        ("http://10.0.0", "not a valid IPv4 address"),
        ("http://10.0.0.256", "not a valid IPv4 address"),
        ("http://0x7f.0.0.1", "not a valid IPv4 address"),
        ("http://127.0.0.0x1", "not a valid IPv4 address"),
        ("http://a..b", "empty label"),
        ("http://.", "empty label"),
        ("http://h%41", "not a valid host name"),
        ("http://h|i", "not a valid host name"),
        ("http://☃..example", "not a valid host name"),
    ],
)
def test_normal_origin_refuses_what_no_browser_sends(given: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"\A.+\Z") as caught:
        normal_origin(given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_normal_origin_never_repeats_a_password() -> None:
    with pytest.raises(ValueError, match="no user") as caught:
        normal_origin("https://cynow:s3cret@h")
    assert "s3cret" not in str(caught.value)


def test_normal_origins_leaves_out_what_matches_nothing() -> None:
    assert normal_origins(["HTTP://H/", "http://h", "plant.example", "null", ""]) == {"http://h", "null"}
    assert normal_origins([]) == frozenset()


@pytest.mark.parametrize(
    ("given", "normal"), [("[::1]", "[::1]"), ("PLANT", "plant"), ("홀.example", "xn--px8b.example")]
)
def test_normal_host_returns_what_a_browser_sends(given: str, normal: str) -> None:
    assert normal_host(given) == normal
