"""Rows of figures and their goals."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    :param goal: in words; empty where there is none.
    :param met: whether the goal is met; ``None`` where there is none.
    """

    what: str
    figure: str
    goal: str = ""
    met: bool | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def table(rows: Iterable[Row]) -> str:
    """The rows as text, in columns."""
    cells = [("what", "measured", "goal", "")] + [
        (row.what, row.figure, row.goal, {True: "met", False: "MISSED", None: ""}[row.met]) for row in rows
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in cells)
