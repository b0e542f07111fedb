"""Counters and log lines of the problems of one line's connections."""

from typing import Final

from gateway.ingest.transport import host_of
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters

#: Maximum log lines about failed attempts of one scale for one reason, and the period in which they count, in seconds.
_RETRY_LINES: Final = 5
_RETRY_PERIOD: Final = 600.0


class LineProblems:
    """Counters and log lines of the problems of one line's connections.

    :param name: name of the line.
    :param warnings: log for lines about bad input; lines about failed attempts have a limit of their own.
    """

    def __init__(self, name: str, counters: Counters, warnings: LimitedLog) -> None:
        self._name = name
        self._warnings = warnings
        self._retry_log = warnings.limited(_RETRY_LINES, _RETRY_PERIOD)
        self._refused = counters.connections_refused.labels("scale")
        self._silent_closed = counters.scale_silent_closed.labels(name)
        self._http_requests = counters.scale_http_requests.labels(name)
        self._polls_stuck = counters.scale_polls_stuck.labels(name)
        self._failed_attempts = counters.scale_failed_attempts.labels(name)

    def connection_refused(self, max_connections: int) -> None:
        """Count and log a connection that is refused at the limit."""
        self._refused.inc()
        self._warnings.warn(
            f"connections {self._name}",
            "scale {scale_id}: connection refused: limits.connections ({max_connections}) is reached, and all have "
            "sent readings",
            scale_id=self._name,
            max_connections=max_connections,
        )

    def silent_closed(self, peer: str, max_connections: int) -> None:
        """Count and log a silent connection that is closed for a new one at the limit."""
        self._silent_closed.inc()
        self._warnings.warn(
            f"silent {self._name}",
            "scale {scale_id}: {peer} is closed for a new connection: limits.connections ({max_connections}) is "
            "reached, and it has not sent a reading",
            scale_id=self._name,
            peer=peer,
            max_connections=max_connections,
        )

    def not_a_scale(self, peer: str, what: str) -> None:
        """Count and log a connection that is closed because a web browser's input came."""
        self._http_requests.inc()
        self._warnings.warn(
            f"http {host_of(peer)}",
            "scale {scale_id}, {peer}: connection closed and its data discarded: this is {what}, not a scale",
            scale_id=self._name,
            peer=peer,
            what=what,
        )

    def stuck(self, peer: str) -> None:
        """Count and log a connection that is closed because the peer does not read commands."""
        self._polls_stuck.inc()
        self._warnings.warn(
            f"stuck {self._name}",
            "scale {scale_id}, {peer}: connection closed: the peer does not read the commands of poll",
            scale_id=self._name,
            peer=peer,
        )

    def attempt_failed(self, problem: str, delay: float) -> None:
        """Count and log a failed attempt to reach the scale.

        :param problem: address or device, and reason.
        :param delay: seconds until the next attempt.
        """
        self._failed_attempts.inc()
        self._retry_log.warn(
            f"retry {self._name} {problem}",
            "scale {scale_id}: {problem}; retrying in {delay:.0f} s",
            scale_id=self._name,
            problem=problem,
            delay=delay,
        )
