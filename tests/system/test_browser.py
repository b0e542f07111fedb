"""Live events in Debian's Chromium."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.support.daemon import PATIENCE, Daemon, until
from tests.support.frames import fault, frame


@pytest.fixture
def page(browser: Browser, daemon: Daemon) -> Iterator[Page]:
    """Yield a page of the gateway itself."""
    with browser.new_page() as page:
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(f"http://127.0.0.1:{daemon.port}/")
        page.evaluate("window.events_of = []")
        yield page


def events_of(page: Page, enough: Callable[[list[Any]], bool]) -> list[Any]:
    """Return the events of a page once they are enough."""
    found: list[Any] = []

    def is_enough() -> bool:
        found[:] = page.evaluate("window.events_of")
        return enough(found)

    until(is_enough, f"what the page hears; so far {found}")
    return found


def scores(found: list[Any]) -> list[float]:
    return [message["data"]["score"] for message in found if message.get("event") == "anomaly"]


SUBSCRIBE = """() => {
    window.socket = new WebSocket(`ws://${location.host}/ws`);
    window.socket.onopen = () => window.socket.send(JSON.stringify({type: "subscribe", topics: ["machine/M"]}));
    window.socket.onmessage = (message) => window.events_of.push(JSON.parse(message.data));
    window.socket.onclose = (closed) => window.events_of.push({type: "closed", code: closed.code});
}"""


def test_page_receives_events_by_websocket(daemon: Daemon, page: Page) -> None:
    page.evaluate(SUBSCRIBE)
    events_of(page, lambda found: len(found) == 2)
    daemon.daq(frame("name", "M"), fault(1.5), fault(2.5))
    assert scores(events_of(page, lambda found: len(scores(found)) == 2)) == [1.5, 2.5]
    # Browsers offer compression.
    assert page.evaluate("window.socket.extensions").startswith("permessage-deflate; server_no_context_takeover")
    daemon.terminate()
    assert events_of(page, lambda found: found[-1]["type"] == "closed")[-1]["code"] == 1001


def test_page_receives_server_sent_events_after_a_restart(daemon: Daemon, page: Page) -> None:
    page.evaluate(
        """() => {
        window.source = new EventSource("/events?topics=machine/M");
        window.source.onmessage = (message) => window.events_of.push(JSON.parse(message.data));
        }"""
    )
    events_of(page, lambda found: len(found) == 1)
    daemon.daq(frame("name", "M"), fault(1.5))
    events_of(page, lambda found: scores(found) == [1.5])
    daemon.kill()
    daemon.start()
    # The browser reconnects with the number of the last event, which has left the backlog.
    events_of(page, lambda found: [message["event"] for message in found].count("snapshot") == 2)
    daemon.daq(frame("name", "M"), fault(2.5))
    assert scores(events_of(page, lambda found: len(scores(found)) == 2)) == [1.5, 2.5]


def test_foreign_page_receives_no_events(daemon: Daemon, browser: Browser) -> None:
    with browser.new_page() as page:
        page.set_default_timeout(PATIENCE * 1000)
        # localhost and 127.0.0.1 are different origins.
        page.goto(f"http://localhost:{daemon.port}/")
        refused = """(url) => new Promise((resolve) => {
            const source = new EventSource(url);
            source.onerror = () => resolve("refused");
            source.onmessage = () => resolve("events_of");
        })"""
        assert page.evaluate(refused, f"http://127.0.0.1:{daemon.port}/events?topics=scale/*") == "refused"
        refused = """(url) => new Promise((resolve) => {
            const socket = new WebSocket(url);
            socket.onerror = () => resolve("refused");
            socket.onopen = () => resolve("open");
        })"""
        assert page.evaluate(refused, f"ws://127.0.0.1:{daemon.port}/ws") == "refused"
