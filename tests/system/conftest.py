"""What system tests share: a real PostgreSQL server and a real browser."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.conftest import program
from tests.support.daemon import PATIENCE
from tests.support.postgres import Server


@pytest.fixture(scope="module")
def the_server() -> Iterator[Server]:
    server = Server()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def server(the_server: Server) -> Server:
    """A running server with nothing in it."""
    the_server.resume()
    if the_server._process is None:
        the_server.start()
    the_server.empty()
    return the_server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A running Chromium."""
    with sync_playwright() as playwright:
        with playwright.chromium.launch(
            executable_path=program("chromium"),
            timeout=PATIENCE * 1000,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        ) as browser:
            yield browser
