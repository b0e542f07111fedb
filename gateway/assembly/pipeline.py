"""Builders of the sinks of the bus: statistics, raw files, writer, retention, push messages."""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module

from twisted.python.threadpool import ThreadPool

from gateway.assembly.parts import Paths, Pipeline, Runtime
from gateway.config.settings import Settings
from gateway.model.records import Batch, Presence
from gateway.raw.damage import DamageLog
from gateway.raw.log import RawLog
from gateway.raw.retention import Retention
from gateway.runtime.reactor import IReactor
from gateway.stats.rollup import Rollup
from gateway.stats.statistics import Statistics
from gateway.store.interface import Store
from gateway.store.writer import Writer


def build_pipeline(
    runtime: Runtime, settings: Settings, paths: Paths, store: Store, pause: Callable[[bool], None]
) -> Pipeline:
    """Build the sinks of the bus.

    :param pause: pauses and resumes the connections of DAQ programs: back pressure of the writer.
    """
    reactor, bus, clock, counters = runtime.reactor, runtime.bus, runtime.clock, runtime.counters
    # Sinks get a record in the order in which they were attached: statistics close an hour before the raw log gets the
    # batch that closed it, and read from the raw log how many bytes that hour counts.
    writer = Writer(reactor, bus, counters, store, pause)
    damage = DamageLog(clock, counters)
    raw_log = RawLog(reactor, clock, counters, paths.data, writer.knows, damage)
    new_rollup = partial(Rollup, clock.zone, settings.stat)
    rollup = new_rollup()
    statistics = Statistics(reactor, bus, clock, counters, rollup, raw_log, writer.add)
    bus.attach(Batch, raw_log.name, raw_log.write)
    bus.attach(Presence, "numpy", partial(_import_numpy, reactor))
    return Pipeline(writer, raw_log, damage, rollup, new_rollup, [writer, raw_log, statistics])


def _import_numpy(reactor: IReactor, presence: Presence) -> None:
    """Import numpy in a thread, before the first sensor has many samples: it takes 50 ms."""
    if presence.source == "machine" and "gateway.timeseries.numpy_sums" not in sys.modules:
        reactor.callInThread(import_module, "gateway.timeseries.numpy_sums")


def build_retention(runtime: Runtime, settings: Settings, paths: Paths, writer: Writer, pool: ThreadPool) -> Retention:
    """Build the service that compresses and removes old raw files.

    :param pool: pool of one thread, so that reading raw files does not wait for compression.
    """
    reactor, clock, counters = runtime.reactor, runtime.clock, runtime.counters
    # Samples without a row may be in a raw file only.
    return Retention(reactor, clock, counters, pool, paths.data, settings.data, is_busy=lambda: writer.is_stuck)
