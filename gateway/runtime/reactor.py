"""Type of the reactor."""

from twisted.internet.interfaces import (
    IReactorCore,
    IReactorFDSet,
    IReactorTCP,
    IReactorThreads,
    IReactorTime,
)


class IReactor(IReactorCore, IReactorTime, IReactorThreads, IReactorTCP, IReactorFDSet):
    """Interfaces of the reactor that the gateway uses."""
