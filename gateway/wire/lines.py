"""Framing of the lines of scales, for one connection.

``receive_data(data)`` takes the bytes of one read and returns the complete lines in them, with their ends (CR LF, LF or
CR). An incomplete line is kept in ``rest``. A caller that finds it too long calls ``skip_rest()``; the line is then
skipped up to its end. The lines are the same however the bytes were split, except for empty ones.
"""

import re
from typing import Final

from gateway.wire.errors import WireError
from gateway.wire.scale import HTTP_OVERLAP, has_http_request

#: Maximum length of a line, in bytes; A&D's have 20.
MAX_LINE: Final = 1024

#: Text of the error for the request of a web browser, which a page can make it send to any port, with any content.
HTTP_REQUEST: Final = "an HTTP request"

_SLASH: Final = ord("/")
_LINE_END: Final = re.compile(rb"[\r\n]")


class LineReader:
    """Reader of the lines of one connection.

    :ivar rest: bytes of an incomplete line.
    :ivar is_skipping: whether the current line is skipped up to its end.
    """

    __slots__ = ("_skipped", "is_skipping", "rest")

    def __init__(self) -> None:
        self.rest = b""
        self.is_skipping = False
        #: The last bytes of the line that is skipped.
        self._skipped = b""

    def receive_data(self, data: bytes) -> bytes:
        """Take the bytes of one read; return the complete lines.

        :raises WireError: an HTTP request was received. None of the bytes are used, and the reader must not be used
            after that.
        """
        if self.is_skipping:
            data = self._skip(data)
        if self.rest:
            data = self.rest + data
        # Searching for a single byte takes a tenth of the time, and hardly any line of a scale has a slash.
        if _SLASH in data and has_http_request(data):
            raise WireError(HTTP_REQUEST)
        if data.endswith(b"\n"):
            self.rest = b""
            return data
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        self.rest = data[end:]
        return data[:end]

    def skip_rest(self) -> None:
        """Skip the incomplete line up to its end."""
        self.is_skipping = True
        self._skipped = self.rest[-HTTP_OVERLAP:]
        self.rest = b""

    def _skip(self, data: bytes) -> bytes:
        """Skip the rest of a line; return the bytes after it."""
        found = _LINE_END.search(data)
        skipped = self._skipped + (data if found is None else data[: found.start()])
        # The line of a request may be longer than any line of a scale.
        if has_http_request(skipped):
            raise WireError(HTTP_REQUEST)
        self.is_skipping = found is None
        self._skipped = skipped[-HTTP_OVERLAP:]
        return b"" if found is None else data[found.end() :]
