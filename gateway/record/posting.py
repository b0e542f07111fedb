"""POST of JSON to the receivers of the record's head."""

from io import BytesIO
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, FileBodyProducer, ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

#: Maximum seconds until a connection is made.
_CONNECT_TIMEOUT: Final = 10.0

#: Maximum bytes of an answer that are read.
_MAX_ANSWER: Final = 4096


class PublishFailed(Exception):
    """Error for a head that a receiver did not take."""


async def post_json(reactor: Any, url: str, body: bytes, token: str | None) -> None:
    """Send JSON to a receiver, and return when it has taken it.

    :param token: token for the receiver; ``None`` for none.
    :raises PublishFailed: the receiver answered with an error.
    :raises Exception: the receiver cannot be reached, or ended the connection.
    """
    headers = Headers({"Content-Type": ["application/json"], "User-Agent": ["cynow-gateway"]})
    if token is not None:
        headers.addRawHeader("Authorization", f"Bearer {token}")
    agent = Agent(reactor, connectTimeout=_CONNECT_TIMEOUT)
    response: IResponse = await agent.request(b"POST", url.encode(), headers, FileBodyProducer(BytesIO(body)))
    answer = await _read_answer(response)
    if not 200 <= response.code < 300:
        raise PublishFailed(f"{url} answered {response.code} {answer[:200].decode('utf-8', 'replace')}".strip())


def _read_answer(response: IResponse) -> "Deferred[bytes]":
    """Return the beginning of the body of an answer."""
    reader = AnswerReader()
    response.deliverBody(reader)
    return reader.done


class AnswerReader(Protocol):
    """Reader of the beginning of an answer; the rest is not waited for."""

    def __init__(self) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self._abort())
        self._received = b""

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        if len(self._received) >= _MAX_ANSWER:
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.done.called:
            if reason.check(ResponseDone) or self._received:
                self.done.callback(self._received)
            else:
                self.done.errback(reason)

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]  # the proxy of an HTTP connection has it
