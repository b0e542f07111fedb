"""The life of the daemon: what starts in which order, and what ends in which."""

import contextlib
import os
import resource
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, NoReturn, Protocol, TypeAlias

import sdnotify
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized

from gateway.runtime.listener import Listener, StartError
from gateway.runtime.logs import BufferingObserver
from gateway.runtime.signals import Signals

log = Logger()


#: Seconds by which systemd is repeatedly asked to extend the start timeout during the recovery.
_STARTING: Final = 30


#: Seconds for requests in flight at shutdown, of the five that the whole shutdown may take.
_PATIENCE: Final = 2.0


#: Switch interval of threads, in seconds. The reactor gives up the interpreter lock with each send: with Python's
#: default of 5 ms, a hundred answers take half a second while another thread encodes.
_SWITCH_SECONDS: Final = 0.0005


#: Seconds after which the process exits even if something hangs: each step of the shutdown, and Python's own, has a
#: bound, but their sum has none.
_LATEST: Final = 4.7


#: Seconds between reports of log lines that were left out.
_REPORTING: Final = 10.0


#: Umask of new files: others have no access, and the group may not write.
_UMASK: Final = 0o027


#: A step of the shutdown: its name in the log, its function, and the seconds that it may take.
Step: TypeAlias = tuple[str, Callable[[], Coroutine[Any, Any, None]], float]


class Closable(Protocol):
    """A factory that can close its connections."""

    def close(self) -> None:
        """Close them all."""


