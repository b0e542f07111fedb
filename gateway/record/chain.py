"""The chain of the record: contents, hashes, heads and their verification, without files and clocks."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import orjson

from gateway import __version__

#: Previous hash of the first entry.
GENESIS: Final = bytes(32)

#: A number, a content and a hash, as a row of the table ``record``.
Row: TypeAlias = tuple[int, bytes, bytes]

#: A head within a text. The gateway's name ends at the last two colons, and contains no blanks or quotes.
_HEAD: Final = re.compile(r"([^\s\"'<>\\\x00-\x1f\x7f-\x9f]{1,255}):([1-9][0-9]{0,17}):([0-9a-f]{64})(?![0-9a-f])")

_NUMBER: Final = re.compile(rb'"number":([0-9]{1,18})[,}]')


class Head(NamedTuple):
    """Number and hash of the last entry of a gateway's record."""

    gateway: str
    number: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.gateway}:{self.number}:{self.hash.hex()}"


@dataclass(frozen=True, slots=True)
class EntryStamp:
    """Fields that every entry has beside its number.

    :ivar kind: ``commit``, ``refusal``, ``ticket``, ``forwarded`` or ``check``.
    :ivar time: time in the form of RFC 3339.
    """

    gateway: str
    kind: str
    time: str


class ChainBroken(Exception):
    """Error for a record that was tampered with.

    :ivar number: number of the first entry concerned.
    """

    def __init__(self, number: int, problem: str) -> None:
        super().__init__(f"entry {number}: {problem}")
        self.number = number


def gateway_in_heads(gateway: str) -> str:
    """Return the form of a gateway's name in heads, without the characters that end a head in a text."""
    return re.sub(r"[\s\"'<>\\\x00-\x1f\x7f-\x9f]", "_", gateway) or "_"


def encode_entry(number: int, stamp: EntryStamp, fields: Mapping[str, Any]) -> bytes:
    """Return the content of an entry: canonical JSON, whose keys are sorted and which has no blanks.

    :raises ValueError: a text cannot be encoded in UTF-8.
    """
    content = {
        **fields,
        "number": number,
        "gateway": stamp.gateway,
        "kind": stamp.kind,
        "time": stamp.time,
        "software": __version__,
    }
    try:
        return orjson.dumps(content, default=str, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise ValueError("a text is not valid UTF-8") from error


def link(previous: bytes, content: bytes) -> bytes:
    """Return the hash of an entry."""
    return hashlib.sha256(previous + content).digest()


def find_heads(text: str) -> list[Head]:
    """Return all heads in a text, such as log lines, a published file, a receipt or the body of a webhook."""
    return [Head(found[1], int(found[2]), bytes.fromhex(found[3])) for found in _HEAD.finditer(text)]


def parse_head(text: str) -> Head:
    """Return the head that a text consists of.

    :raises ValueError: the text is not a head.
    """
    found = _HEAD.fullmatch(text.strip())
    if found is None:
        raise ValueError("not a head; expected <gateway>:<number>:<64 hexadecimal digits>")
    return Head(found[1], int(found[2]), bytes.fromhex(found[3]))


def verify(rows: Iterable[Row]) -> Iterator[Row]:
    """Return the rows of a record, each after it was verified.

    :raises ChainBroken: an entry was changed, removed, added or moved.
    """
    previous, expected, sha256 = GENESIS, 1, hashlib.sha256
    for row in rows:
        number, content, digest = row
        try:
            is_intact = (
                number == expected
                and sha256(previous + content).digest() == digest
                and b'"number":%d,' % number in content
            )
        except TypeError:
            is_intact = False
        if not is_intact:
            raise ChainBroken(expected, _explain(row, expected, previous))
        yield row
        previous = digest
        expected += 1


def _explain(row: tuple[Any, Any, Any], expected: int, previous: bytes) -> str:
    """Return what happened to the first entry that cannot be verified."""
    number, content, digest = row
    if not isinstance(number, int) or number < expected:
        return f"an entry with number {number} was added before it"
    if number > expected:
        return f"it was removed; the next entry is {number}"
    if not isinstance(content, bytes) or not isinstance(digest, bytes):
        return "it was changed: it is not binary data"
    found = _NUMBER.search(content)
    if found is None:
        return "it was changed: its content has no number"
    if int(found[1]) > expected:
        return f"it was removed or moved: the content of entry {int(found[1])} is in its place"
    if int(found[1]) < expected:
        return f"it was added: its content is that of entry {int(found[1])}"
    if link(previous, content) != digest:
        return "it was changed: its hash is not that of its content and of the entry before it"
    return "it was changed"


class HeadCheck:
    """Comparison of published heads with the entries of a record.

    :param gateways: names of the record's gateway in heads.
    :param heads: heads that were published; those of other gateways are counted and left out.
    """

    def __init__(self, gateways: Iterable[str], heads: Iterable[Head]) -> None:
        names = frozenset(gateways)
        found = list(heads)
        self._heads: dict[int, set[bytes]] = {}
        for head in found:
            if head.gateway in names:
                self._heads.setdefault(head.number, set()).add(head.hash)
        self.foreign = sum(head.gateway not in names for head in found)
        self.checked = 0
        self._last_good = 0

    def feed(self, number: int, digest: bytes) -> None:
        """Compare an entry with the heads that have its number.

        :raises ChainBroken: the entry has another hash than a head.
        """
        hashes = self._heads.pop(number, None)
        if hashes is None:
            return
        if hashes != {digest}:
            first = self._last_good + 1
            raise ChainBroken(
                first,
                f"the record was recomputed: entry {number} has another hash than the published head;"
                f" an entry from {first} to {number} was changed, removed, added or moved",
            )
        self._last_good = number
        self.checked += 1

    def finish(self, last: int) -> None:
        """Check that no head is beyond the end of the record.

        :param last: number of the last entry; 0 for an empty record.
        :raises ChainBroken: the record was cut off.
        """
        if self._heads:
            raise ChainBroken(
                last + 1, f"it was removed: the record ends before it, but a published head is at {max(self._heads)}"
            )
