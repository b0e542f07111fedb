"""Runtime of a gateway whose time a test sets."""

from datetime import UTC, tzinfo
from typing import Any, cast

from twisted.internet.task import Clock

from gateway.assembly.parts import Runtime
from gateway.assembly.runtime import build_runtime
from gateway.config.settings import Settings
from gateway.runtime.clock import WallClock
from gateway.runtime.reactor import IReactor


def make_runtime(reactor: Clock, clock: WallClock | None = None, *, zone: tzinfo = UTC, **sections: Any) -> Runtime:
    """Return the runtime of a gateway with one scale, ``default``, unless ``sections`` name others.

    :param clock: wall clock; ``None`` for one that shows the time of ``reactor``.
    :param sections: sections of the configuration.
    """
    clock = clock or WallClock(zone, reactor.seconds, reactor.seconds)
    return build_runtime(cast(IReactor, reactor), Settings(**sections), clock)
