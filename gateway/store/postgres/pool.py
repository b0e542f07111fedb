"""Pool of connections to PostgreSQL, which reconnects them and bounds every wait.

libpq blocks the reactor only while it connects: it reads ``~/.pgpass``, ``service`` and certificate files, and computes
for TLS. Host names are looked up in a thread.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.store.interface import StoreUnavailable
from gateway.store.postgres.address import ServerAddress
from gateway.store.postgres.refusals import error_text, explain
from gateway.store.postgres.session import SETTINGS, SILENCE, Session, Work, ends_session
from gateway.store.postgres.txpostgres_internals import Connection, LossDetector

log = Logger()

T = TypeVar("T")

#: Seconds between checks of an idle connection, and maximum seconds for its answer; together at most five.
_CHECK_EVERY: Final = 2.0
_MAX_CHECK: Final = 3.0

#: Seconds between attempts to connect. They do not grow, so that a restart of the server costs only 0.55 s more.
_RETRY: Final = 0.5

#: Seconds for which work waits for an unavailable server; after that, work is refused at once until it is back.
PATIENCE: Final = 2.0

#: Maximum seconds that work waits for a connection, earlier attempts included.
_MAX_WAIT: Final = 5.0


@dataclass(slots=True, eq=False)
class _PoolJob(Generic[T]):
    """Work that waits for a connection.

    :ivar is_repeatable: whether it may be run again if its outcome is unknown.
    :ivar deadline: latest time for its start, by the reactor's clock.
    """

    work: Work[T]
    done: "Deferred[T]"
    is_repeatable: bool
    deadline: float
    timer: IDelayedCall | None = None


class Pool:
    """Connections to one database, and the work that waits for them.

    Cancelling a Deferred of this class does not stop its work.

    :param url: ``postgresql://...``
    :param name: name for the server and the log.
    :param size: number of connections.
    :param prepare: run on each new connection, before any work.
    :param max_waiting: maximum waiting jobs; more are refused.
    :param on_notify: called with the payload of each notification; must not raise. ``prepare`` must LISTEN.
    :ivar problem: why the server cannot be used; ``None`` if a connection is ready.
    :ivar refuses: whether the server is reachable, but refuses.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        name: str,
        size: int,
        prepare: Work[None],
        max_waiting: int = 1000,
        on_notify: Callable[[str], None] | None = None,
    ) -> None:
        self._reactor = reactor
        self._name = name
        self.prepare = prepare
        self._max_waiting = max_waiting
        self.on_notify = on_notify
        self.address = ServerAddress(reactor, url, f"cynow-gateway {name}")
        self._links = [_Link(self, reactor) for _ in range(size)]
        self._waiting: deque[_PoolJob[Any]] = deque()
        self._check = LoopingCall(self._check_idle_links)
        self._check.clock = reactor
        self._unavailable_since: float | None = None
        self._refusal: IDelayedCall | None = None
        self._is_open = False
        self._on_idle: Deferred[None] | None = None
        self.problem: str | None = "not connected yet"
        self.refuses = False
        self.on_connect: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Connect, and reconnect until :meth:`close`."""
        self._is_open = True
        self.address.start()
        self._start_outage(None)
        for link in self._links:
            link.start()
        self._check.start(_CHECK_EVERY, now=False)

    @property
    def state(self) -> str:
        """Return why the server cannot be used, in a sentence."""
        return f"PostgreSQL {'refuses' if self.refuses else 'is unavailable'}: {self.problem}"

    @property
    def is_connected(self) -> bool:
        """Return whether a connection is ready."""
        return any(link.is_ready for link in self._links)

    async def close(self, patience: float = 0.0) -> None:
        """Accept no more work, and close all connections.

        :param patience: maximum seconds for work that has begun; after that, it is refused.
        """
        self._is_open = False
        if self._check.running:
            self._check.stop()
        if patience and not self._is_idle():
            self._on_idle = Deferred()
            timeout = self._reactor.callLater(patience, self._on_idle.callback, None)
            await self._on_idle
            if timeout.active():
                timeout.cancel()
        if self._refusal is not None and self._refusal.active():
            self._refusal.cancel()
        for link in self._links:
            link.stop()
        self._refuse_all("the gateway is stopping")
        self.address.close()

    def run(self, work: Work[T], *, is_repeatable: bool = True) -> "Deferred[T]":
        """Run work on a connection; fires with its result.

        :param is_repeatable: whether the work may be run again if the connection is lost, and its outcome is unknown.
        :raises StoreUnavailable: the server is unavailable or silent, or too much work waits.
        :raises psycopg2.Error: the server has refused a statement.
        """
        done: Deferred[T] = Deferred()
        refusal = None
        if not self._is_open:
            refusal = "the connections to PostgreSQL are closed"
        elif self._unavailable_since is not None and self._reactor.seconds() - self._unavailable_since >= PATIENCE:
            refusal = self.state
        elif len(self._waiting) >= self._max_waiting:
            refusal = "too many requests wait for a connection to PostgreSQL"
        if refusal is not None:
            done.errback(Failure(StoreUnavailable(refusal)))
        else:
            self._enqueue(_PoolJob(work, done, is_repeatable, self._reactor.seconds() + _MAX_WAIT))
            self._start_jobs()
        return done

    def _enqueue(self, job: _PoolJob[Any]) -> None:
        job.timer = self._reactor.callLater(max(0.0, job.deadline - self._reactor.seconds()), self._time_out, job)
        self._waiting.append(job)

    def _time_out(self, job: _PoolJob[Any]) -> None:
        self._waiting.remove(job)
        job.done.errback(Failure(StoreUnavailable(f"no connection to PostgreSQL was free within {_MAX_WAIT:g} s")))

    def _start_jobs(self) -> None:
        for link in self._links:
            if self._waiting and link.is_ready and not link.is_busy:
                job = self._waiting.popleft()
                if job.timer is not None:
                    job.timer.cancel()
                link.is_busy = True
                Deferred.fromCoroutine(self._run_job(link, job)).addErrback(self._log_failure)

    def _log_failure(self, failure: Failure) -> None:
        log.failure("{name}: a job on a connection to PostgreSQL failed", failure, name=self._name)

    async def _run_job(self, link: "_Link", job: _PoolJob[T]) -> None:
        try:
            try:
                result = await job.work(link.session)
            except Exception as error:
                failure = Failure()
                link.check_loss(failure)
                if not link.is_ready:
                    self._handle_loss(job, error)
                    return
                link.check_idle()
                job.done.errback(failure)
            else:
                link.check_idle()
                job.done.callback(result)
        finally:
            link.is_busy = False
            self._start_jobs()
            if self._on_idle is not None and not self._on_idle.called and self._is_idle():
                self._on_idle.callback(None)

    def _is_idle(self) -> bool:
        return not self._waiting and not any(link.is_busy for link in self._links)

    def _handle_loss(self, job: _PoolJob[Any], error: Exception) -> None:
        if job.is_repeatable and self._is_open and self._reactor.seconds() < job.deadline:
            self._enqueue(job)
            self._waiting.rotate(1)
        else:
            unavailable = StoreUnavailable(f"the connection to PostgreSQL was lost: {error_text(error)}")
            unavailable.__cause__ = error
            job.done.errback(Failure(unavailable))

    def _check_idle_links(self) -> None:
        for link in self._links:
            if link.is_ready and not link.is_busy:
                link.is_busy = True
                job = _PoolJob(_check_alive, Deferred(), is_repeatable=False, deadline=0.0)
                job.done.addErrback(lambda _: None)
                Deferred.fromCoroutine(self._run_job(link, job)).addErrback(self._log_failure)

    # -- events of the links

    def note_connected(self) -> None:
        """Note that a connection is ready."""
        if self._unavailable_since is not None:
            self._unavailable_since = None
            log.info("{name}: connected to PostgreSQL", name=self._name)
            if self._refusal is not None and self._refusal.active():
                self._refusal.cancel()
        self.problem, self.refuses = None, False
        self.on_connect()
        self._start_jobs()

    def note_lost(self, error: BaseException | None) -> None:
        """Note that a connection is lost.

        :param error: error of the connection.
        """
        if self._is_open and self._unavailable_since is None and not self.is_connected:
            self._start_outage(error)

    def note_refused(self, error: BaseException | None) -> None:
        """Note that an attempt to connect has failed."""
        if self._unavailable_since is not None:
            self._set_problem(error)

    def _start_outage(self, error: BaseException | None) -> None:
        self._unavailable_since = self._reactor.seconds()
        self._set_problem(error)
        self._refusal = self._reactor.callLater(PATIENCE, self._refuse_waiting)

    def _set_problem(self, error: BaseException | None) -> None:
        """Remember why the server cannot be used, and log the reason if it is new."""
        if error is None:
            return
        before = self.state
        self.refuses, self.problem = explain(error, self.address.parameters)
        if self.state != before:
            log.warn("{name}: {state}", name=self._name, state=self.state)

    def _refuse_waiting(self) -> None:
        self._refuse_all(self.state)

    def _refuse_all(self, why: str) -> None:
        waiting, self._waiting = self._waiting, deque()
        for job in waiting:
            if job.timer is not None:
                job.timer.cancel()
            job.done.errback(Failure(StoreUnavailable(why)))


class _Link:
    """One connection of the pool, which is replaced whenever it is lost.

    :ivar is_ready: whether it can run work.
    :ivar is_busy: whether it runs work.
    """

    def __init__(self, pool: Pool, reactor: Any) -> None:
        self._pool = pool
        self._reactor = reactor
        self._detector = LossDetector(reactor, self._is_loss, self._lose)
        self._connection = Connection(reactor, self._detector)
        if (on_notify := pool.on_notify) is not None:
            self._connection.addNotifyObserver(lambda notify: on_notify(notify.payload))
        self.session = Session(reactor, self._connection)
        self.is_ready = False
        self.is_busy = False
        self._is_ended = False
        #: Rotation of the hosts at the last attempt to connect.
        self._rotation = 0
        self._retry: IDelayedCall | None = None

    def start(self) -> None:
        """Connect, and reconnect until :meth:`stop`."""
        self._connect_later(0.0)

    def stop(self) -> None:
        """Close the connection for good."""
        self._is_ended = True
        self.is_ready = False
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        self._connection.close()

    def check_loss(self, failure: Failure) -> None:
        """Reconnect if a failure of work means that the connection is lost."""
        self._detector.check(failure)

    def check_idle(self) -> None:
        """Close the connection if work has left a transaction open, which is a bug."""
        if not self._connection.is_idle:
            self._connection.close()

    def _is_loss(self, failure: Failure) -> bool:
        """Return whether a failure ends the connection, unlike a deadlock, a full disk or a statement's time limit."""
        return not self._is_ended and (self._connection.is_broken or ends_session(failure.value))

    def _lose(self, error: BaseException | None) -> None:
        self.is_ready = False
        self._pool.note_lost(error)
        self._connect_later(0.0)

    def _connect_later(self, delay: float) -> None:
        if not self._is_ended:
            self._retry = self._reactor.callLater(delay, self._start_connecting)

    def _start_connecting(self) -> None:
        Deferred.fromCoroutine(self._connect()).addCallbacks(self._on_connected, self._on_refused)

    async def _connect(self) -> None:
        self._connection.close()
        self._rotation = self._pool.address.rotation
        arguments = await self._pool.address.arguments()
        if self._is_ended:
            return
        silence = self._reactor.callLater(SILENCE, self._on_silent)
        try:
            await self._connection.connect(**arguments)
        finally:
            if silence.active():
                silence.cancel()
        await self.session.ask(SETTINGS)
        await self._pool.prepare(self.session)

    def _on_connected(self, _: None) -> None:
        if not self._is_ended:
            self._detector.mark_connected()
            self.is_ready = True
            self._pool.note_connected()

    def _on_refused(self, failure: Failure) -> None:
        if not self._is_ended:
            self._connection.close()
            self._pool.note_refused(failure.value)
            self._connect_later(_RETRY)

    def _on_silent(self) -> None:
        # libpq tries one host after the other without a time limit, so the next attempt begins with another host.
        self._pool.address.rotate(self._rotation)
        self._connection.close()


async def _check_alive(session: Session) -> None:
    await session.ask("SELECT 1", limit=_MAX_CHECK)
