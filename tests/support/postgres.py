"""A real PostgreSQL server of a test's own."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg2
from twisted.trial.unittest import TestCase

from tests.conftest import missing
from tests.support.daemon import PATIENCE, free_ports, until

#: Where Debian keeps what is not in the PATH, the newest first.
_DEBIAN = Path("/usr/lib/postgresql")


def binaries() -> Path:
    """The folder with ``initdb`` and the rest."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = [folder for folder in _DEBIAN.glob("*/bin") if (folder / "initdb").exists()]
    return max(versions, key=lambda folder: float(folder.parent.name), default=None) or missing("PostgreSQL's initdb")


class Server:
    """A server on a free port of the loopback, with its files in memory where there is room for that.

    :param on_disk: its files are on the disk, and it waits for that.

    :ivar url: of its database ``postgres``; the password is no secret, and nothing may log it.
    """

    password = "geheim%2Fwort"

    def __init__(self, bin_folder: Path | None = None, *, on_disk: bool = False) -> None:
        self._bin = bin_folder or binaries()
        # PostgreSQL refuses to run as root.
        self._user = _other_user() if os.geteuid() == 0 else None
        memory = "/dev/shm" if not on_disk and os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="cynow-postgres-", dir=memory))
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        (self.port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped: list[int] = []
        data = self.folder / "data"
        self._run("initdb", "-D", str(data), "-A", "trust", "-U", "cynow", "-E", "UTF8", "--locale=C", "--no-sync")
        settings = {
            "listen_addresses": "'127.0.0.1'",
            "port": self.port,
            "unix_socket_directories": f"'{self.folder}'",
            # Only the whole machine's end could take what was written.
            "fsync": "off",
            "shared_buffers": "'32MB'",
            "max_connections": 60,
        }
        with (data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str, user: str = "cynow") -> str:
        return f"postgresql://{user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self.folder / "data")],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **self._as_user(),
            )
        until(self._answers, "PostgreSQL answers")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"PostgreSQL has ended:\n{(self.folder / 'log.txt').read_text('utf-8')}")
        with contextlib.suppress(psycopg2.OperationalError):
            self.sql("SELECT 1")
            return True
        return False

    def stop(self, how: str = "immediate") -> None:
        """``pg_ctl stop``: ``immediate`` is as a crash, ``fast`` ends sessions, and both wait for the end."""
        self.resume()
        if self._process is not None:
            self.signal_stop(how)
            self._process.wait(PATIENCE)
            self._process = None

    def signal_stop(self, how: str = "immediate") -> None:
        """Begin to stop it, and do not wait."""
        assert self._process is not None
        self._process.send_signal({"immediate": signal.SIGQUIT, "fast": signal.SIGINT}[how])

    def pause(self) -> None:
        """Let it fall silent: its connections stay, and nobody answers."""
        assert self._process is not None
        # First who could start more of them.
        os.kill(self._process.pid, signal.SIGSTOP)
        self._stopped = [self._process.pid, *_children(self._process.pid)]
        for pid in self._stopped[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._stopped = []

    def remove(self) -> None:
        """It is gone afterwards, and so are its files."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def sql(self, statement: str, values: Sequence[Any] | None = None, database: str = "postgres") -> list[Any]:
        """Ask it by other means than the gateway's."""
        with contextlib.closing(psycopg2.connect(self.url_of(database), connect_timeout=int(PATIENCE))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, values)
                return [] if cursor.description is None else cursor.fetchall()

    def empty(self) -> None:
        """Forget everything that a test has made."""
        self.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC")

    def dump(self, table: str) -> list[Any]:
        """How a table is defined, to its last index and constraint, and what is in it."""
        return [
            self.sql(
                "SELECT * FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position", [table]
            ),
            self.sql("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = %s ORDER BY 1", [table]),
            self.sql(
                "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass ORDER BY 1",
                [table],
            ),
            self.sql("SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass ORDER BY 1", [table]),
            self.sql(f"SELECT * FROM {table} ORDER BY 1"),
        ]

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            capture_output=True,
            check=False,
            cwd=self.folder,
            timeout=PATIENCE,
            **self._as_user(),
        )
        assert done.returncode == 0, done.stderr.decode()
        output: str = done.stdout.decode()
        return output

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        user = pwd.getpwnam(self._user)
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _other_user() -> str:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return missing("a user that PostgreSQL may run as")


def _children(pid: int) -> list[int]:
    found: list[int] = []
    end = time.monotonic() + 5
    while time.monotonic() < end:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
        children = [int(word) for word in text.split()]
        if children == found:
            break
        found = children
    return found


class ServerCase(TestCase):
    """Tests with a server of their own, of which each finds an empty database."""

    server: Server

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Server()
        cls.server.start()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.remove()

    def setUp(self) -> None:
        self.server.empty()
