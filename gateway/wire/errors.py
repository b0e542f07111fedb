"""The one error that leaves this room, and how it repeats what somebody sent."""

from typing import Final

#: Characters, or bytes, of somebody's text in a line of the log.
MAX_SHOWN: Final = 50


class WireError(Exception):
    """Bytes that cannot be read.

    From a scale's parser it means that this line is no reading; from a frame reader that the connection
    cannot go on. The text says why, in words for a log line; of the input it repeats what :func:`shown_text` gives.
    """


def shown_text(text: str) -> str:
    """Return somebody's text for a log line: at most 50 characters of it, in quotes, control characters escaped."""
    return repr(text[:MAX_SHOWN]) + ("..." if len(text) > MAX_SHOWN else "")
