"""Simulated scales: their lines in the formats of the field, and their answers to commands."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.protocol import Protocol

#: Seconds that a cylinder stays on the scale, and of these, seconds for which its weight is unstable.
_CYLINDER_SECONDS: Final = 12.0
_UNSTABLE_SECONDS: Final = 2.0

#: Commands for one line: A&D's Q, S and SI, and CAS's W.
_COMMANDS: Final = frozenset({b"Q", b"S", b"SI", b"W"})

#: Maximum bytes of a command without an end.
_MAX_COMMAND: Final = 1024


def _and_line(status: str, weight: float) -> bytes:
    return f"{status} , {weight:+010.2f} _kg\r\n".encode()


def _cas_line(status: str, weight: float) -> bytes:
    return f"{status},GS,1\xe4,{weight:8.2f} kg\r\n".encode("latin-1")


def _csv_line(status: str, weight: float) -> bytes:
    return f"{status},GS,{weight:+09.2f}, kg\r\n".encode()


#: Lines with a weight by format: A&D's standard format, CAS's 22 bytes, and A&D's CSV format.
_LINES: Final[Mapping[str, Callable[[str, float], bytes]]] = {"and": _and_line, "cas22": _cas_line, "csv": _csv_line}

#: Lines of an overload by format.
_OVERLOADS: Final = {
    "and": b"OL , +9999999E+19\r\n",
    "cas22": b"OL,GS,1\xe4,00000000 kg\r\n",
    "csv": b"OL,GS,+9999999E+19, kg\r\n",
}

FORMATS: Final = tuple(_LINES)


@dataclass(frozen=True, slots=True)
class SimulatedScale:
    """Lines of one scale.

    :ivar rate: lines per second.
    :ivar weight: mean weight of a cylinder, in kg; each cylinder has between 0.8 and 1.2 times as much.
    :ivar noise: standard deviation of an unstable weight, in kg.
    :ivar faults: share of lines that are torn or report an overload.
    :ivar format: format of the lines, one of :data:`FORMATS`.
    :ivar address: address that each line begins with, such as ``01``; empty for none.
    """

    generator: random.Random
    rate: float
    weight: float
    noise: float
    faults: float
    format: str = "and"
    address: str = ""

    def lines(self) -> Iterator[tuple[str, bytes]]:
        """Yield lines without end: the kind (``ST``, ``US``, ``OL`` or ``torn``) and the bytes of each."""
        address = f"@{self.address}".encode() if self.address else b""
        for kind, line in self._lines():
            yield kind, address + line

    def _lines(self) -> Iterator[tuple[str, bytes]]:
        form = _LINES[self.format]
        while True:
            weight = self.weight * self.generator.uniform(0.8, 1.2)
            for number in range(max(1, round(_CYLINDER_SECONDS * self.rate))):
                is_unstable = number < _UNSTABLE_SECONDS * self.rate and number > 0
                shown = weight + (self.generator.gauss(0, self.noise) if is_unstable else 0.0)
                status = "US" if is_unstable else "ST"
                line = form(status, shown)
                if self.generator.random() < self.faults:
                    if self.generator.random() < 0.5:
                        # A loose plug tears lines like this.
                        status, line = "torn", line[: self.generator.randrange(1, len(line) - 6)] + b"\r\n"
                    else:
                        status, line = "OL", _OVERLOADS[self.format]
                yield status, line


class AnsweringScale(Protocol):
    """One or several scales on a line that answer only when asked.

    :param command: command that asks for a line, beside those of the makers.
    :param scales: lines of each scale by its address; one with an empty address answers commands without an address.
    :param counts: number of sent lines by kind.
    """

    transport: Any

    def __init__(
        self, command: bytes, scales: Mapping[bytes, Iterator[tuple[str, bytes]]], counts: Counter[str]
    ) -> None:
        self._commands = _COMMANDS | {command.strip()}
        self._scales = scales
        self._counts = counts
        self._rest = b""

    def dataReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        self._rest = self._rest[-_MAX_COMMAND:]
        for line in lines:
            if line.strip():
                self._answer(line.strip())

    def _answer(self, command: bytes) -> None:
        address = b""
        if command.startswith(b"@"):
            address, command = command[1:3], command[3:]
        lines = self._scales.get(address)
        if lines is None:
            # Another scale of the line is meant.
            return
        if command not in self._commands:
            self.transport.write(b"?\r\n")
            return
        kind, line = next(lines)
        self._counts[kind] += 1
        self.transport.write(line)
