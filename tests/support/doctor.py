"""Plants that ``cynow-gateway doctor`` examines, and the devices in them."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.support.daemon import free_ports

SCRIPT = Path(sys.executable).with_name("cynow-gateway")

LINE = b"ST , +000053.26 _kg\r\n"
SHOWN = "'ST , +000053.26 _kg' = ST 53.26 kg gross"


class Examined:
    """Output of one run.

    :ivar lines: lines of findings, without the column of levels.
    """

    def __init__(self, done: "subprocess.CompletedProcess[str]") -> None:
        self.status = done.returncode
        self.text = done.stdout
        assert done.stderr == ""
        *findings, self.summary = done.stdout.splitlines()
        self.findings = [line.split(None, 2) for line in findings]

    def problems(self) -> list[str]:
        """Return the lines that are not ok, with single blanks between the columns."""
        return [re.sub(" +", " ", " ".join(words)) for words in self.findings if words[0] != "ok"]

    def of(self, subject: str) -> list[str]:
        """Return the levels and texts of the findings about a subject."""
        lines = [(words[0], " ".join(words[1:])) for words in self.findings]
        return [f"{level} {line.removeprefix(subject).strip()}" for level, line in lines if line.startswith(subject)]


class Plant:
    """A folder with a configuration, in which the doctor runs."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.port, self.daq_port, self.scale_port = free_ports(3)
        self.tree: dict[str, Any] = {
            "server": {"port": self.port, "tcp_port": self.daq_port},
            "scale": {"port": self.scale_port},
            "timezone": "Asia/Seoul",
            **settings,
        }
        self.config = folder / "plant.yaml"
        programs = folder / "bin"
        programs.mkdir()
        # The clock of a machine that runs tests may not be synchronised.
        (programs / "timedatectl").write_text("#!/bin/sh\necho yes\n", "ascii")
        (programs / "timedatectl").chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}

    def command(self, *arguments: str, prefix: tuple[str, ...] = ()) -> list[str]:
        self.config.write_text(yaml.safe_dump(self.tree), "utf-8")
        return [*prefix, str(SCRIPT), "doctor", "--config", str(self.config), *arguments]

    def examine(self, *arguments: str, prefix: tuple[str, ...] = ()) -> Examined:
        arguments = arguments or ("--listen-seconds", "0")
        return Examined(
            subprocess.run(
                self.command(*arguments, prefix=prefix),
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                check=False,
            )
        )


@contextlib.contextmanager
def converter(*lines: bytes) -> Iterator[int]:
    """Run a serial-to-Ethernet converter within a block, which sends lines to each client and then is silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        clients = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    clients.append(client)
                    client.sendall(b"".join(lines))

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        # Closing alone would leave the thread in accept().
        server.shutdown(socket.SHUT_RDWR)
        for client in clients:
            client.close()


@contextlib.contextmanager
def dialling_scale(port: int, data: bytes = LINE * 3) -> Iterator[None]:
    """Run a scale within a block, which dials a port until somebody listens there."""
    has_ended = threading.Event()

    def dial() -> None:
        while not has_ended.wait(0.02):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(data)
                has_ended.wait()

    thread = threading.Thread(target=dial)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()
