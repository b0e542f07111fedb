"""Plain explanations of invalid endpoint strings; Twisted's own errors name parameters of its functions."""

import re
from typing import TYPE_CHECKING, Final

from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.protocol import Factory

from gateway.config.hosts import host_problem

if TYPE_CHECKING:
    from twisted.internet.testing import MemoryReactorClock

#: The forms of endpoints, by kind of line and kind of endpoint; the first of a kind of line stands for the others.
_FORMS: Final = {
    ("listen", "tcp"): "tcp:PORT or tcp:PORT:interface=ADDRESS",
    ("listen", "tcp6"): "tcp6:PORT or tcp6:PORT:interface=ADDRESS",
    ("listen", "ssl"): "ssl:PORT:privateKey=FILE:certKey=FILE",
    ("listen", "unix"): "unix:PATH",
    ("listen", "systemd"): "systemd:domain=INET:index=NUMBER",
    ("connect", "tcp"): "tcp:HOST:PORT",
    ("connect", "ssl"): "ssl:HOST:PORT",
    ("connect", "tls"): "tls:HOST:PORT",
    ("connect", "unix"): "unix:PATH",
}

_LACKING: Final = re.compile(r"missing \d+ required .*?arguments?: (.+)")
_UNKNOWN: Final = re.compile(r"unexpected keyword argument '(\w+)'")
_NOT_A_NUMBER: Final = re.compile(r"invalid literal for int\(\) with base (\d+): '(.*)'", re.DOTALL)


def line_problem(kind: str, text: str) -> str:
    """Return the problem with the line of a scale; an empty string if it is valid.

    :param kind: ``listen``, ``connect`` or ``serial``.
    :param text: endpoint, or device of a serial line.
    """
    if kind == "serial":
        try:
            import serial  # noqa: F401 - an optional package
        except ImportError:
            return "serial lines need pyserial: pip install 'cynow-gateway[serial]'"
        return ""
    problem = endpoint_problem(kind, text)
    address = None if problem else tcp_address(kind, text)
    if address is None:
        return problem
    if kind == "connect" and not address[0]:
        return "not a valid endpoint: it lacks the host; expected tcp:HOST:PORT"
    return host_problem(address[0])


def tcp_address(kind: str, text: str) -> tuple[str, int] | None:
    """Return the interface or host, and the port, of a TCP endpoint; ``None`` for another kind of endpoint.

    :param kind: ``listen`` or ``connect``.
    """
    if text.startswith("systemd:"):
        # Its socket is already open, and listening would take it over.
        return None
    reactor = _recording_reactor()
    try:
        # Nothing is opened: this reactor only records the requests.
        if kind == "listen":
            serverFromString(reactor, text).listen(Factory())
            return next(((interface, port) for port, *_, interface in [*reactor.tcpServers, *reactor.sslServers]), None)
        clientFromString(reactor, text).connect(Factory())
    except Exception:  # each kind of endpoint has errors of its own, and `line_problem` reports them
        return None
    return next(((host, port) for host, port, *_ in [*reactor.tcpClients, *reactor.sslClients]), None)


def display_address(endpoint: str) -> str:
    """Return the address of a client endpoint for log lines: ``10.0.0.7:4002`` for ``tcp:10.0.0.7:4002``."""
    address = tcp_address("connect", endpoint)
    return endpoint if address is None else f"{address[0]}:{address[1]}"


def endpoint_problem(kind: str, text: str) -> str:
    """Return why a text is not a valid endpoint; an empty string if it is.

    :param kind: ``listen`` or ``connect``.
    """
    scheme = text.partition(":")[0].lower()
    try:
        # Nothing is opened: this reactor only records the requests.
        if kind == "listen":
            serverFromString(_recording_reactor(), text)
        else:
            clientFromString(_recording_reactor(), text)
    except (ImportError, NameError) as error:
        # Twisted leaves out names of TLS if the packages are missing.
        if scheme in {"ssl", "tls"}:
            return f"{scheme}: needs packages that are not installed: pip install 'twisted[tls]'"
        return f"not a valid endpoint: {error}"
    except Exception as error:  # each kind of endpoint has errors of its own
        form = _FORMS.get((kind, scheme)) or _FORMS[kind, "tcp"]
        return f"not a valid endpoint: {_reason(error, scheme)}; expected {form}"
    if scheme == "unix" and not text.partition(":")[2]:
        return f"not a valid endpoint: it lacks the path; expected {_FORMS[kind, scheme]}"
    return ""


def _recording_reactor() -> "MemoryReactorClock":
    # Imported late: with its imports it takes 30 ms, and a plant with one scale does not need it.
    from twisted.internet.testing import MemoryReactorClock

    return MemoryReactorClock()


def _reason(error: Exception, scheme: str) -> str:
    text = str(error)
    if (found := _LACKING.search(text)) is not None:
        names = ["path" if name == "address" else name for name in re.findall(r"'(\w+)'", found[1])]
        return f"it lacks the {' and the '.join(names)}"
    if (found := _UNKNOWN.search(text)) is not None:
        return f"unknown option {found[1]}"
    if (found := _NOT_A_NUMBER.search(text)) is not None:
        number = "an octal number" if found[1] == "8" else "a number"
        return f"{found[2]!r} is not {number}" if found[2] else f"{number} is missing"
    if text.startswith("Unknown endpoint type"):
        return f"unknown kind of endpoint {scheme!r}"
    if isinstance(error, LookupError) and scheme == "systemd":
        return "systemd has passed no such socket to this process"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, RuntimeError):
        # Twisted's parser expects a character after a backslash.
        return "a backslash at its end"
    return text
