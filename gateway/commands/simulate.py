"""Simulators of scales and machines, for use without hardware: ``python -m gateway.simulate scale|machine``.

They send exactly the bytes of devices in the field. The scale sends A&D's lines with CR LF, or those of another
``--format``; the machine sends pickles with the separator of the field's programs, or with the documented one
(``--separator nul``).
"""

import argparse
import itertools
import json
import math
import pickle
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

from twisted.application.internet import ClientService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import LoopingCall, deferLater, react
from twisted.python.failure import Failure

from gateway.commands.simulated_scale import FORMATS, AnsweringScale, SimulatedScale

_SEPARATORS: Final = {"legacy": b"\\o", "nul": b"\0"}


@dataclass(frozen=True, slots=True)
class SimulatedMachine:
    """Frames of one machine: vibration at 50 Hz with noise, and a slow temperature.

    :ivar sensors: number of sensors; the last one is a temperature.
    :ivar samples: samples of each sensor in a message.
    :ivar noise: standard deviation of a vibration.
    :ivar anomalies: share of messages that a fault with a score above its threshold follows.
    :ivar protocol: protocol of the pickles.
    """

    generator: random.Random
    name: str
    sensors: int
    samples: int
    noise: float
    anomalies: float
    protocol: int
    separator: bytes

    def first_frame(self) -> bytes:
        """Return the first frame of a connection, which names the machine."""
        return self._frame("name", self.name)

    def frames(self) -> Iterator[tuple[str, bytes]]:
        """Yield the frames after the first one without end: the event and the bytes of each."""
        stem = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.name).replace(" ", "_").lower()
        time = 0
        while True:
            update = {f"{stem}_vib{number}": self._vibration(number, time) for number in range(1, self.sensors)}
            update[f"{stem}_temp"] = self._temperature(time)
            yield "DataUpdate", self._frame("DataUpdate", update)
            if self.generator.random() < self.anomalies:
                score = self.generator.uniform(1.1, 3.0)
                yield "FaultDetect", self._frame("FaultDetect", {"score": score, "threshold": 1.0})
            time += 1

    def _vibration(self, amplitude: int, time: int) -> dict[str, Any]:
        data = [
            amplitude * math.sin(2 * math.pi * 50 * (time + index / self.samples)) + self.generator.gauss(0, self.noise)
            for index in range(self.samples)
        ]
        return {"type": "VIB", "data": data}

    def _temperature(self, time: int) -> dict[str, Any]:
        data = [40 + 5 * math.sin(time / 600) + self.generator.gauss(0, 0.05) for _ in range(self.samples)]
        return {"type": "TEMP", "data": data}

    def _frame(self, event: str, data: Any) -> bytes:
        return pickle.dumps((event, data), self.protocol) + self.separator


class _Sender(Protocol):
    """Sender of lines or frames at a constant rate, as long as it is connected.

    :param first: bytes to send on connecting.
    :param messages: kind and bytes of each line or frame.
    :param rate: messages per second.
    :param counts: number of sent messages by kind.
    """

    transport: Any

    def __init__(
        self,
        reactor: Any,
        first: bytes,
        messages: Iterator[tuple[str, bytes]],
        rate: float,
        counts: Counter[str],
    ) -> None:
        self._first = first
        self._messages = messages
        self._counts = counts
        self._rate = rate
        self._sending = LoopingCall.withCount(self._send)
        self._sending.clock = reactor

    def connectionMade(self) -> None:
        if self._first:
            self.transport.write(self._first)
        self._sending.start(1 / self._rate)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._sending.running:
            self._sending.stop()

    def _send(self, count: int) -> None:
        # The count is above 1 if this process was delayed: the rate is kept.
        for _ in range(count):
            kind, data = next(self._messages)
            self._counts[kind] += 1
            self.transport.write(data)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Simulate scales or machines, for use without hardware.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--host", default="127.0.0.1", help="host of the gateway (default %(default)s)")
    common.add_argument("--connections", type=int, default=1, help="number of connections (default %(default)s)")
    common.add_argument("--seconds", type=float, help="duration (default: until interrupted)")
    common.add_argument("--seed", type=int, help="seed of the random values, for the same values each time")
    scale = kinds.add_parser("scale", parents=[common], help="scale of the type A&D FG-150KAL")
    scale.add_argument("--port", type=int, default=4001, help="port of the scale (default %(default)s)")
    scale.add_argument("--ports", type=int, nargs="+", help="ports of several scales, each with --connections")
    scale.add_argument("--rate", type=float, default=5.0, help="lines per second (default %(default)s)")
    scale.add_argument("--weight", type=float, default=53.26, help="weight of a cylinder, kg (default %(default)s)")
    scale.add_argument("--noise", type=float, default=0.5, help="noise of unstable weights, kg (default %(default)s)")
    scale.add_argument("--faults", type=float, default=0.0, help="share of torn and overload lines (default none)")
    scale.add_argument(
        "--format",
        choices=FORMATS,
        default="and",
        help="lines: A&D standard, CAS 22 bytes, or A&D CSV (default %(default)s)",
    )
    scale.add_argument("--poll", metavar="COMMAND", help="answer this command, Q, S, SI and W; send nothing unasked")
    scale.add_argument(
        "--address", type=_address, nargs="+", help="addresses of the scales on the line, two digits each"
    )
    scale.add_argument("--listen", type=int, metavar="PORT", help="wait for the gateway on this port of --host")
    machine = kinds.add_parser("machine", parents=[common], help="DAQ program of a machine")
    machine.add_argument("--port", type=int, default=8082, help="port of DAQ programs (default %(default)s)")
    machine.add_argument("--rate", type=float, default=1.0, help="messages per second (default %(default)s)")
    machine.add_argument("--name", default="ShotBlast", help="name of the machine (default %(default)s)")
    machine.add_argument(
        "--sensors", type=int, default=4, help="number of sensors; one is a temperature (default %(default)s)"
    )
    machine.add_argument(
        "--samples", type=int, default=30, help="samples of each sensor in a message (default %(default)s)"
    )
    machine.add_argument("--noise", type=float, default=0.1, help="noise of a vibration (default %(default)s)")
    machine.add_argument("--anomalies", type=float, default=0.0, help="share of messages with a fault (default none)")
    machine.add_argument(
        "--protocol", type=int, default=4, choices=range(6), help="protocol of the pickles (default %(default)s)"
    )
    machine.add_argument(
        "--separator",
        choices=_SEPARATORS,
        default="legacy",
        help="separator of frames: legacy as in the field, or NUL (default %(default)s)",
    )
    return parser


