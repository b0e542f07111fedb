"""Scales on serial ports."""

import termios
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorTime,
)

from gateway.ingest.dialer import ConnectionAttempts
from gateway.ingest.scale import ScaleFactory, ScaleLineProtocol
from gateway.ingest.transport import failure_reason


@dataclass(frozen=True, slots=True)
class SerialLine:
    """A serial port and its settings, named as in pyserial."""

    device: str
    baudrate: int
    bytesize: int
    parity: str
    stopbits: float


class SerialService(Service):
    """A service that keeps a serial line open, and opens it again after a failure or a loss.

    :param open_port: function that opens a Twisted serial port for a protocol and a :class:`SerialLine`.
    """

    def __init__(
        self,
        line: SerialLine,
        factory: ScaleFactory,
        reactor: IReactorTime,
        open_port: Callable[[Any, SerialLine], Any],
    ) -> None:
        self._line = line
        self._factory = factory
        self._reactor = reactor
        self._open_port = open_port
        self._attempts = ConnectionAttempts(factory)
        self._retry: IDelayedCall | None = None
        self._protocol: ScaleLineProtocol | None = None

    def startService(self) -> None:
        super().startService()
        self._open()

    def stopService(self) -> None:
        super().stopService()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._protocol is not None:
            self._protocol.transport.loseConnection()

    def _open(self) -> None:
        self._retry = None
        device = self._line.device
        protocol = ScaleLineProtocol(self._factory, device, self._lost)
        try:
            self._open_port(protocol, self._line)
        except (OSError, ValueError, termios.error) as error:  # pyserial's own error is an OSError
            self._attempts.failed(f"{device} cannot be opened: {failure_reason(error)}")
            self._open_later()
            return
        self._protocol = protocol

    def _lost(self, was_good: bool) -> None:
        self._protocol = None
        self._attempts.ended(self._line.device, was_good)
        if self.running:
            self._open_later()

    def _open_later(self) -> None:
        self._retry = self._reactor.callLater(self._attempts.delay(), self._open)


def check_parity(descriptor: int, parity: str) -> None:
    """Make a serial port turn a break, and a byte of wrong parity, into NUL, so that the line is rejected.

    :param descriptor: file descriptor of the open port.
    :param parity: parity of the line; with ``N`` there is nothing to check.
    """
    settings = termios.tcgetattr(descriptor)
    # Without INPCK such a byte would arrive as another character; with PARMRK or IGNPAR, marked or left out.
    settings[0] &= ~(termios.INPCK | termios.PARMRK | termios.IGNPAR)
    # With BRKINT a break would discard the bytes before it that are not read yet; with IGNBRK it would leave no trace.
    settings[0] &= ~(termios.BRKINT | termios.IGNBRK)
    if parity != "N":
        settings[0] |= termios.INPCK
    termios.tcsetattr(descriptor, termios.TCSANOW, settings)


def open_serial_port(reactor: Any, protocol: Any, line: SerialLine) -> Any:
    """Open a serial port, with a check that its driver accepted the parity.

    :raises OSError: the port cannot be opened or set up.
    """
    import serial  # an optional package
    from twisted.internet.serialport import SerialPort

    class CheckedSerial(serial.Serial):
        def open(self) -> None:
            super().open()
            try:
                check_parity(self.fileno(), line.parity)
            except BaseException:
                self.close()
                raise

    class CheckedPort(SerialPort):
        # SerialPort drops bytes that came before the port was set up, so that no byte goes unchecked.
        _serialFactory = CheckedSerial

    return CheckedPort(
        protocol,
        line.device,
        reactor,
        baudrate=line.baudrate,
        bytesize=line.bytesize,
        parity=line.parity,
        stopbits=line.stopbits,
    )
