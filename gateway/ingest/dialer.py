"""Scales that the gateway dials."""

from collections.abc import Callable
from functools import partial
from typing import Final

from twisted.application.internet import ClientService, backoffPolicy
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.ingest.scale import ScaleFactory, ScaleLineProtocol
from gateway.ingest.transport import failure_reason

#: Waits between attempts to dial out or to open a serial line: 1 s, then longer, at most 30 s, with some jitter.
RETRY: Final = backoffPolicy(initialDelay=1.0, maxDelay=30.0, factor=1.5)


class ConnectionAttempts:
    """The failed attempts in a row to reach one scale, and the growing waits between them."""

    def __init__(self, factory: ScaleFactory) -> None:
        self._factory = factory
        self._count = 0
        self._problem: str | None = None

    def failed(self, problem: str) -> None:
        """Note the reason for the next attempt."""
        self._problem = problem

    def ended(self, name: str, was_good: bool) -> None:
        """Note that a connection has ended; unless it was good, it counts as a failed attempt.

        :param name: address or device.
        """
        if was_good:
            self._count = 0
            self._problem = None
        else:
            self._problem = f"the connection to {name} ended at once, without a reading"

    def delay(self) -> float:
        """Return the seconds until the next attempt, and log them if the last one failed."""
        self._count += 1
        delay = RETRY(self._count)
        problem, self._problem = self._problem, None
        if problem is not None:
            self._factory.problems.attempt_failed(problem, delay)
        return delay


@implementer(IStreamClientEndpoint)
class _ReportingEndpoint:
    """An endpoint that reports the error if it cannot connect."""

    def __init__(self, endpoint: IStreamClientEndpoint, failed: Callable[[BaseException | None], None]) -> None:
        self._endpoint = endpoint
        self._failed = failed

    def connect(self, protocolFactory: IProtocolFactory) -> "Deferred[IProtocol]":
        def failed(failure: Failure) -> Failure:
            self._failed(failure.value)
            return failure

        return self._endpoint.connect(protocolFactory).addErrback(failed)


class _DialFactory(Factory):
    """Factory of the protocols of dialled connections."""

    noisy = False

    def __init__(self, scale: ScaleFactory, lost: Callable[[bool], None]) -> None:
        self._scale = scale
        self._lost = lost

    def buildProtocol(self, addr: IAddress | None) -> ScaleLineProtocol | None:
        return self._scale.admit(lost=self._lost)


def dialled(
    endpoint: IStreamClientEndpoint, factory: ScaleFactory, reactor: IReactorTime, address: str
) -> ClientService:
    """Return a service that dials a serial-to-Ethernet converter, and redials it whenever the connection ends.

    :param address: the converter's address, for log lines.
    """
    attempts = ConnectionAttempts(factory)
    reporting = _ReportingEndpoint(
        endpoint, lambda error: attempts.failed(f"cannot connect to {address}: {failure_reason(error)}")
    )
    # ClientService treats every connection that is made as a success, so the attempts are counted here.
    service: ClientService = ClientService(
        reporting,
        _DialFactory(factory, partial(attempts.ended, address)),
        retryPolicy=lambda _: attempts.delay(),
        clock=reactor,
    )
    return service