def _address(text: str) -> str:
    if not re.fullmatch("[0-9]{2}", text):
        raise argparse.ArgumentTypeError(f"not two digits: {text!r}")
    return text


#: Builds the protocol of a connection.
_Builder: TypeAlias = Callable[[], Protocol]


def _connections(
    reactor: IReactorTime, options: argparse.Namespace, counts: Counter[str]
) -> Iterator[tuple[int, _Builder]]:
    """Yield each connection: its port, and the builder of its protocol."""
    ports = getattr(options, "ports", None) or [options.port]
    for number, port in enumerate(ports * options.connections):
        generator = random.Random(None if options.seed is None else options.seed + number)  # noqa: S311 - not a secret
        if options.kind == "scale":
            yield port, _scale_builder(reactor, options, generator, counts)
        else:
            machine = SimulatedMachine(
                generator,
                options.name if number == 0 else f"{options.name}{number + 1}",
                options.sensors,
                options.samples,
                options.noise,
                options.anomalies,
                options.protocol,
                _SEPARATORS[options.separator],
            )
            yield port, partial(_Sender, reactor, machine.first_frame(), machine.frames(), options.rate, counts)


def _scale_builder(
    reactor: IReactorTime, options: argparse.Namespace, generator: random.Random, counts: Counter[str]
) -> _Builder:
    """Return the builder of the protocol of a scale, or of those on one line."""
    lines = {
        address.encode(): SimulatedScale(
            generator, options.rate, options.weight, options.noise, options.faults, options.format, address
        ).lines()
        for address in options.address or [""]
    }
    if options.poll is not None:
        return partial(AnsweringScale, options.poll.encode("latin-1"), lines, counts)
    in_turn = (next(each) for each in itertools.cycle(lines.values()))
    return partial(_Sender, reactor, b"", in_turn, options.rate, counts)


async def simulate(reactor: Any, options: argparse.Namespace) -> None:
    """Simulate scales or machines, and finally write the number of sent messages by kind as JSON."""
    counts: Counter[str] = Counter()
    listen = getattr(options, "listen", None)
    services = []
    for port, build in _connections(reactor, options, counts):
        factory = Factory.forProtocol(build)
        factory.noisy = False
        if listen is None:
            services.append(ClientService(HostnameEndpoint(reactor, options.host.encode(), port), factory))
        else:
            # Not a service, which would only log that the port is in use.
            await TCP4ServerEndpoint(reactor, listen, interface=options.host).listen(factory)
            break
    for service in services:
        service.startService()
    if options.seconds is None:
        await Deferred()
    await deferLater(reactor, options.seconds, lambda: None)
    for service in services:
        await service.stopService()
    sys.stdout.write(json.dumps(counts) + "\n")


def main(arguments: Sequence[str] | None = None, prog: str = "python -m gateway.simulate") -> None:
    """Simulate scales or machines until interrupted, or for ``--seconds``."""
    options = _parser(prog).parse_args(arguments)
    react(lambda reactor: Deferred.fromCoroutine(simulate(reactor, options)))
