"""The error of this package, and how it quotes input."""

import re
from typing import Final

#: Maximum characters, or bytes, of input quoted in a log line.
MAX_SHOWN: Final = 50


_SECRET: Final = re.compile("secret", re.IGNORECASE)


class WireError(Exception):
    """Error for bytes that cannot be read.

    From a scale's parser it means that the line is not a valid reading; from a frame reader, that the connection cannot
    go on. The text gives the reason for a log line; it quotes input only through :func:`shown_text`.
    """


def shown_text(text: str) -> str:
    """Return input text for a log line: at most 50 characters, in quotes, with control characters escaped.

    Nothing is shown after the word "secret", which a DAQ program sends before its secret.
    """
    secret = _SECRET.search(text, 0, MAX_SHOWN)
    end = MAX_SHOWN if secret is None else secret.end()
    return repr(text[:end]) + ("..." if len(text) > end else "")
