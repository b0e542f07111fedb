"""The page ``/docs``: its files, and what Chromium makes of it."""

import gzip
import http.client
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route

from tests.conftest import ROOT
from tests.support.daemon import PATIENCE, Daemon

STATIC = ROOT / "gateway" / "web" / "static"

#: Names of the files below ``/docs/``, and their paths.
FILES = {
    "docs.css": STATIC / "docs" / "docs.css",
    "init.js": STATIC / "docs" / "init.js",
    "swagger-ui.css": STATIC / "swagger-ui" / "swagger-ui.css",
    "swagger-ui-bundle.js": STATIC / "swagger-ui" / "swagger-ui-bundle.js",
}

TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}


def ask(daemon: Daemon, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content, {name.lower(): value for name, value in response.getheaders()}


def is_strict(policy: str) -> bool:
    """Return whether a policy lets no inline script run and no file of another host load."""
    return policy.startswith("default-src 'self'") and "unsafe" not in policy and "http" not in policy


@pytest.mark.parametrize("name", FILES)
def test_file_of_the_page_is_served(shared_daemon: Daemon, name: str) -> None:
    content = FILES[name].read_bytes()
    status, served, headers = ask(shared_daemon, f"/docs/{name}")
    assert (status, served) == (200, content)
    assert headers["content-type"] == TYPES[FILES[name].suffix]
    assert headers["cache-control"] == "no-cache"
    assert headers["x-content-type-options"] == "nosniff"
    assert is_strict(headers["content-security-policy"])
    status, _, again = ask(shared_daemon, f"/docs/{name}", If_None_Match=headers["etag"])
    assert (status, again["etag"]) == (304, headers["etag"])
    status, served, head = ask(shared_daemon, f"/docs/{name}", "HEAD")
    assert (status, served, head["content-length"]) == (200, b"", str(len(content)))


def test_file_is_compressed_for_a_client_that_accepts_it(shared_daemon: Daemon) -> None:
    path = "/docs/swagger-ui-bundle.js"
    plain = ask(shared_daemon, path)
    for accepted in ("gzip", "br;q=1.0, gzip;q=0.8, *;q=0.1"):
        status, served, headers = ask(shared_daemon, path, Accept_Encoding=accepted)
        assert (status, headers["content-encoding"]) == (200, "gzip")
        assert gzip.decompress(served) == plain[1]
        assert len(served) < len(plain[1]) / 3
        assert headers["etag"] != plain[2]["etag"]
        assert ask(shared_daemon, path, Accept_Encoding=accepted, If_None_Match=headers["etag"])[0] == 304
    for refused in ("", "identity", "gzip;q=0", "br"):
        assert "content-encoding" not in ask(shared_daemon, path, Accept_Encoding=refused)[2]


def test_page_has_no_other_files(shared_daemon: Daemon) -> None:
    page = ask(shared_daemon, "/docs")
    assert page[0] == 200
    assert page[2]["content-type"] == "text/html; charset=utf-8"
    assert b"<script>" not in page[1]
    assert ask(shared_daemon, "/docs/")[1] == page[1]
    for path in ("../setup.cfg", "%2e%2e/__init__.py", "..%2f__init__.py", "docs/init.js", "init.js/", "x", "%00"):
        assert ask(shared_daemon, f"/docs/{path}")[0] == 404, path
    status, _, headers = ask(shared_daemon, "/docs", "POST")
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.fixture
def page(browser: Browser, daemon: Daemon) -> Iterator[Page]:
    """Yield an empty page that must have no complaint and no request to another host."""
    complaints: list[str] = []
    with browser.new_page() as page:
        page.set_default_timeout(PATIENCE * 1000)
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((f"http://127.0.0.1:{daemon.port}/", "data:"))
                else complaints.append(request.url)
            ),
        )
        page.add_init_script(
            "document.addEventListener('securitypolicyviolation', (event) => console.error(event.violatedDirective))"
        )
        yield page
    # The answer 401 of one of the tests is a line of the console.
    assert [each for each in complaints if "401" not in each] == []


def execute(page: Page, operation: str) -> str:
    """Execute an operation of the page as it is; return the status of its answer."""
    block = page.locator(f"#operations-{operation}")
    block.locator(".opblock-summary-control").click()
    block.locator("button.execute").click()
    return block.locator(".live-responses-table tbody .response-col_status").first.inner_text().split()[0]


def test_page_shows_every_operation_and_executes_them(daemon: Daemon, page: Page) -> None:
    daemon.weigh(b"ST , +000053.26 _kg")
    page.goto(f"http://127.0.0.1:{daemon.port}/docs")
    page.wait_for_selector(".opblock")
    document = daemon.get("/openapi.json")[1]
    assert page.locator(".opblock").count() == sum(len(item) for item in document["paths"].values())
    assert "OAS 3.1" in page.locator(".info").inner_text()
    assert not page.locator("#access").is_visible()
    assert execute(page, "scales-api_latest") == "200"
    assert "53.26" in page.locator("#operations-scales-api_latest .live-responses-table").inner_text()
    assert execute(page, "scales-api_commit") == "200"
    assert execute(page, "machines-stat_means_hour") == "200"
    assert daemon.metric("cynow_commits_total", outcome="ok") == 1


def test_page_asks_for_a_token_and_sends_it(daemon: Daemon, page: Page) -> None:
    daemon.weigh(b"ST , +000053.26 _kg")
    seen: list[Any] = []

    def guard(route: Route) -> None:
        """Answer like a gateway with access control."""
        token = route.request.header_value("authorization")
        seen.append((route.request.url.rpartition("/")[0].rpartition("/")[2], token))
        if token == "Bearer right":
            route.continue_()
        else:
            body = '{"ok": false, "error": "unauthorized", "message": "인증이 필요합니다"}'
            route.fulfill(status=401, body=body, content_type="application/json")

    page.route("**/openapi.json", guard)
    page.route("**/latest/**", guard)
    page.goto(f"http://127.0.0.1:{daemon.port}/docs")
    page.locator("#token").fill("wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#problem:not(:empty)")
    assert "unauthorized" in page.locator("#problem").inner_text()
    page.locator("#token").fill("right")
    page.keyboard.press("Enter")
    page.wait_for_selector(".opblock")
    assert not page.locator("#access").is_visible()
    assert execute(page, "scales-api_latest") == "200"
    assert [token for _, token in seen] == [None, "Bearer wrong", "Bearer right", "Bearer right"]
    # The token is forgotten with the page.
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
