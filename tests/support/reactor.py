"""The process's reactor with its type."""

from typing import cast

from twisted.internet import reactor as _reactor

from gateway.runtime.reactor import IReactor

reactor = cast(IReactor, _reactor)
