"""Paths of the daemon, as they are after ``twistd`` has changed its directories and its user."""

import contextlib
import errno
import os
import pwd
from collections.abc import Iterator, Mapping
from typing import Final

#: Beginning of a path of the configuration that names a credential of systemd (``LoadCredential=``).
CREDENTIALS: Final = "$CREDENTIALS_DIRECTORY/"


def working_directory(chroot: str | None, rundir: str) -> str:
    """Return the base of relative paths after ``twistd`` has entered its ``--chroot`` and its ``--rundir``."""
    if chroot is not None and (rundir == "." or os.path.isabs(rundir)):
        return "/" if rundir == "." else rundir
    return os.path.realpath(rundir)


def expand_credentials(path: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return a path with the directory of systemd's credentials in place of ``$CREDENTIALS_DIRECTORY``.

    :raises ValueError: the path begins with it, but the variable is not set.
    """
    if not path.startswith(CREDENTIALS):
        return path
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise ValueError(
            "$CREDENTIALS_DIRECTORY is not set; systemd sets it for a unit with LoadCredential=; elsewhere, set it to"
            " the directory of the files"
        )
    return os.path.join(directory, path.removeprefix(CREDENTIALS))


@contextlib.contextmanager
def effective_user(uid: int | None, gid: int | None) -> Iterator[None]:
    """Act, within a block, as the user that ``twistd`` will become, unless it already has."""
    if uid is None or os.geteuid() != 0:
        yield
        return
    group = os.getegid()
    os.setegid(pwd.getpwuid(uid).pw_gid if gid is None else gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def sync_folder(path: str) -> None:
    """Write the entries of a folder to the disk, so that a file that was renamed there has its name after a power cut.

    :raises OSError: the disk refuses.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def explain_unusable(error: OSError, path: str) -> str:
    """Return why a directory cannot be used, and the remedy.

    :param path: the directory, if the error names none.
    """
    where = error.filename or path
    if error.errno not in {errno.EACCES, errno.EPERM}:
        return f"{where}: {error.strerror}"
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return f"{where}: the user {user} has no right to write there ({error.strerror}); give it to {user} (chown)"
