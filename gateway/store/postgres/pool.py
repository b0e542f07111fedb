"""Pool of connections to PostgreSQL on top of txpostgres, which reconnects them and bounds every wait.

Only libpq blocks the reactor while it connects: it reads ``~/.pgpass``, ``service`` and certificate files, and computes
for TLS. Host names are looked up in a thread.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from txpostgres.reconnection import DeadConnectionDetector

from gateway.store.interface import StoreUnavailable
from gateway.store.postgres.address import ServerAddress
from gateway.store.postgres.refusals import error_text, explain
from gateway.store.postgres.session import SETTINGS, SILENCE, Connection, Session, Work, is_broken, is_last_word

log = Logger()

T = TypeVar("T")

#: Seconds between checks of an idle connection, and maximum seconds for its answer; together at most five.
_ASK_EVERY: Final = 2.0
_PULSE: Final = 3.0

#: Seconds between attempts to connect. They do not grow, so that a restart of the server costs only 0.55 s more.
_RETRY: Final = 0.5

#: Seconds for which work waits for a server that is away; after that, work is refused at once until it is back.
PATIENCE: Final = 2.0

#: Maximum seconds that work waits for a connection, earlier attempts included.
_WAIT: Final = 5.0


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    """Work that waits for a connection.

    :ivar again: whether it may be run again if its outcome is unknown.
    :ivar until: latest time for its start, by the reactor's clock.
    """

    work: Work[T]
    done: "Deferred[T]"
    again: bool
    until: float
    timer: IDelayedCall | None = None


class Pool:
    """Connections to one database, and the work that waits for them.

    Cancelling a Deferred of this class does not stop its work.

    :param url: ``postgresql://...``
    :param name: name for the server and the log.
    :param size: number of connections.
    :param prepare: run on each new connection, before any work.
    :param most: maximum waiting work; more is refused.
    :param heard: called with each notification, on the channels that ``prepare`` listens to. It must not raise.
    :ivar problem: why there is no connection; ``None`` if there is one.
    :ivar refuses: whether the server is reachable, but refuses.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        name: str,
        size: int,
        prepare: Work[None],
        most: int = 1000,
        heard: Callable[[str], None] | None = None,
    ) -> None:
        self._reactor = reactor
        self._name = name
        self.prepare = prepare
        self._most = most
        self.heard = heard
        self.target = ServerAddress(reactor, url, f"cynow-gateway {name}")
        self._links = [_Link(self, reactor) for _ in range(size)]
        self._waiting: deque[_Job[Any]] = deque()
        self._pulse = LoopingCall(self._ask_idle)
        self._pulse.clock = reactor
        self._away_since: float | None = None
        self._refusing: IDelayedCall | None = None
        self._open = False
        self._idle: Deferred[None] | None = None
        self.problem: str | None = "it is not connected yet"
        self.refuses = False
        self.on_connect: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Connect, and reconnect until :meth:`close`."""
        self._open = True
        self.target.start()
        self._away(None)
        for link in self._links:
            link.begin()
        self._pulse.start(_ASK_EVERY, now=False)

    @property
    def state(self) -> str:
        """Return why there is no connection, in a sentence."""
        return f"PostgreSQL {'refuses' if self.refuses else 'is away'}: {self.problem}"

    @property
    def is_there(self) -> bool:
        """Whether a connection is ready."""
        return any(link.ready for link in self._links)

    async def close(self, patience: float = 0.0) -> None:
        """Accept no more work, and close all connections.

        :param patience: seconds for work that has begun; after that, it is refused.
        """
        self._open = False
        if self._pulse.running:
            self._pulse.stop()
        if patience and not self._is_idle():
            self._idle = Deferred()
            late = self._reactor.callLater(patience, self._idle.callback, None)
            await self._idle
            if late.active():
                late.cancel()
        if self._refusing is not None and self._refusing.active():
            self._refusing.cancel()
        for link in self._links:
            link.end()
        self._refuse("the gateway is stopping")
        self.target.close()

    def run(self, work: Work[T], *, again: bool = True) -> "Deferred[T]":
        """Run work on a connection; fires with its result.

        :param again: whether it may be run again if the connection is lost, which leaves its outcome unknown.
        :raises StoreUnavailable: the server is away or silent, or too much waits.
        :raises psycopg2.Error: the server has refused it.
        """
        done: Deferred[T] = Deferred()
        refusal = None
        if not self._open:
            refusal = "closed"
        elif self._away_since is not None and self._reactor.seconds() - self._away_since >= PATIENCE:
            refusal = self.state
        elif len(self._waiting) >= self._most:
            refusal = "too many wait"
        if refusal is not None:
            done.errback(Failure(StoreUnavailable(refusal)))
        else:
            self._wait(_Job(work, done, again, self._reactor.seconds() + _WAIT))
            self._next()
        return done

    def _wait(self, job: _Job[Any]) -> None:
        job.timer = self._reactor.callLater(max(0.0, job.until - self._reactor.seconds()), self._late, job)
        self._waiting.append(job)

    def _late(self, job: _Job[Any]) -> None:
        self._waiting.remove(job)
        job.done.errback(Failure(StoreUnavailable("PostgreSQL takes too long")))

    def _next(self) -> None:
        for link in self._links:
            if self._waiting and link.ready and not link.busy:
                job = self._waiting.popleft()
                if job.timer is not None:
                    job.timer.cancel()
                link.busy = True
                Deferred.fromCoroutine(self._do(link, job)).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        log.failure("the connections to PostgreSQL", failure)

    async def _do(self, link: "_Link", job: _Job[T]) -> None:
        try:
            try:
                result = await job.work(link.session)
            except Exception as error:
                failure = Failure()
                link.checkForDeadConnection(failure)
                if not link.ready:
                    self._interrupted(job, error)
                    return
                link.check_idle()
                job.done.errback(failure)
            else:
                link.check_idle()
                job.done.callback(result)
        finally:
            link.busy = False
            self._next()
            if self._idle is not None and not self._idle.called and self._is_idle():
                self._idle.callback(None)

    def _is_idle(self) -> bool:
        return not self._waiting and not any(link.busy for link in self._links)

    def _interrupted(self, job: _Job[Any], error: Exception) -> None:
        if job.again and self._open and self._reactor.seconds() < job.until:
            self._wait(job)
            self._waiting.rotate(1)
        else:
            unavailable = StoreUnavailable(f"the connection to PostgreSQL was lost: {error_text(error)}")
            unavailable.__cause__ = error
            job.done.errback(Failure(unavailable))

    def _ask_idle(self) -> None:
        for link in self._links:
            if link.ready and not link.busy:
                link.busy = True
                job = _Job(_pulse, Deferred(), again=False, until=0.0)
                job.done.addErrback(lambda _: None)
                Deferred.fromCoroutine(self._do(link, job)).addErrback(self._failed)

    # -- events of the links

    def connected(self) -> None:
        """Note that a connection is ready."""
        if self._away_since is not None:
            self._away_since = None
            log.info("{name}: PostgreSQL is there", name=self._name)
            if self._refusing is not None and self._refusing.active():
                self._refusing.cancel()
        self.problem, self.refuses = None, False
        self.on_connect()
        self._next()

    def lost(self, error: BaseException | None) -> None:
        """Note that a connection is lost."""
        if self._open and self._away_since is None and not self.is_there:
            self._away(error)

    def refused(self, error: BaseException | None) -> None:
        """Note that an attempt to connect has failed."""
        if self._away_since is not None:
            self._explain(error)

    def _away(self, error: BaseException | None) -> None:
        self._away_since = self._reactor.seconds()
        self._explain(error)
        self._refusing = self._reactor.callLater(PATIENCE, self._refuse_away)

    def _explain(self, error: BaseException | None) -> None:
        """Remember why there is no connection, and log the reason if it is new."""
        if error is None:
            return
        before = self.state
        self.refuses, self.problem = explain(error, self.target.parameters)
        if self.state != before:
            log.warn("{name}: {state}", name=self._name, state=self.state)

    def _refuse_away(self) -> None:
        self._refuse(self.state)

    def _refuse(self, why: str) -> None:
        waiting, self._waiting = self._waiting, deque()
        for job in waiting:
            if job.timer is not None:
                job.timer.cancel()
            job.done.errback(Failure(StoreUnavailable(why)))


class _Link(DeadConnectionDetector):  # type: ignore[misc]  # it has no annotations
    """One connection, which is made again whenever it is lost.

    :ivar ready: whether it can take work.
    :ivar busy: whether it has work.
    """

    def __init__(self, pool: Pool, reactor: Any) -> None:
        super().__init__(self._has_died, reactor=reactor)
        self._pool = pool
        self._connection = Connection(reactor, detector=self)
        if (heard := pool.heard) is not None:
            self._connection.addNotifyObserver(lambda notify: heard(notify.payload))
        self.session = Session(reactor, self._connection)
        self.ready = False
        self.busy = False
        self._ended = False
        self._turned = 0
        self._retry: IDelayedCall | None = None

    def begin(self) -> None:
        # The first connection is made in the same way as every later one.
        self.connectionIsDead = True
        self.startReconnecting(None)

    def end(self) -> None:
        self._ended = True
        self.ready = False
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        self._close()

    def check_idle(self) -> None:
        """Close the connection if work has left a transaction open, which is a bug."""
        if self._connection.pollable().info.transaction_status != TRANSACTION_STATUS_IDLE:
            self._close()

    def startReconnecting(self, failure: Failure | None) -> None:
        self.ready = False
        self._pool.lost(None if failure is None else failure.value)
        self._again(0.0)

    def _again(self, delay: float) -> None:
        if not self._ended:
            self._retry = self.reactor.callLater(delay, self._try)

    def _try(self) -> None:
        Deferred.fromCoroutine(self._reconnect()).addCallbacks(self._recovered, self._refused)

    async def _reconnect(self) -> None:
        self._close()
        self._turned = self._pool.target.turned
        arguments = await self._pool.target.arguments()
        if self._ended:
            return
        silence = self.reactor.callLater(SILENCE, self._silent)
        try:
            await self._connection.connect(**arguments)
        finally:
            if silence.active():
                silence.cancel()
        await self.session.ask(SETTINGS)
        await self._pool.prepare(self.session)

    def _recovered(self, _: None) -> None:
        if not self._ended:
            self.connectionRecovered()
            self.ready = True
            self._pool.connected()

    def _refused(self, failure: Failure) -> None:
        if not self._ended:
            self._close()
            self._pool.refused(failure.value)
            self._again(_RETRY)

    def _silent(self) -> None:
        # The driver tries one host after the other without a time limit, so the next try begins with another host.
        self._pool.target.turn(self._turned)
        self._close()

    def _close(self) -> None:
        if self._connection.pollable() is not None:
            self._connection.close()

    def _has_died(self, failure: Failure) -> bool:
        """Return whether a failure ends the connection, unlike a deadlock, a full disk or a statement's time limit."""
        return not self._ended and (is_broken(self._connection) or is_last_word(failure.value))


async def _pulse(session: Session) -> None:
    await session.ask("SELECT 1", limit=_PULSE)