class Gateway(Service):
    """The whole gateway, from start to shutdown.

    :param listeners: endpoints; their ports are bound first, because ports below 1024 may need privileges that are
        dropped afterwards.
    :param open_store: locks the directories and opens the store, after the process has become a daemon; raises
        :class:`StartError`.
    :param recover: recovers the state after that, while new connections are queued.
    :param parts: services that are started in this order after the recovery, and stopped in the reverse order.
    :param factories: factories whose connections are closed before requests in flight are waited for.
    :param drained: returns a Deferred that fires when no request is in flight.
    :param finish: steps of the shutdown after that, in this order.
    :param in_foreground: whether to write an error at the start to stderr; otherwise ``twistd`` reports it to its
        parent process.
    :param open_log: opens the log's files, once the process runs as its final user; raises :class:`StartError`.
    :param reopen_log: opens the log's file again by its name; raises :class:`OSError`.
    :param report_log: reports how many log lines were left out; at the end, also for periods that have not ended.
    :param umask: ``twistd --umask``; ``None`` if the operator did not set it.
    """

    name = "cynow-gateway"

    def __init__(
        self,
        reactor: Any,
        *,
        listeners: Sequence[Listener],
        open_store: Callable[[], None],
        recover: Callable[[], Coroutine[Any, Any, None]],
        parts: Sequence[IService],
        factories: Sequence[Closable],
        drained: Callable[[], "Deferred[None]"],
        finish: Sequence[Step],
        observer: BufferingObserver,
        in_foreground: bool,
        signals: Signals,
        open_log: Callable[[], None],
        reopen_log: Callable[[], None],
        report_log: Callable[[bool], None],
        umask: int | None,
    ) -> None:
        self._reactor = reactor
        self._listeners = listeners
        self._open_store = open_store
        self._recover = recover
        self._parts = parts
        self._factories = factories
        self._drained = drained
        self._finish = finish
        self._observer = observer
        self._in_foreground = in_foreground
        self._signals = signals
        self._open_log = open_log
        self._reopen_log = reopen_log
        self._report_log = report_log
        self._umask = umask
        self._is_open = False
        self._is_stopping = False
        self._systemd = sdnotify.SystemdNotifier()
        self._started: list[IService] = []
        self._recovering = LoopingCall(self._say_starting)
        self._recovering.clock = reactor
        self._watchdog = LoopingCall(self._systemd.notify, "WATCHDOG=1")
        self._watchdog.clock = reactor
        self._reporting = LoopingCall(report_log, False)
        self._reporting.clock = reactor

    def setServiceParent(self, parent: Any) -> None:
        # twistd asks the application for its log observer, and this is the only place where a service meets it.
        if isinstance(parent, Componentized) and parent.getComponent(ILogObserver) is None:
            parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        if self._umask is None:
            # Keep a stricter mask that the operator has set.
            os.umask(os.umask(_UMASK) | _UMASK)
        try:
            for listener in self._listeners:
                listener.listen()
        except StartError as error:
            self._give_up(error)
        super().privilegedStartService()

    def startService(self) -> None:
        self._signals.hold()
        if not self._signals.is_ending:
            self._open()
        super().startService()
        self._observer.release()
        self._reactor.callWhenRunning(self._run)

    def _open(self) -> None:
        _allow_many_files()
        sys.setswitchinterval(_SWITCH_SECONDS)
        try:
            self._open_log()
            self._open_store()
        except StartError as error:
            self._give_up(error)
        except Exception:
            # This is a bug in the gateway: its traceback must not be held back.
            self._observer.release()
            raise
        self._is_open = True

    def _give_up(self, error: StartError) -> NoReturn:
        if self._in_foreground:
            # Standard error itself: by now sys.stderr is a log.
            (sys.__stderr__ or sys.stderr).write(f"cynow-gateway: {error}\n")
            raise SystemExit(1)
        with contextlib.suppress(StartError):
            # The log's files may themselves be the problem.
            self._open_log()
        self._observer.release()
        log.critical("{error}", error=error)
        raise error from None

    def _run(self) -> None:
        self._signals.take_over(
            partial(self._reactor.callFromThread, self._stop_reactor),
            partial(self._reactor.callFromThread, self._hang_up),
        )
        self._reactor.addSystemEventTrigger("after", "shutdown", self._signals.ignore)
        if self._signals.is_ending:
            return
        watchdog = os.environ.get("WATCHDOG_USEC", "")
        if watchdog.isdigit():
            self._watchdog.start(int(watchdog) / 2e6)
        self._recovering.start(_STARTING / 2)
        self._reporting.start(_REPORTING, now=False)
        Deferred.fromCoroutine(self._begin())

    def _hang_up(self) -> None:
        log.info("SIGHUP: the configuration is not read again; restart the gateway to apply changes")
        try:
            self._reopen_log()
        except OSError as error:
            log.warn(
                "logger.path: cannot open the log file again: {error}; going on in the old one",
                error=f"{error.filename}: {error.strerror}",
            )
        else:
            log.info("SIGHUP: the log file was opened again")

    async def _begin(self) -> None:
        with _logged("the recovery"):
            await self._recover()
        self._recovering.stop()
        if not self.running:
            return
        for part in self._parts:
            part.startService()
            self._started.append(part)
        for listener in self._listeners:
            listener.accept()
        self._systemd.notify("READY=1")
        log.info("the gateway is ready")

    def _say_starting(self) -> None:
        self._systemd.notify(f"EXTEND_TIMEOUT_USEC={_STARTING * 1_000_000}")

    def _stop_reactor(self) -> None:
        # The reactor goes on running until its next iteration, and a second signal may come before.
        if self._reactor.running and self.running and not self._is_stopping:
            self._is_stopping = True
            last_resort = threading.Timer(_LATEST, self._leave)
            last_resort.daemon = True
            last_resort.start()
            self._reactor.stop()

    def _leave(self) -> None:
        log.warn("the end took longer than {seconds} s: leaving what still hangs", seconds=_LATEST)
        os._exit(0)

    def stopService(self) -> "Deferred[None]":
        super().stopService()
        return Deferred.fromCoroutine(self._end())

    async def _end(self) -> None:
        log.info("the gateway is stopping")
        self._systemd.notify("STOPPING=1")
        for repeated in (self._watchdog, self._reporting):
            if repeated.running:
                repeated.stop()
        stopped = [done for done in (listener.stop() for listener in self._listeners) if done is not None]
        await gatherResults(stopped, consumeErrors=True)
        if self._is_open:
            await self._end_work()
        self._report_log(True)
        log.info("the gateway has stopped")

    async def _end_work(self) -> None:
        for factory in self._factories:
            factory.close()
        await self._at_most("requests in flight", self._drained(), _PATIENCE)
        for part in reversed(self._started):
            with _logged(f"stopping {part.name}"):
                await maybeDeferred(part.stopService)
        for what, step, seconds in self._finish:
            await self._at_most(what, Deferred.fromCoroutine(step()), seconds)

    async def _at_most(self, what: str, work: "Deferred[None]", seconds: float) -> None:
        work.addTimeout(seconds, self._reactor)
        with _logged(what):
            await work


@contextlib.contextmanager
def _logged(what: str) -> Any:
    """Log an exception within a block, so that one failing step does not stop the others."""
    try:
        yield
    except TookTooLong:
        log.warn("{what}: not done in time, going on", what=what)
    except Exception:
        log.failure("{what} failed", what=what)


def _allow_many_files() -> None:
    """Raise the limit of open files to its maximum: each connection needs one, and the usual limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
