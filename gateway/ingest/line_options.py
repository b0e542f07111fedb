"""Options of a line of scales, as configured, and what they say about the bytes of a line."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.config.scale_settings import PollSettings, ScaleConnection
from gateway.wire.scale import FRAMING, prefix_form

_FLAGS: Final = re.ASCII | re.DOTALL | re.VERBOSE

#: Answers of a scale to a command that are not weights: unknown, not now, an error code, and ACK alone.
_ANSWER: Final = re.compile(rb"[ \x06]*+(?:@[0-9]{2})?+(?:\?|I|EC,[ -~]*+|\x06)?+ *+")

_ADDRESS: Final = re.compile(f"{FRAMING}@([0-9]{{2}})".encode("latin-1"), _FLAGS)


@dataclass(frozen=True, slots=True)
class LineOptions:
    """Options of one line.

    :ivar prefix: bytes that a converter puts before each line; empty for none.
    :ivar discard_sec: seconds after connecting whose lines are discarded.
    :ivar addresses: ids of the scales behind the line by address; ``None`` if the line is one scale.
    :ivar locked: ids of the scales whose lines are held if their pattern changes.
    """

    prefix: bytes = b""
    discard_sec: float = 0.0
    poll: PollSettings | None = None
    addresses: Mapping[str, str] | None = None
    locked: frozenset[str] = frozenset()
    _prefixed: "re.Pattern[bytes] | None" = field(init=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.prefix:
            object.__setattr__(self, "_prefixed", prefix_form(self.prefix))

    @property
    def is_plain(self) -> bool:
        """Return whether each line is read as it is, as the line of one scale."""
        return not self.prefix and self.poll is None and self.addresses is None and not self.locked

    def without_prefix(self, line: bytes) -> bytes:
        """Return a line without the configured prefix; a converter may omit it."""
        found = None if self._prefixed is None else self._prefixed.match(line)
        return line if found is None else line[found.end() :]

    def is_answer(self, line: bytes) -> bool:
        """Return whether a line is the answer to a command without a weight, or a part of it, such as ACK."""
        return self.poll is not None and _ANSWER.fullmatch(line) is not None


def address_of(line: bytes) -> str | None:
    """Return the address at the beginning of a line (``@01``); ``None`` without one."""
    found = _ADDRESS.match(line)
    return None if found is None else found[1].decode()


def line_options(line: ScaleConnection, name: str, scales: Mapping[str, ScaleConnection]) -> LineOptions:
    """Return the options of a line.

    :param scales: settings of every scale by its id.
    """
    ids = [name] if line.addresses is None else line.addresses.values()
    return LineOptions(
        prefix=(line.prefix or "").encode(),
        discard_sec=(line.discard_ms or 0) / 1000,
        poll=line.poll,
        addresses=line.addresses,
        locked=frozenset(scale_id for scale_id in ids if scale_id in scales and scales[scale_id].line_pattern_lock),
    )
