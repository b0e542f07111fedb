"""Comparison of the record's commits with the rows of ``scale_weight_log``."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Protocol

import orjson

from gateway.model.records import COMMIT_COLUMNS
from gateway.record.chain import Row
from gateway.record.commit_fields import column_text

#: Entries that are compared at a time.
_BATCH: Final = 1000

#: Maximum problems that are described; further ones are counted.
_MAX_PROBLEMS: Final = 20

#: Bits of one block of an :class:`IdSet`.
_BLOCK_BITS: Final = 1 << 16


class LoggedRows(Protocol):
    """The table ``scale_weight_log``."""

    def rows(self, ids: Sequence[int]) -> Mapping[int, Sequence[Any]]:
        """Return the columns of the rows with these ids."""

    def ids_after(self, first: int) -> Iterable[int]:
        """Return the ids above ``first`` that may be this gateway's, in ascending order."""


class IdSet:
    """A set of ids that takes a bit for each, since a record may have ten million."""

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray] = {}

    def add(self, number: int) -> None:
        """Add an id."""
        block, bit = divmod(number, _BLOCK_BITS)
        bits = self._blocks.setdefault(block, bytearray(_BLOCK_BITS // 8))
        bits[bit >> 3] |= 1 << (bit & 7)

    def __contains__(self, number: int) -> bool:
        block, bit = divmod(number, _BLOCK_BITS)
        bits = self._blocks.get(block)
        return bits is not None and bool(bits[bit >> 3] & 1 << (bit & 7))


class Comparison:
    """Comparison of commits with their rows, in batches.

    :ivar problems: descriptions of the first differences, without numbers of cylinders.
    :ivar count: number of all differences.
    :ivar commits: number of compared commits.
    """

    def __init__(self, commit_log: LoggedRows) -> None:
        self._log = commit_log
        self._waiting: list[tuple[int, dict[str, Any]]] = []
        self._known = IdSet()
        self._first: int | None = None
        self.problems: list[str] = []
        self.count = 0
        self.commits = 0

    def feed(self, row: Row) -> None:
        """Add an entry of the record; other kinds than commits are left out."""
        number, content, _ = row
        if b'"commit_id":' not in content:
            return
        fields = orjson.loads(content)
        commit_id = fields.get("commit_id")
        if fields.get("kind") not in ("commit", "forwarded") or not isinstance(commit_id, int):
            return
        self._known.add(commit_id)
        self._first = commit_id if self._first is None else min(self._first, commit_id)
        self._waiting.append((number, fields))
        if len(self._waiting) >= _BATCH:
            self._compare()

    def finish(self) -> Iterator[int]:
        """Compare the rest; return the ids of rows that the record lacks."""
        self._compare()
        if self._first is not None:
            yield from (each for each in self._log.ids_after(self._first) if each not in self._known)

    def report(self, problem: str) -> None:
        """Add a difference."""
        self.count += 1
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)

    def _compare(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        rows = self._log.rows([fields["commit_id"] for _, fields in waiting])
        for number, fields in waiting:
            self.commits += 1
            commit_id = fields["commit_id"]
            row = rows.get(commit_id)
            if row is None:
                self.report(f"scale_weight_log: row {commit_id} was removed (entry {number} of the record)")
                continue
            for name, value in zip(COMMIT_COLUMNS, row, strict=True):
                if name in fields and not _is_same(name, fields[name], value):
                    self.report(f"scale_weight_log: row {commit_id} was changed: {name} (entry {number} of the record)")


def _is_same(name: str, recorded: str | None, value: Any) -> bool:
    if recorded is None or value is None:
        return recorded is None and value is None
    try:
        if name == "gross_kg":
            return Decimal(recorded) == Decimal(str(value)).quantize(Decimal("0.01"))
        if name in ("received_at", "committed_at") and isinstance(value, str):
            time = datetime.fromisoformat(value)
            value = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    except (InvalidOperation, ValueError):
        return False
    return recorded == column_text(value)
