"""Options of ``twistd`` that matter after the process has become a daemon."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from gateway.runtime.paths import working_directory
from gateway.runtime.signals import Signals

#: Modules that are otherwise imported after ``twistd`` has changed its user or its root directory: the new user may
#: have no right to read them, or may not find them.
_IMPORTED_LATE: Final = (
    "encodings.idna",
    "gateway.store.postgres.schema",
    "gateway.store.spool.schema",
    "gateway.store.sqlite.schema",
    "gateway.timeseries.numpy_sums",
    "idna",
    "importlib.readers",
    "importlib.resources.readers",
)


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the daemon.

    :ivar folder: base of relative paths, after ``--chroot`` and ``--rundir``.
    :ivar signals: signal handling since the options were read.
    :ivar in_foreground: whether an error at the start is written to stderr; otherwise ``twistd`` reports it to its
        parent process.
    :ivar uid: user that ``twistd`` will become; ``None`` for no change.
    :ivar gid: group that ``twistd`` will become; ``None`` for no change.
    :ivar changes_root: whether ``twistd`` changes the root directory.
    :ivar umask: ``twistd --umask``; ``None`` if the operator did not set it.
    """

    folder: str
    signals: Signals
    in_foreground: bool = True
    uid: int | None = None
    gid: int | None = None
    changes_root: bool = False
    umask: int | None = None

    @classmethod
    def of(cls, twistd: Mapping[str, Any] | None, signals: Signals) -> "Process":
        """Return the process that the options of ``twistd`` describe.

        :param twistd: options of ``twistd``; ``None`` without it.
        """
        options: Mapping[str, Any] = twistd or {}
        return cls(
            folder=working_directory(options.get("chroot"), options.get("rundir") or "."),
            signals=signals,
            in_foreground=bool(options.get("nodaemon", True)),
            uid=options.get("uid"),
            gid=options.get("gid"),
            changes_root=options.get("chroot") is not None,
            umask=options.get("umask"),
        )

    @property
    def changes_identity(self) -> bool:
        """True if modules that are imported later may be unreadable, or not be found."""
        return self.uid is not None or self.gid is not None or self.changes_root


def import_late_modules(further: Iterable[str]) -> None:
    """Import the modules that would otherwise be imported after a change of the user or the root directory.

    :param further: modules that only this configuration needs.
    """
    for module in (*_IMPORTED_LATE, *further):
        import_module(module)
