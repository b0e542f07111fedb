"""Origins as browsers send them, and what no page can have."""

import pytest

from gateway.origins import normal_origin


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://h:9090", "http://h:9090"),
        ("http://h:9090/", "http://h:9090"),
        ("HTTP://H", "http://h"),
        ("http://h:80", "http://h"),
        ("http://h:", "http://h"),
        ("https://h:443/", "https://h"),
        ("https://h:80", "https://h:80"),
        ("http://h:08080", "http://h:8080"),
        ("http://10.0.0.7:8080", "http://10.0.0.7:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://[0:0::1]", "http://[::1]"),
        ("http://plant_1.example", "http://plant_1.example"),
        ("https://공장.example", "https://xn--ob0b391c.example"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("null", "null"),
        ("NULL", "null"),
        ("file://", "file://"),
        ("FILE:///", "file://"),
        ("*", "*"),
    ],
)
def test_origin_is_given_as_browsers_send_it(text: str, origin: str) -> None:
    assert normal_origin(text) == origin
    assert normal_origin(origin) == origin


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "plant.example",
        "plant.example:8080",
        "//plant.example",
        "http:/plant.example",
        "http://",
        "http://:80",
        "http://h/page",
        "http://h/?x",
        "http://h?x",
        "http://h#x",
        "http://u@h",
        "http://u:p@h",
        "http://*.example",
        "http://*",
        "http://h:0",
        "http://h:65536",
        "http://h:99999999999999999999",
        "http://h:x",
        "http://a b",
        "http://h ",
        " http://h",
        "http://[::1",
        "http://[x]",
        "http://-h",
        "ws://h",
        "wss://h:8080",
        "http://a,http://b",
        "file://h/x",
        "*.example",
    ],
)
def test_what_no_page_can_have_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        normal_origin(text)
    assert str(caught.value)
