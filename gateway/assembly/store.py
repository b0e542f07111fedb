"""Builders of the store, of the relay, and of what opens and recovers the store."""

import platform
from collections.abc import Callable
from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from gateway.assembly.parts import Paths, Pipeline, Runtime, StoreParts
from gateway.config.settings import Settings
from gateway.ingest.daq import DaqFactory
from gateway.model.records import Commit
from gateway.record.book import RecordBook
from gateway.replay.recovery import Recovery, recover
from gateway.replay.storage import Storage
from gateway.runtime.threads import pool_of

log = Logger()


def build_store(runtime: Runtime, settings: Settings, paths: Paths, *, accept_empty: bool = False) -> StoreParts:
    """Build the store and, on PostgreSQL, the relay to other gateways.

    :param accept_empty: whether to start although the file of commits is lost.
    """
    reactor, clock, counters = runtime.reactor, runtime.clock, runtime.counters
    if settings.database.url is None:
        from gateway.store.sqlite.store import SqliteStore

        embedded = SqliteStore(reactor, clock, counters, paths.database, accept_empty=accept_empty)
        record = RecordBook(clock, settings.gateway.name or platform.node(), embedded.run_job)
        embedded.on_write = record.write_commit
        return StoreParts(embedded, embedded, record)
    return _build_postgres(runtime, settings, settings.database.url, paths)


def _build_postgres(runtime: Runtime, settings: Settings, url: str, paths: Paths) -> StoreParts:
    # Imported only if PostgreSQL is configured: these modules take 6 MB.
    from gateway.record.file import RecordFile
    from gateway.record.recovery import RecordRecovery
    from gateway.relay.service import Relay
    from gateway.relay.settings import RelaySettings
    from gateway.store.postgres.notify import PostgresChannel
    from gateway.store.postgres.store import PostgresStore
    from gateway.store.spool.spool import Spool
    from gateway.store.tickets.ticket_file import TicketFile

    reactor, clock, counters = runtime.reactor, runtime.clock, runtime.counters
    name = settings.gateway.name or platform.node()
    spool = Spool(reactor, clock, counters, paths.database, settings.database.spool_mb * 2**20)
    tickets = TicketFile(reactor, clock, counters, paths.database, name, settings.database.max_tickets)
    store = PostgresStore(reactor, clock, counters, spool, url, name, tickets)
    channel = PostgresChannel(reactor, url, name)
    identity = RelaySettings(name, settings.scale.idle_timeout_sec)
    relay = Relay(reactor, runtime.bus, runtime.live, clock, counters, channel, identity)
    first = (lambda: _first_number(spool.identity)) if settings.server.share_ports else None
    record_file = RecordFile(reactor, clock, counters, paths.database)
    record = RecordBook(clock, name, record_file.run)
    store.on_written = record.note_written
    store.on_forwarded = partial(_note_forwarded, runtime, record)
    recovery = RecordRecovery(reactor, record, store.commits_after).service
    return StoreParts(store, spool, record, relay, first, spool, record_file, recovery)


def _note_forwarded(runtime: Runtime, record: RecordBook, commit: Commit, request: str) -> None:
    """Publish and record the commit of a ticket."""
    runtime.bus.publish(commit)
    # What it cannot write now is recovered later.
    Deferred.fromCoroutine(record.note_written(commit, request)).addErrback(
        lambda failure: log.failure("cannot record the commit of a ticket", failure)
    )


def _first_number(identity: str) -> int:
    """Return the number at which a process begins to number its events, far from others that share its ports.

    There are 2**32 numbers from each beginning to the next, and all are below 2**52: JavaScript counts to 2**53.

    :param identity: identity of the spool, in hexadecimal digits.
    """
    return (1 + int(identity, 16) % (2**20 - 1)) << 32


def build_storage(
    runtime: Runtime, settings: Settings, paths: Paths, parts: StoreParts, pipeline: Pipeline, daq: DaqFactory
) -> Storage:
    """Build what opens, recovers and closes the store."""
    readers, compressor = pool_of(2, "files"), pool_of(1, "retention")
    in_thread = partial(deferToThreadPool, runtime.reactor, readers)
    remember = daq.machines.remember

    async def recover_parts(is_running: Callable[[], bool]) -> frozenset[str]:
        rollup, new_rollup, damage = pipeline.rollup, pipeline.new_rollup, pipeline.damage
        recovery = Recovery(paths.data, runtime.clock.zone, rollup, new_rollup, damage, lambda: not is_running())
        return await recover(recovery, in_thread, parts.store, runtime.live, pipeline.writer, runtime.clock, remember)

    return Storage(
        folder=paths.folder,
        data=paths.data,
        database=paths.database,
        has_url=settings.database.url is not None,
        store=parts.store,
        numbers=parts.numbers,
        bus=runtime.bus,
        readers=readers,
        compressor=compressor,
        recover_parts=recover_parts,
        first_number=parts.first_number,
    )
