"""Scales and machines for people without hardware: ``python -m gateway.simulate scale|machine``.

They speak exactly what the devices in the field speak: the scale A&D's lines with CR LF, the machine pickles with the
separator ``\\o`` that the field's programs send (``--separator nul`` for the documented one).
"""

import argparse
import json
import math
import pickle
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

from twisted.application.internet import ClientService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import LoopingCall, deferLater, react
from twisted.python.failure import Failure

_SEPARATORS: Final = {"legacy": b"\\o", "nul": b"\0"}

#: Seconds that a cylinder stands on the scale, and of these, how long it sways.
_STAND: Final = 12.0
_SWAY: Final = 2.0


class SimulatedScale:
    """The lines of one scale.

    :param weight: of a cylinder, kg; each stands between 0.8 and 1.2 times of it.
    :param noise: standard deviation of a swaying cylinder's weight, kg.
    :param faults: the share of lines that are torn or say overload.
    """

    def __init__(self, chance: random.Random, rate: float, weight: float, noise: float, faults: float) -> None:
        self._chance = chance
        self._rate = rate
        self._weight = weight
        self._noise = noise
        self._faults = faults

    def lines(self) -> Iterator[tuple[str, bytes]]:
        """Endless: what each line is (``ST``, ``US``, ``OL`` or ``torn``) and its bytes."""
        while True:
            standing = self._weight * self._chance.uniform(0.8, 1.2)
            for number in range(max(1, round(_STAND * self._rate))):
                swaying = number < _SWAY * self._rate and number > 0
                shown = standing + (self._chance.gauss(0, self._noise) if swaying else 0.0)
                status = "US" if swaying else "ST"
                line = f"{status} , {shown:+010.2f} _kg\r\n".encode()
                if self._chance.random() < self._faults:
                    if self._chance.random() < 0.5:
                        # As when a plug is loose.
                        status, line = "torn", line[: self._chance.randrange(1, len(line) - 6)] + b"\r\n"
                    else:
                        status, line = "OL", b"OL , +9999999E+19\r\n"
                yield status, line


class SimulatedMachine:
    """The frames of one machine: vibration at 50 Hz with noise, and a slow temperature.

    :param anomalies: the share of messages that a fault detection with a score above its threshold follows.
    """

    def __init__(
        self,
        chance: random.Random,
        name: str,
        sensors: int,
        samples: int,
        noise: float,
        anomalies: float,
        protocol: int,
        separator: bytes,
    ) -> None:
        self._chance = chance
        self._name = name
        stem = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace(" ", "_").lower()
        self._sensors = [f"{stem}_vib{number}" for number in range(1, sensors)] + [f"{stem}_temp"]
        self._samples = samples
        self._noise = noise
        self._anomalies = anomalies
        self._protocol = protocol
        self._separator = separator

    def hello(self) -> bytes:
        """The frame that begins a connection."""
        return self._frame("name", self._name)

    def frames(self) -> Iterator[tuple[str, bytes]]:
        """Endless: the event and the bytes of each frame behind the first."""
        time = 0
        while True:
            update = {}
            for number, sensor in enumerate(self._sensors, 1):
                if sensor.endswith("_temp"):
                    data = [40 + 5 * math.sin(time / 600) + self._chance.gauss(0, 0.05) for _ in range(self._samples)]
                    update[sensor] = {"type": "TEMP", "data": data}
                else:
                    data = [
                        number * math.sin(2 * math.pi * 50 * (time + index / self._samples))
                        + self._chance.gauss(0, self._noise)
                        for index in range(self._samples)
                    ]
                    update[sensor] = {"type": "VIB", "data": data}
            yield "DataUpdate", self._frame("DataUpdate", update)
            if self._chance.random() < self._anomalies:
                score = self._chance.uniform(1.1, 3.0)
                yield "FaultDetect", self._frame("FaultDetect", {"score": score, "threshold": 1.0})
            time += 1

    def _frame(self, event: str, data: Any) -> bytes:
        return pickle.dumps((event, data), self._protocol) + self._separator


