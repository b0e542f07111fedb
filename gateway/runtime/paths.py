"""Paths of the daemon, as they are after ``twistd`` has changed its directories and its user."""

import contextlib
import errno
import os
import pwd
from collections.abc import Iterator


def working_directory(chroot: str | None, rundir: str) -> str:
    """Return the base of relative paths after ``twistd`` has entered its ``--chroot`` and its ``--rundir``."""
    if chroot is not None and (rundir == "." or os.path.isabs(rundir)):
        return "/" if rundir == "." else rundir
    return os.path.realpath(rundir)


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
