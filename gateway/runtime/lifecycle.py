"""Life cycle of the daemon: the order of its start and of its shutdown."""

import contextlib
import os
import resource
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn, Protocol, TypeAlias

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized

from gateway import __version__
from gateway.runtime.listener import Listener, StartError
from gateway.runtime.logs import BufferingObserver
from gateway.runtime.process import Process
from gateway.runtime.sd_notify import SystemdNotifier

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


@dataclass(frozen=True, slots=True)
class Stages:
    """Parts of the gateway, by the order in which they start and stop.

    :ivar listeners: returns the current endpoints; their ports are bound first, because ports below 1024 may need
        privileges that are dropped afterwards.
    :ivar open: locks the directories and opens the store, after the process has become a daemon; raises
        :class:`StartError`.
    :ivar recover: recovers the state after that, while new connections are queued. Its argument is a function that
        returns whether the gateway is still running.
    :ivar begin: called after the recovery, before the parts are started.
    :ivar parts: services that are started in this order after the recovery, and stopped in the reverse order.
    :ivar factories: factories whose connections are closed before requests in flight are waited for.
    :ivar drained: returns a Deferred that fires when no request is in flight.
    :ivar reload: reads the configuration again and changes the parts, for SIGHUP.
    :ivar finish: steps of the shutdown after that, in this order.
    """

    listeners: Callable[[], Sequence[Listener]]
    open: Callable[[], None]
    recover: Callable[[Callable[[], bool]], Coroutine[Any, Any, None]]
    begin: Callable[[], None]
    parts: Sequence[IService]
    factories: Sequence[Closable]
    drained: Callable[[], "Deferred[None]"]
    reload: Callable[[], Coroutine[Any, Any, None]]
    finish: Sequence[Step]


@dataclass(frozen=True, slots=True)
class LogControl:
    """Control of the daemon's log.

    :ivar observer: observer that buffers what is logged before the start has succeeded.
    :ivar open: opens the log's files, once the process runs as its final user; raises :class:`StartError`.
    :ivar reopen: opens the log's file again by its name; raises :class:`OSError`.
    :ivar report: reports how many log lines were left out; with ``True``, also for periods that have not ended.
    """

    observer: BufferingObserver
    open: Callable[[], None]
    reopen: Callable[[], None]
    report: Callable[[bool], None]


class Gateway(Service):
    """The whole gateway, from start to shutdown."""

    name = "cynow-gateway"

    def __init__(self, reactor: Any, stages: Stages, process: Process, log_control: LogControl) -> None:
        self._reactor = reactor
        self._stages = stages
        self._process = process
        self._signals = process.signals
        self._log = log_control
        self._is_open = False
        self._is_stopping = False
        self._is_ready = False
        self._is_reloading = False
        self._reloads_wanted = False
        self._systemd = SystemdNotifier()
        self._started: list[IService] = []
        self._recovering = LoopingCall(self._extend_start_timeout)
        self._recovering.clock = reactor
        self._watchdog = LoopingCall(self._systemd.notify, "WATCHDOG=1")
        self._watchdog.clock = reactor
        self._reporting = LoopingCall(log_control.report, False)
        self._reporting.clock = reactor

    def setServiceParent(self, parent: Any) -> None:
        # twistd asks the application for its log observer, and this is the only place where a service meets it.
        if isinstance(parent, Componentized) and parent.getComponent(ILogObserver) is None:
            parent.setComponent(ILogObserver, self._log.observer)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        if self._process.umask is None:
            # Keep a stricter mask that the operator has set.
            os.umask(os.umask(_UMASK) | _UMASK)
        try:
            for listener in self._stages.listeners():
                listener.listen()
        except StartError as error:
            self._give_up(error)
        super().privilegedStartService()

    def startService(self) -> None:
        self._signals.hold()
        log.info("cynow-gateway {version} is starting", version=__version__)
        if not self._signals.is_ending:
            self._open()
        super().startService()
        self._log.observer.release()
        self._reactor.callWhenRunning(self._run)

    def _open(self) -> None:
        _allow_many_files()
        sys.setswitchinterval(_SWITCH_SECONDS)
        try:
            self._log.open()
            self._stages.open()
        except StartError as error:
            self._give_up(error)
        except Exception:
            # This is a bug in the gateway: its traceback must not be held back.
            self._log.observer.release()
            raise
        self._is_open = True

    def _give_up(self, error: StartError) -> NoReturn:
        if self._process.in_foreground:
            # Standard error itself: by now sys.stderr is a log.
            (sys.__stderr__ or sys.stderr).write(f"cynow-gateway: {error}\n")
            raise SystemExit(1)
        with contextlib.suppress(StartError):
            # The log's files may themselves be the problem.
            self._log.open()
        self._log.observer.release()
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
        """Handle SIGHUP: reopen the log, and reload the configuration once the start and an earlier reload are done."""
        self._reopen_log()
        self._reloads_wanted = True
        if self._is_ready and not self._is_reloading:
            Deferred.fromCoroutine(self._reload())

    async def _reload(self) -> None:
        self._is_reloading = True
        while self._reloads_wanted and self.running and not self._is_stopping:
            self._reloads_wanted = False
            self._systemd.reloading()
            try:
                await self._stages.reload()
            except Exception:
                # The threads that read the files end with the gateway.
                if not self._is_stopping:
                    log.failure("the reload failed")
            self._systemd.ready()
        self._is_reloading = False

    def _reopen_log(self) -> None:
        try:
            self._log.reopen()
        except OSError as error:
            log.warn(
                "logger.path: cannot reopen the log file: {error}; continuing in the old file",
                error=f"{error.filename}: {error.strerror}",
            )
        else:
            log.info("SIGHUP: reopened the log file")

    async def _begin(self) -> None:
        with _logged("the recovery"):
            await self._stages.recover(lambda: bool(self.running))
        self._recovering.stop()
        if not self.running:
            return
        self._stages.begin()
        for part in self._stages.parts:
            part.startService()
            self._started.append(part)
        for listener in self._stages.listeners():
            listener.accept()
        self._systemd.ready()
        log.info("the gateway is ready")
        self._is_ready = True
        if self._reloads_wanted:
            await self._reload()

    def _extend_start_timeout(self) -> None:
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
        log.warn("the shutdown took longer than {seconds} s; exiting now", seconds=_LATEST)
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
        stopped = [done for done in (listener.stop() for listener in self._stages.listeners()) if done is not None]
        await gatherResults(stopped, consumeErrors=True)
        if self._is_open:
            await self._end_work()
        self._log.report(True)
        log.info("the gateway has stopped")

    async def _end_work(self) -> None:
        for factory in self._stages.factories:
            factory.close()
        await self._run_within("requests in flight", self._stages.drained(), _PATIENCE)
        for part in reversed(self._started):
            with _logged(f"stopping {part.name}"):
                await maybeDeferred(part.stopService)
        for what, step, seconds in self._stages.finish:
            await self._run_within(what, Deferred.fromCoroutine(step()), seconds)

    async def _run_within(self, what: str, work: "Deferred[None]", seconds: float) -> None:
        work.addTimeout(seconds, self._reactor)
        with _logged(what):
            await work


@contextlib.contextmanager
def _logged(what: str) -> Any:
    """Log an exception within a block, so that one failing step does not stop the others."""
    try:
        yield
    except TookTooLong:
        log.warn("{what}: not finished in time; continuing the shutdown", what=what)
    except Exception:
        log.failure("{what} failed", what=what)


def _allow_many_files() -> None:
    """Raise the limit of open files to its maximum: each connection needs one, and the usual limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
