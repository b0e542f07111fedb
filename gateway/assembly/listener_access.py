"""Builder of the admission and the TLS of all listeners."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from twisted.logger import Logger

from gateway.assembly.parts import Paths, Runtime
from gateway.config.listeners import ListenerSettings, listeners_of, tls_files_of
from gateway.config.settings import Settings
from gateway.runtime.admission import Admission, AdmissionRules, AdmittingFactory
from gateway.runtime.certificates import Certificates
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.listener import StartError
from gateway.runtime.networks import NetworkSet
from gateway.runtime.tls_files import TlsError, TlsFiles

if TYPE_CHECKING:
    from gateway.runtime.tls_layer import Credentials


#: Listener of a scale that is not in force yet.
_NEW_SCALE: Final = ListenerSettings("scale", (), None)


class ListenerAccess:
    """Admission and TLS of all listeners, by the configuration keys of their sections.

    :meth:`prepare` changes both.
    """

    def __init__(self, runtime: Runtime, settings: Settings, paths: Paths) -> None:
        self._counters = runtime.counters
        self._folder = paths.folder
        self._settings = settings
        self._listeners = listeners_of(settings)
        self._log = LimitedLog(Logger("gateway.runtime.admission"), runtime.clock, runtime.counters)
        self.certificates = Certificates(runtime.reactor, runtime.clock, runtime.counters)
        self._admissions: dict[str, Admission] = {}
        self._factories: dict[str, AdmittingFactory] = {}

    def admitting(
        self,
        key: str,
        factory: Any,
        refuse: Callable[[Any, str], Any] | None = None,
        plain_answer: Callable[[], bytes] | None = None,
    ) -> AdmittingFactory:
        """Return a factory that admits connections to a listener, with TLS if it is configured.

        The listener of a scale that a reload adds gets its rules and its TLS by the rest of that reload, before it
        accepts a connection.

        :param key: configuration key of the listener's section; a second call with the same factory returns the same.
        :param refuse: see :class:`AdmittingFactory`.
        :param plain_answer: see :class:`TlsContext`.
        """
        found = self._factories.get(key)
        if found is None or found.factory is not factory:
            listener = self._listeners.get(key, _NEW_SCALE)
            rules = _rules(self._settings, listener)
            admission = self._admissions[key] = Admission(listener.kind, key, self._counters, self._log, rules)
            protocols = (b"http/1.1",) if listener.kind == "http" else ()
            tls = self.certificates.add(key, protocols, lambda: admission.room)
            tls.plain_answer = plain_answer
            found = self._factories[key] = AdmittingFactory(factory, admission, tls, refuse)
        return found

    def open(self) -> None:
        """Read the certificates at the start of the daemon.

        :raises StartError: a file cannot be used.
        """
        self.certificates.open(self._files(self._settings))

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Read the certificates of new settings, and return the function that puts all of them into force.

        Connections of addresses that are no longer allowed are closed then.

        :raises StartError: a file cannot be used.
        """
        try:
            credentials = self.certificates.load(self._files(settings))
        except TlsError as error:
            raise StartError(str(error)) from error
        return partial(self._update, settings, credentials)

    def _update(self, settings: Settings, credentials: "Mapping[str, Credentials | None]") -> None:
        before = self._listeners
        self._settings, self._listeners = settings, listeners_of(settings)
        for key in self._admissions.keys() - self._listeners.keys():
            admission, factory = self._admissions.pop(key), self._factories.pop(key).factory
            self.certificates.remove(key)
            if key in before:
                self._hand_over(factory, admission)
        self.certificates.use(credentials)
        for key, listener in self._listeners.items():
            if key in self._admissions:
                self._admissions[key].update(_rules(settings, listener))

    def _hand_over(self, factory: Any, admission: Admission) -> None:
        """Give the open connections of a listener to the one that its factory has now, if it has one.

        The only scale keeps its connections when ``scale`` becomes an entry of ``scales``, or the other way round.
        """
        for key, found in self._factories.items():
            if found.factory is factory:
                self._admissions[key].adopt(admission)

    def _files(self, settings: Settings) -> dict[str, TlsFiles | None]:
        """Return the files of all listeners, by key."""
        return {
            key: None if listener.tls is None else tls_files_of(listener.tls, self._folder)
            for key, listener in listeners_of(settings).items()
        }


def _rules(settings: Settings, listener: ListenerSettings) -> AdmissionRules:
    limits = settings.limits
    return AdmissionRules(
        NetworkSet(listener.allow), NetworkSet(listener.proxies), limits.connections_per_address, limits.connections
    )
