"""Sender of push messages in a thread of its own, because sending blocks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from gateway.runtime.threads import pool_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PushMessage:
    """Message as a phone shows it."""

    title: str
    body: str


class NotSentError(Exception):
    """Error for a message that was not sent.

    :ivar reason: text for the log: a status or the name of an exception, and nothing from Google or the credentials.
    :ivar retry: whether the message may be accepted later.
    :ivar after: seconds to wait until then; ``None`` if Google gives no number.
    :ivar refused: whether the credentials are not accepted.
    """

    def __init__(self, reason: str, *, retry: bool = False, after: float | None = None, refused: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry = retry
        self.after = after
        self.refused = refused


#: Function that sends a message or raises, if possible :class:`NotSentError`. Without a message, it only checks the
#: credentials. It blocks.
Send = Callable[[PushMessage | None], object]


class PushSender:
    """Sender of one message at a time.

    :param connect: returns the function that sends, or raises; both are called in the thread.
    :param pool: pool of that thread.
    """

    def __init__(self, reactor: Any, connect: Callable[[], Send], pool: ThreadPool | None = None) -> None:
        self._reactor = reactor
        self._connect = connect
        # The end of the process does not wait for the thread: Google may be slow.
        self._pool = pool or pool_of(1, "push")
        self._send: Send | None = None

    def start(self) -> None:
        """Start the thread."""
        self._pool.start()

    async def connect(self) -> None:
        """Read the credentials.

        :raises Exception: they cannot be used; the text may quote them.
        """
        self._send = await self._in_thread(self._connect)

    async def send(self, message: PushMessage | None) -> NotSentError | None:
        """Send a message, or check the credentials; return the error if that fails.

        :param message: message to send; ``None`` to check the credentials only.
        """
        assert self._send is not None
        try:
            await self._in_thread(self._send, message)
        except CancelledError:
            raise
        except NotSentError as error:
            return error
        except Exception as error:  # an unexpected error must not end all further messages
            return NotSentError(type(error).__name__)
        return None

    def _in_thread(self, function: Callable[..., T], *args: object) -> "Deferred[T]":
        return deferToThreadPool(self._reactor, self._pool, function, *args)
