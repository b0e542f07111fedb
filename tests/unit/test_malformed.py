"""Explanations of malformed requests, which must not quote secrets."""

import pytest

from gateway.web.http.malformed import header_fault, request_line_fault


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"GET /", "a request line has three parts, not 2: METHOD TARGET HTTP/1.1"),
        (b"GET / x?access_token=SECRET HTTP/1.1", "a request line has three parts, not 4: METHOD TARGET HTTP/1.1"),
        (b'{"cylinder_no": "SECRET" }', "the method is not a valid name"),
        (b"GET /x SECRET", "the request line does not end with HTTP/1.1"),
        (b"GET / HTTP/1.2", "HTTP/1.2 is not supported; use HTTP/1.1 or HTTP/1.0"),
        (b"PRI * HTTP/2.0", "HTTP/2.0 is not supported; use HTTP/1.1 or HTTP/1.0"),
        (b"GET / http/1.1", "the request line does not end with HTTP/1.1"),
        (b"GET /\0 HTTP/1.1", "the target is empty, or has a control character"),
        (b"GET  HTTP/1.1", "the target is empty, or has a control character"),
    ],
)
def test_request_line_fault_names_the_fault(line: bytes, fault: str) -> None:
    assert request_line_fault(line) == fault
    assert "SECRET" not in fault


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"Authorization Bearer SECRET", "a header line without a colon"),
        (b"Authorization : Bearer SECRET", "the name of a header is not valid"),
        (b'{"cylinder_no":"SECRET"}', "the name of a header is not valid"),
        (b"Authorization: Bearer SECRET\0", "header Authorization: a control character in its value"),
        (b"Transfer-Encoding: gzip, chunked", "a Transfer-Encoding other than chunked"),
        (b"Content-Length: +5", "a Content-Length that is not a number"),
        (b"Content-Length:", "a Content-Length that is not a number"),
        (b"Content-Length: 5", "the length of the body is sent twice"),
        (b"Transfer-Encoding: chunked", "the length of the body is sent twice"),
    ],
)
def test_header_fault_names_the_fault(line: bytes, fault: str) -> None:
    assert header_fault(line) == fault
    assert "SECRET" not in fault