class _Speaker(Protocol):
    """Says what it has to say, so many times a second, for as long as it is connected."""

    transport: Any

    def __init__(self, reactor: Any, hello: bytes, words: Iterator[tuple[str, bytes]], rate: float, said: Any) -> None:
        self._hello = hello
        self._words = words
        self._said = said
        self._rate = rate
        self._speaking = LoopingCall.withCount(self._speak)
        self._speaking.clock = reactor

    def connectionMade(self) -> None:
        if self._hello:
            self.transport.write(self._hello)
        self._speaking.start(1 / self._rate)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._speaking.running:
            self._speaking.stop()

    def _speak(self, count: int) -> None:
        # More than one where this process was held up: the rate is kept.
        for _ in range(count):
            kind, data = next(self._words)
            self._said[kind] += 1
            self.transport.write(data)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gateway.simulate", description=__doc__.partition("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--host", default="127.0.0.1", help="of the gateway (default %(default)s)")
    common.add_argument("--connections", type=int, default=1, help="how many to be at once (default %(default)s)")
    common.add_argument("--seconds", type=float, help="how long (default: until it is interrupted)")
    common.add_argument("--seed", type=int, help="for the same values each time")
    scale = kinds.add_parser("scale", parents=[common], help="an A&D FG-150KAL")
    scale.add_argument("--port", type=int, default=4001, help="(default %(default)s)")
    scale.add_argument("--ports", type=int, nargs="+", help="of several scales, each --connections times")
    scale.add_argument("--rate", type=float, default=5.0, help="lines a second (default %(default)s)")
    scale.add_argument("--weight", type=float, default=53.26, help="of a cylinder, kg (default %(default)s)")
    scale.add_argument("--noise", type=float, default=0.5, help="of a swaying cylinder, kg (default %(default)s)")
    scale.add_argument("--faults", type=float, default=0.0, help="share of torn and overload lines (default none)")
    machine = kinds.add_parser("machine", parents=[common], help="a DAQ program")
    machine.add_argument("--port", type=int, default=8082, help="(default %(default)s)")
    machine.add_argument("--rate", type=float, default=1.0, help="messages a second (default %(default)s)")
    machine.add_argument("--name", default="ShotBlast", help="(default %(default)s)")
    machine.add_argument("--sensors", type=int, default=4, help="one of them a temperature (default %(default)s)")
    machine.add_argument("--samples", type=int, default=30, help="of each sensor in a message (default %(default)s)")
    machine.add_argument("--noise", type=float, default=0.1, help="of a vibration (default %(default)s)")
    machine.add_argument("--anomalies", type=float, default=0.0, help="share of messages with one (default none)")
    machine.add_argument("--protocol", type=int, default=4, choices=range(6), help="of pickle (default %(default)s)")
    machine.add_argument(
        "--separator", choices=_SEPARATORS, default="legacy", help="(default %(default)s, the field's)"
    )
    return parser


def _speakers(options: argparse.Namespace) -> Iterator[tuple[int, bytes, Iterator[tuple[str, bytes]]]]:
    """Of each connection: its port, what it says first, and what it says then."""
    ports = getattr(options, "ports", None) or [options.port]
    for number, port in enumerate(ports * options.connections):
        chance = random.Random(None if options.seed is None else options.seed + number)  # noqa: S311 - no secret
        if options.kind == "scale":
            scale = SimulatedScale(chance, options.rate, options.weight, options.noise, options.faults)
            yield port, b"", scale.lines()
        else:
            machine = SimulatedMachine(
                chance,
                options.name if number == 0 else f"{options.name}{number + 1}",
                options.sensors,
                options.samples,
                options.noise,
                options.anomalies,
                options.protocol,
                _SEPARATORS[options.separator],
            )
            yield port, machine.hello(), machine.frames()


async def simulate(reactor: Any, options: argparse.Namespace) -> None:
    """Be what the options say, and in the end say as JSON what was sent."""
    said: Counter[str] = Counter()
    services = []
    for port, hello, words in _speakers(options):

        def speaker(hello: bytes = hello, words: Iterator[tuple[str, bytes]] = words) -> _Speaker:
            return _Speaker(reactor, hello, words, options.rate, said)

        factory = Factory.forProtocol(speaker)
        factory.noisy = False
        services.append(ClientService(HostnameEndpoint(reactor, options.host.encode(), port), factory))
    for service in services:
        service.startService()
    if options.seconds is None:
        await Deferred()
    await deferLater(reactor, options.seconds, lambda: None)
    for service in services:
        await service.stopService()
    sys.stdout.write(json.dumps(said) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = _parser().parse_args(arguments)
    react(lambda reactor: Deferred.fromCoroutine(simulate(reactor, options)))
