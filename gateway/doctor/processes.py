"""Processes that hold a port or a lock, as ``/proc`` shows them."""

import contextlib
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")

#: The state of a listening socket in ``/proc/net/tcp``.
_LISTENING: Final = "0A"


def holders_of_port(number: int) -> frozenset[int]:
    """Return the processes that listen on a TCP port; without those that this user may not see."""
    sockets = {f"socket:[{inode}]" for inode, _ in _listening_sockets(number)}
    return frozenset(pid for pid in _pids() if sockets and sockets & set(_open_files(pid)))


def users_of_port(number: int) -> list[str]:
    """Return the users whose processes listen on a TCP port."""
    return sorted({user_name(uid) for _, uid in _listening_sockets(number)})


def user_name(uid: int) -> str:
    """Return the name of a user, or the number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def holders_of_lock(path: str) -> frozenset[int]:
    """Return the processes that hold a lock on a file or a directory."""
    found = set()
    with contextlib.suppress(OSError):
        inode = os.stat(path).st_ino
        for line in (_PROC / "locks").read_text("ascii").splitlines():
            # 1: FLOCK  ADVISORY  WRITE 4242 08:01:131074 0 EOF
            words = line.split()
            if "->" not in words and len(words) > 5 and words[5].rpartition(":")[2] == str(inode):
                found.add(int(words[4]))
    return frozenset(found - {-1})


def described(pids: frozenset[int]) -> str:
    """Return processes as text, without their arguments, which may hold secrets."""
    names = []
    for pid in sorted(pids):
        try:
            name = (_PROC / str(pid) / "comm").read_text("utf-8", "replace").strip()
        except OSError:
            name = "ended"
        names.append(f"process {pid} ({name})")
    return " and ".join(names)


def is_gateway(pid: int) -> bool:
    """Return whether a process was started as ``twistd cynow-gateway``."""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"cynow-gateway" in words


def max_open_files(pid: int) -> int | None:
    """Return the limit of open files of a process; ``None`` if it has none or is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = (_PROC / str(pid) / "limits").read_text("ascii")
        return int(text.partition("Max open files")[2].split()[0])
    return None


def _listening_sockets(number: int) -> Iterator[tuple[str, int]]:
    """Yield the inode and the user of each socket that listens on a port."""
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / "net" / name).read_text("ascii").splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTENING and int(words[1].rpartition(":")[2], 16) == number:
                    yield words[9], int(words[7])


def _pids() -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield from (int(name) for name in os.listdir(_PROC) if name.isdigit())


def _open_files(pid: int) -> Iterator[str]:
    # The process may have ended, or belong to another user.
    with contextlib.suppress(OSError):
        for file in os.scandir(_PROC / str(pid) / "fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(file.path)
