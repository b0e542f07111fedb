"""What system tests share: a real PostgreSQL server."""

from collections.abc import Iterator

import pytest

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
